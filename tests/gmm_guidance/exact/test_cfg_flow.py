"""CFG with exact denoisers: closed forms and golden numbers (toy_theory.md 3.3, 3.5).

Noise enters as quantiles, not as random numbers: a flow on a line keeps their order, so
that moments and distances come without sampling error.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.two_gaussians import TwoGaussians, guided_flow
from scipy.stats import norm

from gmm_guidance import presets
from gmm_guidance.diffusion.schedule import Karras
from gmm_guidance.guidance import CFG
from gmm_guidance.mixture.exact_denoiser import ExactDenoiser
from gmm_guidance.sampling.sample import guided_sample

LEVELS = (np.arange(2000) + 0.5) / 2000


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def flow(denoiser, scale, x, schedule, solver="heun"):
    """The guided flow from ``x`` on a line to samples; one program for all scales."""
    samples = guided_sample(
        jax.random.key(0),
        denoiser,
        1,
        num_samples=len(x),
        guidance=CFG(jnp.asarray(float(scale))),
        schedule=schedule,
        solver=solver,
        initial=x[:, None],
    )
    return np.asarray(samples)[:, 0]


# --- two Gaussians: N(m, a) given the label, N(0, b) without


def affine_flow(denoiser, scale, schedule, **options):
    """Slope and intercept of the guided flow, having checked that it is affine."""
    start = schedule.sigmas()[0]
    low, middle, high = flow(
        denoiser, scale, start * np.array([-1.0, 0.5, 1.0]), schedule, **options
    )
    slope, intercept = (high - low) / (2 * start), (high + low) / 2
    np.testing.assert_allclose(middle, intercept + 0.5 * start * slope, rtol=1e-9)
    return slope, intercept


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m"])
@pytest.mark.parametrize(
    "a, b, scale", [(1.0, 2.0, 0.5), (1.0, 2.0, 4.0), (0.25, 1.25, 2.0)]
)
def test_two_gaussians_from_a_finite_noise_level(solver, a, b, scale):
    schedule = Karras(1000, 1e-3, 20.0)
    got = affine_flow(TwoGaussians(1.3, a, b), scale, schedule, solver=solver)
    wanted = guided_flow(1.3, a, b, scale, 20.0)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-7)


LIMIT = Karras(1000, 1e-3, 1e5)


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0, 4.0])
def test_variance_from_infinite_noise(scale):
    """a = 1, b = 2: 2^(1 - w)."""
    slope, _ = affine_flow(TwoGaussians(0.0, 1.0, 2.0), scale, LIMIT)
    assert (slope * 1e5) ** 2 == pytest.approx(2 ** (1 - scale), rel=3e-3)


def test_golden_mean_and_variance_from_infinite_noise():
    slope, intercept = affine_flow(TwoGaussians(1.0, 0.25, 1.25), 4.0, LIMIT)
    assert intercept == pytest.approx(1.397, abs=6e-4)
    assert (slope * 1e5) ** 2 == pytest.approx(0.0020, abs=5e-5)


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_equal_variances_are_only_moved(scale):
    slope, intercept = affine_flow(TwoGaussians(1.0, 0.7, 0.7), scale, LIMIT)
    assert intercept == pytest.approx(scale, rel=1e-3)
    assert (slope * 1e5) ** 2 == pytest.approx(0.7, rel=3e-3)


# --- two modes on a line, 2,000 quantiles at sigma 80

# mean, std, scale; CFG's mean, sd, W2 to the tilted and class distribution, and NLL
GOLDEN = {
    "G1": (1.0, 0.5, 1, (0.9938, 0.4998, 0.0062, 0.0062, 0.726)),
    "G1-2": (1.0, 0.5, 2, (1.3156, 0.3582, 0.3028, 0.3505, 0.682)),
    "G1-4": (1.0, 0.5, 4, (1.6673, 0.2880, 0.6278, 0.7029, 1.282)),
    "G1-8": (1.0, 0.5, 8, (2.1077, 0.2446, 1.0386, 1.1381, 2.800)),
    "G2-2": (1.0, 1.0, 2, (1.5936, 0.7594, 0.3215, 0.6441, 1.383)),
    "G2-4": (1.0, 1.0, 4, (2.3191, 0.5902, 0.8003, 1.3856, 1.963)),
    "G2-8": (1.0, 1.0, 8, (3.2113, 0.4925, 1.4562, 2.2713, 3.485)),
    "S2a-2": (4.0, 0.5, 2, (4.2893, 0.3536, 0.3292, 0.3292, 0.643)),
    "S2a-4": (4.0, 0.5, 4, (4.6256, 0.2792, 0.6665, 0.6665, 1.165)),
    "S2b-2": (4.0, 1.0, 2, (4.5786, 0.7071, 0.6581, 0.6585, 1.336)),
    "S2b-4": (4.0, 1.0, 4, (5.2512, 0.5584, 1.3323, 1.3329, 1.858)),
}


def tilted_quantiles(mean, std, scale):
    """Of p(x) p(c | x)^w, which is p(x | c)^w p(x)^(1 - w) but for a factor."""
    x = np.linspace(-12 * std, mean + 12 * std, 200_001)
    own, other = norm.logpdf(x, mean, std), norm.logpdf(x, -mean, std)
    log_density = scale * own + (1 - scale) * np.logaddexp(own, other)
    mass = np.cumsum(np.exp(log_density - log_density.max()))
    return np.interp(LEVELS, mass / mass[-1], x)


def rms(values):
    return np.sqrt(np.mean(values**2))


@pytest.mark.parametrize("row", GOLDEN)
def test_golden_moments_and_distances_of_two_modes(row):
    mean, std, scale, wanted = GOLDEN[row]
    start = 80.0 * norm.ppf(LEVELS)
    exact = ExactDenoiser(presets.two_modes(std, mean))
    x = flow(exact, scale, start, Karras(320))
    assert (np.diff(x) > 0).all()  # so the i-th sample is the i-th quantile
    got = (
        x.mean(),
        x.std(),
        rms(x - tilted_quantiles(mean, std, scale)),
        rms(x - norm.ppf(LEVELS, mean, std)),
        -norm.logpdf(x, mean, std).mean(),
    )
    # The last digit, and what 320 steps leave.
    np.testing.assert_allclose(got[:4], wanted[:4], rtol=0, atol=3e-4)
    assert got[4] == pytest.approx(wanted[4], abs=1.2e-3)


# --- separated classes, in units of their deviation

NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()


@pytest.mark.parametrize(
    "scale, shift, width",
    [
        (1.5, 0.382, 0.805),
        (2, 0.649, 0.720),
        (3, 1.049, 0.631),
        (4, 1.363, 0.582),
        (6, 1.860, 0.529),
        (8, 2.263, 0.500),
    ],
)
def test_universal_limit_of_separated_classes(scale, shift, width):
    """Shift and width depend on the scale alone, as modes part and noise grows."""
    for distance, std, tolerance in ((1000.0, 1.0, 2e-3), (100.0, 0.25, 5e-3)):
        exact = ExactDenoiser(presets.two_modes(std, distance))
        start = 1000 * distance
        x = flow(exact, scale, start * NODES, Karras(500, 1e-3, start))
        mean = NODE_WEIGHTS @ x
        sd = np.sqrt(NODE_WEIGHTS @ (x - mean) ** 2)
        assert (mean - distance) / std == pytest.approx(shift, abs=tolerance)
        assert sd / std == pytest.approx(width, abs=tolerance)
