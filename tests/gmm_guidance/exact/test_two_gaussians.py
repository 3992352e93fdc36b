"""Closed forms of CFG for Gaussians against integrated equations and golden numbers."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import norm

from gmm_guidance.exact import cfg_ode_moments, cfg_sde_moments, tilted_moments

# Variances with and without the label, and scale: wider, narrower, equal, nearly equal.
CASES = [
    (1.0, 2.0, 0.5),
    (1.0, 2.0, 4.0),
    (0.25, 1.25, 2.0),
    (2.0, 0.5, 1.0),
    (2.0, 0.5, 4.0),
    (0.7, 0.7, 2.0),
    (0.3, 0.3 + 1e-9, 4.0),
]


def integrated(mean, a, b, scale, start, stochastic):
    """Mean and variance along the flow or the diffusion, in log(1 + sigma^2)."""
    strength = 1.0 if stochastic else 0.5

    def slope(u, moments):
        v = np.expm1(u)
        pull = -(scale / (a + v) + (1 - scale) / (b + v))
        drift = strength * (pull * moments[0] + scale * mean / (a + v))
        spread = 2 * strength * pull * moments[1] + (1.0 if stochastic else 0.0)
        return -np.exp(u) * np.array([drift, spread])  # v falls

    found = solve_ivp(
        slope, (np.log1p(start), 0), [0.0, start], "LSODA", rtol=1e-11, atol=1e-12
    )
    return found.y[:, -1]


@pytest.mark.parametrize("a, b, scale", [*CASES, (0.25, 1.25, 7.3)])
def test_ode_from_a_finite_level(a, b, scale):
    got = cfg_ode_moments(1.3, a, b, scale, sigma_max=20.0)
    wanted = integrated(1.3, a, b, scale, 400.0, stochastic=False)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("a, b, scale", CASES)
def test_from_infinite_noise(a, b, scale):
    flow = integrated(1.3, a, b, scale, 1e10, stochastic=False)
    np.testing.assert_allclose(cfg_ode_moments(1.3, a, b, scale), flow, rtol=1e-4)
    diffusion = integrated(1.3, a, b, scale, 1e10, stochastic=True)
    np.testing.assert_allclose(cfg_sde_moments(1.3, a, b, scale), diffusion, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0, 4.0])
def test_golden_variances(scale):
    """a = 1, b = 2 (toy_theory.md 3.3)."""
    assert cfg_ode_moments(0, 1, 2, scale).variance == pytest.approx(2 ** (1 - scale))
    sde = (2 - 2 ** (2 - 2 * scale)) / (2 * scale - 1)
    assert cfg_sde_moments(0, 1, 2, scale).variance == pytest.approx(sde)
    tilted = tilted_moments(0, 1, 2, scale)
    assert tilted.variance == pytest.approx(2 / (scale + 1))


def test_golden_moments():
    assert cfg_ode_moments(1, 0.25, 1.25, 4) == pytest.approx((1.397, 0.0020), abs=5e-4)
    sde = cfg_sde_moments(1, 0.25, 1.25, 4)
    assert sde == pytest.approx((1.248, 0.0446), abs=5e-4)
    tilted = tilted_moments(1, 0.25, 1.25, 4)
    assert tilted == pytest.approx((1.176, 0.0735), abs=5e-4)


def test_tilted_moments_are_of_the_normalized_product():
    x = np.linspace(-10, 10, 20_001)
    log_density = 3 * norm.logpdf(x, 0.8, 1.1) - 2 * norm.logpdf(x, 0, 1.6)
    weights = np.exp(log_density) / np.exp(log_density).sum()
    mean = weights @ x
    got = tilted_moments(0.8, 1.1**2, 1.6**2, 3.0)
    np.testing.assert_allclose(got, (mean, weights @ (x - mean) ** 2), rtol=1e-6)


def test_scale_one_and_arrays():
    scales = np.array([[1.0, 2.0], [3.0, 1.0]])
    for moments in (cfg_ode_moments, cfg_sde_moments, tilted_moments):
        mean, variance = moments(0.7, 0.5, [1.0, 2.0], scales)
        assert mean.shape == variance.shape == (2, 2)
        np.testing.assert_allclose(mean[scales == 1.0], 0.7)
        np.testing.assert_allclose(variance[scales == 1.0], 0.5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: cfg_ode_moments(0, -1, 1, 2), "variances"),
        (lambda: cfg_ode_moments(0, 1, 1, np.nan), "finite"),
        (lambda: cfg_ode_moments(0, 1, 1, 2, 0.0), "sigma_max"),
        (lambda: tilted_moments(0, 2, 1, 3), "normalized"),
    ],
)
def test_moments_refuse_values_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
