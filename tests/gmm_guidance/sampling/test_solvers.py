"""Solvers against the probability flow of one Gaussian, which is known exactly."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.two_gaussians import TwoGaussians, exact_flow

from gmm_guidance.blocks.process_stack import ProcessStack
from gmm_guidance.diffusion.process import DDPM, VE, VP, RectifiedFlow
from gmm_guidance.diffusion.schedule import CustomSchedule, DDPMSteps, FlowSteps, Karras
from gmm_guidance.mixture.exact_denoiser import ExactDenoiser
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.sampling.sample import guided_sample
from gmm_guidance.sampling.solvers import (
    DPMSolverPP2M,
    EDMStochastic,
    Euler,
    Heun,
    UniPC,
    as_solver,
)

KEY = jax.random.key(0)
MEAN, VARIANCE = 1.5, 0.49
GAUSSIAN = TwoGaussians(MEAN, VARIANCE, 1.0)
NO_CHURN = EDMStochastic(churn=0.0)
ORDERS = {"euler": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 3}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def solve(schedule, solver, x, denoiser=GAUSSIAN, **options):
    return guided_sample(
        KEY,
        denoiser,
        0,
        num_samples=len(x),
        schedule=schedule,
        solver=solver,
        initial=jnp.asarray(x),
        **options,
    )


@pytest.mark.parametrize("solver, order", ORDERS.items(), ids=ORDERS)
def test_order_of_convergence(x64, solver, order):
    """Error at sigma = 0.5 on even steps in log sigma; halving them shows the order."""
    x = np.array([[-20.0], [3.0], [25.0]])
    wanted = exact_flow(MEAN, VARIANCE, x, 10.0, 0.5)
    errors = []
    for steps in (64, 128):
        levels = np.geomspace(10.0, 0.5, steps + 1)
        schedule = CustomSchedule(tuple(levels))
        _, path = solve(schedule, solver, x, trajectory=True)
        errors.append(np.abs(np.asarray(path[-2]) - wanted).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)
    assert errors[1] < {1: 0.1, 2: 2e-3, 3: 1e-4}[order]


@pytest.mark.parametrize("name", ORDERS)
def test_one_point_of_data_is_hit_whatever_the_steps(name):
    """A constant denoiser: every solver is exact, to the last bit."""
    point = np.array([[1.5, -2.0]], np.float32)
    x = 80 * np.ones((1, 2), np.float32)
    samples = solve(Karras(3), name, x, denoiser=lambda x, sigma, label: 0 * x + point)
    np.testing.assert_array_equal(samples, point)


def test_full_covariance_in_the_plane(x64):
    """Each principal axis has its own width: x(s) = m + Q diag(...) Q^T (x - m)."""
    mean, sigma = np.array([1.0, -2.0]), 40.0
    covariance = np.array([[2.0, 0.9], [0.9, 0.5]])
    x = sigma * np.random.default_rng(0).normal(size=(5, 2))
    widths, axes = np.linalg.eigh(covariance)
    gain = axes @ np.diag(np.sqrt(widths / (widths + sigma**2))) @ axes.T
    exact = ExactDenoiser(GaussianMixture(mean[None], covariance[None]))
    samples = solve(Karras(256, 1e-4, sigma), "heun", x, exact)
    np.testing.assert_allclose(samples, mean + (x - mean) @ gain, atol=5e-4)


# --- every process


class GaussianNetwork:
    """What a perfect network of some process says about N(MEAN, VARIANCE).

    From the Gaussian marginal of ``x_t`` itself; rates by automatic differentiation.
    """

    def __init__(self, process, kind):
        self.process, self.kind = process, kind

    def __call__(self, x_t, t, label):
        ones = jnp.ones_like(t)
        alpha, alpha_rate = jax.jvp(self.process.alpha, (t,), (ones,))
        std, std_rate = jax.jvp(self.process.noise_std, (t,), (ones,))
        variance = alpha**2 * VARIANCE + std**2
        offset = x_t - (alpha * MEAN)[:, None]
        if self.kind == "epsilon":
            return (std / variance)[:, None] * offset
        # Mean and standard deviation of x_t each follow their own rate.
        growth = (alpha * alpha_rate * VARIANCE + std * std_rate) / variance
        return (alpha_rate * MEAN)[:, None] + growth[:, None] * offset


PROCESSES = {
    "ve": (VE(), "epsilon", Karras(128)),
    "vp": (VP(), "velocity", Karras(128, sigma_max=150.0)),
    "ddpm": (DDPM(), "epsilon", DDPMSteps(250)),
    "flow": (RectifiedFlow(), "velocity", FlowSteps(250, t_max=0.99)),
}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("solver, tolerance", [("euler", 0.05), ("dpmpp_2m", 3e-3)])
def test_closed_form_for_every_process(x64, process, solver, tolerance):
    clock, kind, schedule = PROCESSES[process]
    start = schedule.sigmas()[0]
    x = MEAN + start * np.linspace(-2, 2, 5)[:, None]
    model = ProcessStack(GaussianNetwork(clock, kind), clock, kind)
    samples = solve(schedule, solver, x, model)
    wanted = exact_flow(MEAN, VARIANCE, x, start)
    np.testing.assert_allclose(samples, wanted, atol=tolerance)


# --- UniPC


def smooth_velocity(x_t, s):
    """Any nonlinear velocity of a flow, in numpy or JAX by its argument."""
    xp = jnp if isinstance(x_t, jax.Array) else np
    return xp.sin(3.0 * x_t + s) + 0.5 * x_t * s - 0.2


def smooth_denoiser(x, sigma, label):
    s = sigma / (1.0 + sigma)
    x_t = x / (1.0 + sigma)
    return x_t - s * smooth_velocity(x_t, s)


@pytest.mark.ci  # diffusers is imported
def test_unipc_is_diffusers(x64):
    """In the clock of the flow, on the scheduler's own levels."""
    torch = pytest.importorskip("torch", reason="the oracle extra is not installed")
    diffusers = pytest.importorskip("diffusers", reason="needs the oracle extra")
    noise = np.random.default_rng(0).normal(size=(4, 3))
    for steps, shift in itertools.product((8, 20, 50), (3.0, 5.0, 8.0)):
        scheduler = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)
        times = scheduler.sigmas.double().numpy()
        x_t = torch.tensor(noise)
        for i, time in enumerate(scheduler.timesteps):
            velocity = torch.tensor(smooth_velocity(x_t.numpy(), times[i]))
            x_t = scheduler.step(velocity, time, x_t).prev_sample
        levels = times[:-1] / (1.0 - times[:-1])
        start = noise / (1.0 - times[0])
        schedule = CustomSchedule(tuple(levels))
        samples = solve(schedule, "unipc", start, smooth_denoiser)
        np.testing.assert_allclose(samples, x_t.numpy(), atol=1e-6)


@pytest.mark.ci  # a second of compilation in either precision
def test_many_small_steps_of_unipc_keep_their_digits():
    """Float32 against float64 with steps of 0.002 in log sigma."""
    levels = CustomSchedule(tuple(np.geomspace(10.0, 0.5, 1501)))
    x = np.linspace(-20, 20, 5)[:, None]
    narrow = solve(levels, "unipc", x.astype(np.float32))
    with jax.enable_x64(True):
        wide = solve(levels, "unipc", x)
    np.testing.assert_allclose(narrow, wide, atol=1e-4)


# --- the stochastic solver


def test_without_churn_it_is_heun():
    x = 80 * np.linspace(-1, 1, 6, dtype=np.float32)[:, None]
    wanted = solve(Karras(9), "heun", x)
    np.testing.assert_allclose(solve(Karras(9), NO_CHURN, x), wanted, rtol=1e-5)
    nowhere = EDMStochastic(churn=40.0, sigma_min=90.0, sigma_max=100.0)
    np.testing.assert_allclose(solve(Karras(9), nowhere, x), wanted, rtol=1e-5)


def draw(solver, steps, count=20_000):
    """Noise at the start, and samples, ``[count]`` each."""
    samples, path = guided_sample(
        KEY,
        GAUSSIAN,
        0,
        num_samples=count,
        schedule=Karras(steps),
        solver=solver,
        sample_shape=(1,),
        trajectory=True,
    )
    return np.asarray(path[0, :, 0], float), np.asarray(samples[:, 0], float)


def test_churn_keeps_the_law_while_it_forgets_the_start():
    start, samples = draw(EDMStochastic(80.0, noise_scale=1.0), steps=256)
    deviation = np.sqrt(VARIANCE / len(samples))
    assert abs(samples.mean() - MEAN) < 4 * deviation + 0.005
    assert abs(samples.var() / VARIANCE - 1) < 4 * np.sqrt(2 / len(samples)) + 0.01
    # Without churn the flow is monotone, and the correlation one.
    assert abs(np.corrcoef(start, samples)[0, 1]) < 0.05


def test_variance_of_few_noisy_steps():
    """Steps are affine here, so that the variance follows a recursion of its own."""
    churn, low, high, noise_scale = 1.2, 5.0, 50.0, 2.0
    levels = Karras(24).sigmas()
    variance = levels[0] ** 2
    for sigma, after in zip(levels[:-2], levels[1:-1], strict=True):
        raised = sigma * (1 + churn / 24 * (low <= sigma <= high))
        variance += noise_scale**2 * (raised**2 - sigma**2)
        step = after - raised
        first = raised / (VARIANCE + raised**2)
        second = after / (VARIANCE + after**2) * (1 + step * first)
        variance *= (1 + step * (first + second) / 2) ** 2
    variance *= (VARIANCE / (VARIANCE + levels[-2] ** 2)) ** 2
    _, samples = draw(EDMStochastic(churn, low, high, noise_scale), steps=24)
    assert abs(samples.var() / variance - 1) < 4 * np.sqrt(2 / len(samples))
    assert variance > 2 * VARIANCE  # which the scale of the noise did


# --- what a solver tells, and is told


@pytest.mark.parametrize("name", [*ORDERS, "edm_stochastic"])
@pytest.mark.parametrize("steps", [1, 5])
def test_number_of_evaluations_is_what_it_says(name, steps):
    levels = []

    def denoiser(x, sigma, label):
        jax.debug.callback(lambda s: levels.append(float(s)), sigma)
        return 0.5 * x

    samples = solve(Karras(steps), name, np.ones((2, 1), np.float32), denoiser)
    jax.block_until_ready(samples)
    jax.effects_barrier()
    solver = as_solver(name)
    said = sum(solver.num_evaluations(i == steps - 1) for i in range(steps))
    assert len(levels) == said
    assert min(levels) > 0  # never at noise level 0


def test_names():
    for name, kind in (
        ("euler", Euler),
        ("ddim", Euler),
        ("heun", Heun),
        ("dpmpp_2m", DPMSolverPP2M),
        ("unipc", UniPC),
        ("edm_stochastic", EDMStochastic),
    ):
        assert type(as_solver(name)) is kind
    assert as_solver(NO_CHURN) is NO_CHURN


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"churn": -1.0}, "churn must be finite and >= 0, got -1"),
        ({"churn": float("nan")}, "churn must be finite"),
        ({"churn": float("inf")}, "churn must be finite"),
        ({"noise_scale": 0.0}, "noise_scale must be > 0, got 0"),
        ({"noise_scale": -1.0}, "noise_scale must be > 0"),
    ],
)
def test_bad_churn(arguments, message):
    with pytest.raises(ValueError, match=message):
        EDMStochastic(**arguments)


def test_unknown_names():
    with pytest.raises(ValueError, match="one of euler, .*got 'huen'.*mean 'heun'"):
        as_solver("huen")
    with pytest.raises(ValueError, match="got 'zzz'.$"):
        as_solver("zzz")
