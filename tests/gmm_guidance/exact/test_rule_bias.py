"""CFG's bias and the defect of its densities, each against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.mixture64 import Mixture64
from oracles.tilted64 import TiltedGrid
from scipy.special import expit, logsumexp
from scipy.stats import norm

import gmm_guidance as gg
from gmm_guidance.exact import fokker_planck_defect, jensen_gap, rule_bias

G2 = gg.GaussianMixture([[-1.0], [1.0]], 1.0, None, [0, 1])
X = np.linspace(-3.0, 3.0, 9)[:, None]


def gap64(x, sigma, scale):
    """Both expectations over the unconditional posterior of G2 on a grid."""
    y = np.linspace(-12.0, 12.0, 20_001)
    log_p = np.log(expit(2 * y))
    prior = np.logaddexp(norm.logpdf(y, -1), norm.logpdf(y, 1))
    terms = prior + norm.logpdf(x, y, sigma)
    terms = terms - logsumexp(terms, axis=1, keepdims=True)
    inner = logsumexp(terms + scale * log_p, axis=1)
    return inner - scale * logsumexp(terms + log_p, axis=1)


@pytest.mark.parametrize(
    "sigma, scale", [(0.05, 2.0), (0.5, 4.0), (1.0, 2.0), (1.0, 8.0), (3.0, 4.0)]
)
def test_gap_is_that_of_the_definition(sigma, scale):
    got = jensen_gap(G2, X, sigma, 1, scale)
    np.testing.assert_allclose(got, gap64(X, sigma, scale), rtol=1e-4, atol=1e-5)
    assert (np.asarray(got) >= -1e-6).all()


@pytest.mark.parametrize("sigma", [0.3, 3.0])
def test_bias_is_the_gradient_of_the_gap(sigma):
    gradient = jax.grad(lambda x: jnp.sum(jensen_gap(G2, x, sigma, 1, 4.0)))
    bias = rule_bias(G2, X, sigma, 1, 4.0)
    slope = gradient(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(bias, -(sigma**2) * slope, rtol=1e-4, atol=1e-5)
    step = 1e-4
    wanted = (gap64(X + step, sigma, 4.0) - gap64(X - step, sigma, 4.0)) / (2 * step)
    np.testing.assert_allclose(bias[:, 0], -(sigma**2) * wanted, rtol=1e-4, atol=1e-5)


def test_bias_in_the_plane_against_a_grid():
    given = dict(
        means=[[0.0, 0.0], [1.5, 1.0], [-1.0, 1.2]],
        covariances=np.array([[1.0, 0.5], [0.4, 0.8], [0.6, 0.6]]),
        labels=[0, 1, 0],
    )
    exact = Mixture64.build(**given)
    x = np.random.default_rng(0).normal(size=(12, 2))
    cond, uncond = exact.denoise(x, 0.8, 0), exact.denoise(x, 0.8)
    truth = TiltedGrid(exact, 0, 3.0, 9.0, 361).denoise(x, 0.8)
    wanted = uncond + 3.0 * (cond - uncond) - truth
    got = rule_bias(gg.GaussianMixture(**given), x, 0.8, 0, 3.0)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-5)


def test_no_gap_without_a_tilt_noise_or_classes():
    # No tilt, no gap.
    np.testing.assert_allclose(jensen_gap(G2, X, 1.0, 1, 1.0), 0.0, atol=1e-6)
    np.testing.assert_allclose(rule_bias(G2, X, 1.0, 1, 1.0), 0.0, atol=1e-6)
    # It vanishes as the variance of the noise.
    small, smaller = (jensen_gap(G2, X[:5], s, 1, 4.0) for s in (0.1, 0.05))
    np.testing.assert_allclose(small / smaller, 4.0, rtol=0.1)
    # One class alone: the label says nothing.
    alone = gg.GaussianMixture([[-1.0], [2.0]], 1.0)
    np.testing.assert_allclose(jensen_gap(alone, X, 1.0, 0, 4.0), 0.0, atol=1e-6)


# --- the heat equation

PLANE = dict(
    means=[[0.0, 0.0], [1.5, 1.0], [-1.0, 1.2]],
    covariances=np.array(
        [[[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.1], [-0.1, 0.8]], [[0.5, 0], [0, 0.6]]]
    ),
    weights=[0.5, 0.3, 0.2],
    labels=[0, 1, 1],
)


def heat_equation_residual(x, variance, label, scale, h=1e-3):
    """``d/dv log h - 1/2 (laplacian log h + |grad log h|^2)``."""
    mixture = Mixture64.build(**PLANE)

    def log_h(x, v):
        own = mixture.log_prob(x, np.sqrt(v), label)
        return scale * own + (1 - scale) * mixture.log_prob(x, np.sqrt(v))

    here = log_h(x, variance)
    rate = (log_h(x, variance + h) - log_h(x, variance - h)) / (2 * h)
    laplacian = square = 0.0
    for axis in np.eye(2):
        up, down = log_h(x + h * axis, variance), log_h(x - h * axis, variance)
        laplacian = laplacian + (up - 2 * here + down) / h**2
        square = square + ((up - down) / (2 * h)) ** 2
    return rate - 0.5 * (laplacian + square)


@pytest.mark.parametrize(
    "label, sigma, scale",
    [(0, 0.5, 2.0), (1, 0.5, 8.0), (0, 1.0, 0.5), (1, 1.0, 4.0), (0, 3.0, 8.0)],
)
def test_cfg_violates_the_heat_equation_by_the_defect(label, sigma, scale):
    x = 1.5 * np.random.default_rng(0).normal(size=(20, 2))
    got = fokker_planck_defect(gg.GaussianMixture(**PLANE), x, sigma, label, scale)
    assert got.shape == (20,)
    wanted = -heat_equation_residual(x, sigma**2, label, scale)
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_no_defect_without_guidance(scale):
    mixture = gg.GaussianMixture(**PLANE)
    defect = fokker_planck_defect(mixture, [[1.0, 2.0]], 1.0, 0, scale)
    assert (np.asarray(defect) == 0).all()
