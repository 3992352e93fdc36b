"""Noise levels against numbers worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest

from gmm_guidance.diffusion.process import DDPM, VP
from gmm_guidance.diffusion.schedule import (
    CustomSchedule,
    DDPMSteps,
    FlowSteps,
    Karras,
    Schedule,
)

EVERY = [
    Karras(),
    Karras(1),
    Karras(2),
    Karras(1000, rho=1.0),
    DDPMSteps(),
    DDPMSteps(1),
    DDPMSteps(1000),
    DDPMSteps(999),
    DDPMSteps(600, spacing="leading"),
    DDPMSteps(250, spacing="linspace"),
    FlowSteps(),
    FlowSteps(1),
    FlowSteps(28, shift=3.0),
    CustomSchedule((3.0, 1.0)),
]


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_the_contract(schedule):
    sigmas = schedule.sigmas()
    assert isinstance(schedule, Schedule)
    assert isinstance(sigmas, np.ndarray) and sigmas.dtype == np.float64
    assert sigmas.shape == (schedule.num_steps + 1,)
    assert np.all(np.diff(sigmas) < 0) and np.all(np.isfinite(sigmas))
    assert sigmas[-1] == 0.0
    assert hash(schedule) == hash(type(schedule)(**vars(schedule)))
    sigmas[:] = 7.0  # nobody else's copy
    assert schedule.sigmas()[-1] == 0.0


# --- levels


def test_karras_ends_exactly():
    sigmas = Karras(18).sigmas()
    assert sigmas[0] == 80.0 and sigmas[17] == 0.002
    np.testing.assert_array_equal(Karras(1).sigmas(), [80.0, 0.0])
    np.testing.assert_array_equal(Karras(2).sigmas(), [80.0, 0.002, 0.0])


def test_karras_by_hand():
    # rho = 2 and roots 1, 2, 3, 4: the levels are their squares.
    sigmas = Karras(4, sigma_min=1.0, sigma_max=16.0, rho=2.0).sigmas()
    np.testing.assert_allclose(sigmas, [16.0, 9.0, 4.0, 1.0, 0.0], rtol=1e-14)
    even = Karras(3, sigma_min=1.0, sigma_max=5.0, rho=1.0).sigmas()
    np.testing.assert_allclose(even, [5.0, 3.0, 1.0, 0.0], rtol=1e-14)


def test_karras_middle_of_the_default():
    # The seventh roots of 80 and 0.002 are 1.870122 and 0.411560, their mean 1.140841.
    assert Karras(3).sigmas()[1] == pytest.approx(1.140841**7, rel=1e-5)


@pytest.mark.parametrize(
    "length, steps, spacing, expected",
    [
        (1000, 4, "trailing", [999, 749, 499, 249]),
        (1000, 4, "leading", [750, 500, 250, 0]),
        (1000, 4, "linspace", [999, 666, 333, 0]),
        (1000, 3, "trailing", [999, 666, 332]),  # 1000, 666.67, 333.33
        (1000, 3, "leading", [666, 333, 0]),
        (1000, 3, "linspace", [999, 500, 0]),  # 499.5 to the even neighbor
        (10, 4, "trailing", [9, 7, 4, 1]),  # 10, 7.5, 5, 2.5: halves to even
        (10, 1, "trailing", [9]),
        (10, 10, "trailing", list(range(9, -1, -1))),
        (10, 10, "leading", list(range(9, -1, -1))),
        (10, 10, "linspace", list(range(9, -1, -1))),
        (10, 6, "leading", [5, 4, 3, 2, 1, 0]),
    ],
)
def test_ddpm_timesteps(length, steps, spacing, expected):
    schedule = DDPMSteps(steps, DDPM(length), spacing)
    timesteps = schedule.timesteps()
    assert np.issubdtype(timesteps.dtype, np.integer)
    np.testing.assert_array_equal(timesteps, expected)


def test_ddpm_levels_are_the_chains():
    betas = [1e-4 + (2e-2 - 1e-4) * i / 999 for i in range(1000)]
    products = np.cumprod([1 - beta for beta in betas])
    schedule = DDPMSteps(5)
    kept = products[[999, 799, 599, 399, 199]]
    np.testing.assert_allclose(schedule.sigmas()[:-1], np.sqrt((1 - kept) / kept))
    assert schedule.sigmas()[0] == pytest.approx(157.4, abs=0.05)  # as in SD's 157.4


def test_dit_respacing():
    """DiT samples 250 steps: 0 and 999 included, gaps of 4 with some of 5."""
    timesteps = DDPMSteps(250, spacing="linspace").timesteps()
    assert (timesteps[0], timesteps[-1]) == (999, 0)
    assert set(np.diff(timesteps)) == {-4, -5}


def test_flow_levels_by_hand():
    sigmas = FlowSteps(4, t_max=0.8).sigmas()  # t = 0.8, 0.6, 0.4, 0.2, 0
    np.testing.assert_allclose(sigmas, [4.0, 1.5, 2 / 3, 0.25, 0.0], rtol=1e-12)
    assert FlowSteps().sigmas()[0] == pytest.approx(999.0)


def test_flow_shift():
    t = np.array([0.8, 0.6, 0.4, 0.2, 0.0])
    shifted = 3 * t / (1 + 2 * t)
    schedule = FlowSteps(4, t_max=0.8, shift=3.0)
    np.testing.assert_allclose(schedule.times(), shifted, rtol=1e-12)
    np.testing.assert_allclose(schedule.sigmas(), shifted / (1 - shifted), rtol=1e-12)
    # A shift moves time towards noise: half of the clock is then at three quarters.
    assert FlowSteps(2, t_max=0.999999, shift=3.0).times()[1] == pytest.approx(
        0.75, 1e-5
    )


def test_custom_levels():
    assert CustomSchedule((2.0, 1.0)) == CustomSchedule((2.0, 1.0, 0.0))
    np.testing.assert_array_equal(CustomSchedule((2, 1)).sigmas(), [2.0, 1.0, 0.0])
    assert CustomSchedule((2.0, 1.0)).num_steps == 2
    copied = CustomSchedule(Karras(5).sigmas())  # type: ignore[arg-type]
    np.testing.assert_array_equal(copied.sigmas(), Karras(5).sigmas())
    assert hash(copied) == hash(CustomSchedule(tuple(Karras(5).sigmas())))


# --- what is refused

NO_CHAIN: Any = VP()  # wrong by type as well: hidden from the type checker
NO_SPACING: Any = "even"


@pytest.mark.parametrize("kind", [Karras, DDPMSteps, FlowSteps])
@pytest.mark.parametrize("num_steps", [0, -3, 2.5, "10"])
def test_bad_step_counts(kind, num_steps):
    with pytest.raises(ValueError, match=f"num_steps must be.*got {num_steps}"):
        kind(num_steps)


@pytest.mark.parametrize(
    "build, pattern",
    [
        (
            lambda: Karras(sigma_min=0.0),
            "sigma_min must be finite and above 0, got 0.0",
        ),
        (lambda: Karras(sigma_min=-1.0), "sigma_min must be.*got -1.0"),
        (lambda: Karras(sigma_min=math.nan), "sigma_min must be.*got nan"),
        (lambda: Karras(sigma_max=0.001), "sigma_max must be.*0.002, got 0.001"),
        (lambda: Karras(sigma_max=0.002), "sigma_max must be.*got 0.002"),
        (lambda: Karras(sigma_max=math.inf), "sigma_max must be finite.*got inf"),
        (lambda: Karras(sigma_max=math.nan), "sigma_max must be.*got nan"),
        (lambda: Karras(rho=0.0), "rho must be.*got 0.0"),
        (lambda: Karras(rho=math.inf), "rho must be.*got inf"),
        (lambda: DDPMSteps(1001), "at most the chain's 1000, got 1001"),
        (lambda: DDPMSteps(11, DDPM(10)), "at most the chain's 10, got 11"),
        (lambda: DDPMSteps(10, NO_CHAIN), "process must be a DDPM chain, got VP"),
        (lambda: DDPMSteps(spacing=NO_SPACING), "'even'; choose one of leading, trail"),
        (lambda: DDPMSteps(1, spacing="leading"), "at least 2 with leading.*trailing"),
        (lambda: DDPMSteps(1, spacing="linspace"), "at least 2 with linspace"),
        (lambda: FlowSteps(t_max=1.0), "t_max must be above 0 and below 1, got 1.0"),
        (lambda: FlowSteps(t_max=0.0), "t_max must be.*got 0.0"),
        (lambda: FlowSteps(t_max=math.nan), "t_max must be.*got nan"),
        (lambda: FlowSteps(shift=0.0), "shift must be.*got 0.0"),
        (lambda: FlowSteps(shift=math.inf), "shift must be.*got inf"),
        (lambda: CustomSchedule(()), r"at least one noise level.*got \(\)"),
        (lambda: CustomSchedule((0.0,)), "at least one noise level must be above 0"),
        (lambda: CustomSchedule((1.0, 2.0)), "must fall strictly.*sort"),
        (lambda: CustomSchedule((1.0, 1.0)), "must fall strictly"),
        (lambda: CustomSchedule((1.0, 0.0, 0.0)), "must fall strictly"),
        (lambda: CustomSchedule((1.0, -1.0)), "finite and not negative.*-1.0"),
        (lambda: CustomSchedule((math.inf, 1.0)), "finite and not negative.*inf"),
        (lambda: CustomSchedule((math.nan,)), "finite and not negative.*nan"),
    ],
)
def test_bad_schedules(build, pattern):
    with pytest.raises(ValueError, match=pattern):
        build()
