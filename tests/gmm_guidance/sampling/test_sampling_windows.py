"""Windows of a run: which evaluations are guided, against a loop in NumPy."""

import math

import jax
import numpy as np
import pytest
from oracles.toy_stack import ToyStack
from oracles.two_gaussians import TwoGaussians

from gmm_guidance import CFG, S2Guidance, SigmaWindow, SkipLayer, StepWindow, Windowed
from gmm_guidance.diffusion.schedule import CustomSchedule
from gmm_guidance.sampling.sample import guided_sample
from gmm_guidance.sampling.segments import plan_segments
from gmm_guidance.sampling.solvers import Euler, Heun

KEY = jax.random.key(0)
LEVELS = (8.0, 4.0, 2.0, 1.0)  # 4 steps, the last of them to 0
GAUSSIANS = TwoGaussians(1.5, 0.5, 3.0)
START = np.linspace(-10, 10, 5, dtype=np.float32)[:, None]
INSIDE, OUTSIDE = 3.0, 2.0


def draw(rule, solver="euler", denoiser=GAUSSIANS, start=START, **options):
    return guided_sample(
        KEY,
        denoiser,
        0,
        num_samples=len(start),
        guidance=rule,
        schedule=CustomSchedule(LEVELS),
        solver=solver,
        initial=start,
        **options,
    )


def guided(x, sigma, scale):
    uncond, cond = GAUSSIANS(x, sigma, None), GAUSSIANS(x, sigma, 0)
    return uncond + scale * (cond - uncond)


def by_hand(scale_at, solver="euler"):
    """``scale_at(step, sigma)`` is the scale of each evaluation."""
    x, levels = START.astype(np.float64), (*LEVELS, 0.0)
    for i in range(4):
        sigma, after = levels[i], levels[i + 1]
        slope = (x - guided(x, sigma, scale_at(i, sigma))) / sigma
        end = x + (after - sigma) * slope
        if solver == "heun" and after > 0:
            slope += (end - guided(end, after, scale_at(i, after))) / after
            end = x + (after - sigma) * slope / 2
        x = end
    return x


STEP_WINDOWS = [
    ((0.0, 1.0), {0, 1, 2, 3}),
    (None, {0, 1, 2, 3}),
    ((0.0, 0.25), {0}),
    ((0.25, 0.75), {1, 2}),
    (StepWindow(0.75, 1.0), {3}),
    ((0.2, 0.3), {1}),
]


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("window, steps", STEP_WINDOWS)
def test_step_windows(window, steps, solver):
    """Shares of completed steps, both evaluations of Heun's step alike."""
    rule = Windowed(CFG(INSIDE), window, outside=CFG(OUTSIDE))
    wanted = by_hand(lambda i, sigma: INSIDE if i in steps else OUTSIDE, solver)
    np.testing.assert_allclose(draw(rule, solver), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize(
    "low, high", [(0.0, math.inf), (2.0, 8.0), (1.0, 4.0), (0.0, 1.0), (4.0, 9.0)]
)
def test_sigma_windows(low, high, solver):
    """``low < sigma <= high``, for each evaluation on its own."""
    rule = Windowed(CFG(INSIDE), SigmaWindow(low, high), outside=CFG(OUTSIDE))

    def scale_at(step, sigma):
        return INSIDE if low < sigma <= high else OUTSIDE

    wanted = by_hand(scale_at, solver)
    np.testing.assert_allclose(draw(rule, solver), wanted, rtol=1e-4, atol=1e-4)


def test_no_guidance_outside_by_default():
    got = draw(Windowed(CFG(INSIDE), (0.5, 1.0)))
    wanted = by_hand(lambda i, sigma: INSIDE if i >= 2 else 1.0)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_unconditional_passes_run_inside_alone():
    runs = []

    def denoiser(x, sigma, label):
        if label is None:
            jax.debug.callback(lambda s: runs.append(float(s)), sigma)
        return 0.5 * x

    for window, wanted in (((0.25, 0.75), [4, 2]), (SigmaWindow(1, 4), [4, 2])):
        runs.clear()
        jax.block_until_ready(draw(Windowed(CFG(2.0), window), denoiser=denoiser))
        jax.effects_barrier()
        assert sorted(runs, reverse=True) == wanted


@pytest.mark.parametrize(
    "rule",
    [
        lambda window: S2Guidance(2.0, 0.7, window=window),
        lambda window: SkipLayer(2.0, (1, 2), 0.7, window=window),
    ],
    ids=["S2Guidance", "SkipLayer"],
)
@pytest.mark.parametrize("window", [(0.25, 0.75), SigmaWindow(1.0, 4.0)])
@pytest.mark.parametrize("solver", [Euler(), Heun()])
def test_rules_with_windows_of_their_own_are_cfg_outside(rule, window, solver):
    """The same run as that of the rule inside ``Windowed``."""
    schedule = CustomSchedule(LEVELS)
    own = plan_segments(rule(window), schedule, solver)
    wrapped = Windowed(rule(None), window, outside=CFG(2.0))
    assert own == plan_segments(wrapped, schedule, solver)
    acting = [type(r).__name__ for s in own for r in s.rules]
    assert acting[0] == acting[-1] == "CFG" and type(rule(None)).__name__ in acting


def test_a_weak_pass_acts_inside_its_window_alone():
    stack, start = ToyStack.random(), 8 * np.ones((3, 2), np.float32)
    rule = S2Guidance(2.0, 0.7, window=(0.75, 1.0))
    _, path = draw(rule, denoiser=stack, start=start, trajectory=True)
    _, plain = draw(CFG(2.0), denoiser=stack, start=start, trajectory=True)
    np.testing.assert_allclose(path[:4], plain[:4], rtol=1e-5, atol=1e-5)
    assert np.abs(path[4] - plain[4]).max() > 0.01
