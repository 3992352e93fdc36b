"""Distribution and quantile functions on a line against SciPy."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from oracles.metric_truths import GAUSSIAN, LINE, line_cdf

from gmm_guidance import metrics, presets
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


@pytest.mark.parametrize("label", [None, 0, 1, 2])
def test_cdf_agrees_with_scipy(label):
    x = np.random.default_rng(0).uniform(-12, 12, (40, 25))
    wanted = line_cdf(LINE, x, None if label == 2 else label)
    np.testing.assert_allclose(metrics.cdf(LINE, x, label), wanted, atol=1e-14)


def test_quantile_of_one_gaussian_is_scipys():
    u = np.concatenate([[1e-9, 1e-4], np.linspace(0.01, 0.99, 99), [1 - 1e-6]])
    wanted = scipy.stats.norm.ppf(u, 1.5, 2.0)
    np.testing.assert_allclose(metrics.quantile(GAUSSIAN, u), wanted, rtol=1e-9)


@pytest.mark.parametrize("label", [None, 1])
def test_quantile_inverts_the_cdf(label):
    u = np.random.default_rng(1).uniform(size=(30, 20))
    x = metrics.quantile(LINE, u, label)
    assert x.shape == u.shape
    np.testing.assert_allclose(metrics.cdf(LINE, x, label), u, atol=1e-14)
    root = scipy.optimize.brentq(
        lambda t: line_cdf(LINE, t, label) - u[0, 0], -20, 20, xtol=1e-13
    )
    np.testing.assert_allclose(x[0, 0], root, atol=1e-10)


def test_quantile_at_the_ends_and_across_a_gap():
    modes = presets.two_modes(std=0.01)
    low, middle, high = metrics.quantile(modes, [0.0, 0.5, 1.0])
    assert (low, high) == (-np.inf, np.inf)
    assert -4 <= middle <= 4  # no mass there: any point of the gap is a median
    x = metrics.quantile(modes, [0.25, 0.75])
    np.testing.assert_allclose(x, [-4, 4], atol=1e-9)
    assert metrics.quantile(modes, 0.25).shape == ()


def test_quantile_of_a_thousand_components():
    rng = np.random.default_rng(0)
    many = GaussianMixture(rng.normal(size=(1016, 1)), rng.uniform(1e-6, 0.01, 1016))
    u = rng.uniform(size=1000)
    x = metrics.quantile(many, u)
    np.testing.assert_allclose(metrics.cdf(many, x), u, rtol=0, atol=1e-13)
    np.testing.assert_allclose(line_cdf(many, x), u, rtol=0, atol=1e-13)
