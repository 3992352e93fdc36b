"""Wasserstein distances against closed forms, quadrature, SciPy and POT."""

import functools
import os

import numpy as np
import pytest
import scipy.stats
from oracles.metric_truths import (
    CORNERS,
    GAUSSIAN,
    LINE,
    LINE_MEANS,
    LINE_VARIANCES,
    LINE_WEIGHTS,
    draw,
    full_mixture,
    line_cdf,
)

from gmm_guidance import metrics
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


@pytest.fixture(scope="module")
def ot():
    os.environ.setdefault("POT_BACKEND_DISABLE_PYTORCH", "1")  # seconds to import
    return pytest.importorskip("ot", reason="needs the oracle extra: POT")


def quantiles_of_gaussian(n, mean, std):
    return scipy.stats.norm.ppf((np.arange(n) + 0.5) / n, mean, std)


# --- on a line


@pytest.mark.parametrize("mean, std", [(1.5, 2.0), (2.0, 2.0), (1.5, 1.0), (-1.0, 3.0)])
def test_w2_between_gaussians_in_closed_form(mean, std):
    x = quantiles_of_gaussian(100_000, mean, std)
    wanted = np.hypot(mean - 1.5, std - 2.0)
    # What is left at zero distance is the discreteness of the 100,000 points.
    value = metrics.wasserstein_1d(x, GAUSSIAN)
    np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=0 if wanted else 0.01)


def test_w1_of_a_shifted_gaussian_is_the_shift():
    x = quantiles_of_gaussian(20_000, 2.25, 2.0)
    value = metrics.wasserstein_1d(x, GAUSSIAN, p=1)
    np.testing.assert_allclose(value, 0.75, atol=1e-3)


@functools.cache
def fine_cdf(label):
    """``u`` at many ``y``, from which NumPy interpolates quantiles."""
    y = np.linspace(-12, 12, 400_001)
    return line_cdf(LINE, y, label), y


@pytest.mark.parametrize("n", [1, 2, 7, 300])
@pytest.mark.parametrize("label", [None, 1])
def test_wasserstein_to_a_mixture_agrees_with_quadrature(n, label):
    """Cell by cell, with SciPy's quantiles: the definition itself."""
    x = np.sort(np.random.default_rng(n).normal(0, 4, n))
    fine = 200_000 // n * n
    u = (np.arange(fine) + 0.5) / fine
    gaps = np.abs(np.repeat(x, fine // n) - np.interp(u, *fine_cdf(label)))
    for p in (1, 2):
        value = metrics.wasserstein_1d(x, LINE, label, p)
        np.testing.assert_allclose(value, np.mean(gaps**p) ** (1 / p), rtol=2e-5)


def cell_by_cell(x, p):
    """``W_p^p`` of sorted samples to LINE: Gauss-Legendre between its quantiles."""
    edges = metrics.quantile(LINE, np.arange(len(x) + 1) / len(x))
    edges[0], edges[-1] = -25.0, 25.0  # no mass beyond
    middle = np.clip(x, edges[:-1], edges[1:])  # where |x - y| has its kink
    stds = np.sqrt(LINE_VARIANCES)
    nodes, weights = np.polynomial.legendre.leggauss(64)
    total = 0.0
    for low, high in ((edges[:-1], middle), (middle, edges[1:])):
        half = (high - low) / 2
        y = (low + high)[:, None] / 2 + half[:, None] * nodes
        pdf = scipy.stats.norm.pdf(y[..., None], LINE_MEANS, stds) @ LINE_WEIGHTS
        total += np.sum(half * ((np.abs(x[:, None] - y) ** p * pdf) @ weights))
    return total


@pytest.mark.parametrize("p", [1, 2])
def test_small_distances_have_the_stated_error(p):
    x = draw(LINE, 2000)[0][:, 0]
    wanted = cell_by_cell(np.sort(x), p) ** (1 / p)
    assert wanted < 0.3
    assert abs(metrics.wasserstein_1d(x, LINE, p=p) - wanted) < 1e-7


@pytest.mark.parametrize("n, m", [(200, 200), (200, 130), (7, 1)])
def test_wasserstein_between_samples_agrees_with_scipy_and_pot(ot, n, m):
    rng = np.random.default_rng(n + m)
    x, y = rng.normal(size=n), 0.3 + 2 * rng.normal(size=m)
    np.testing.assert_allclose(
        metrics.wasserstein_1d(x, y, p=1), scipy.stats.wasserstein_distance(x, y)
    )
    np.testing.assert_allclose(
        metrics.wasserstein_1d(x[:, None], y), np.sqrt(ot.emd2_1d(x, y))
    )


def test_w2_to_a_mixture_is_the_limit_of_pots_samples(ot):
    x = np.random.default_rng(0).normal(1, 3, 300)
    u = (np.arange(60_000) + 0.5) / 60_000
    wanted = np.sqrt(ot.emd2_1d(x, metrics.quantile(LINE, u)))
    np.testing.assert_allclose(metrics.wasserstein_1d(x, LINE), wanted, rtol=1e-4)


# --- sliced


def test_sliced_distance_of_a_translation():
    x = np.random.default_rng(0).normal(size=(500, 2))
    shift = np.array([0.3, -0.4])
    # Equally spaced angles average cos^2 to one half exactly.
    for p, wanted in ((2, 0.5 / np.sqrt(2)), (1, 0.5 * 2 / np.pi)):
        value = metrics.sliced_wasserstein(x, x + shift, p=p)
        np.testing.assert_allclose(value, wanted, rtol=1e-3)


def half_circle(count):
    """The directions in the plane, as documented."""
    angles = np.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def gaussian_and_point(dim):
    """A Gaussian's mixture, mean and covariance, and a point ``[1, d]``."""
    rng = np.random.default_rng(dim)
    root = rng.normal(size=(dim, dim))
    mean, covariance = rng.normal(size=dim), root @ root.T + 0.1 * np.eye(dim)
    truth = GaussianMixture(mean[None], covariance[None])
    return truth, mean, covariance, rng.normal(size=(1, dim))


def test_sliced_distance_to_a_gaussian_in_the_plane():
    """From a point W2^2 of a projection is (u.(x - m))^2 + u.S.u, by hand."""
    truth, mean, covariance, point = gaussian_and_point(2)
    value = metrics.sliced_wasserstein(point, truth, num_directions=50)
    u = half_circle(50)
    squares = (u @ (point[0] - mean)) ** 2 + np.einsum("ai,ij,aj->a", u, covariance, u)
    np.testing.assert_allclose(value, np.sqrt(np.mean(squares)), rtol=1e-6)


def test_directions_in_space_are_uniform_and_the_same_in_every_call():
    """The mean of (u.a)^2 over the sphere is |a|^2 / d."""
    truth, mean, covariance, point = gaussian_and_point(5)
    value = metrics.sliced_wasserstein(point, truth, num_directions=3000)
    wanted = (np.sum((point[0] - mean) ** 2) + np.trace(covariance)) / 5
    np.testing.assert_allclose(value**2, wanted, rtol=0.05)
    assert value == metrics.sliced_wasserstein(point, truth, num_directions=3000)


def test_sliced_distance_to_a_mixture_is_the_limit_of_many_samples():
    truth = full_mixture(0, count=5, dim=2)
    x = draw(full_mixture(1, count=5, dim=2), 500)[0]
    for label in (None, 1):
        many = draw(truth, 20_000, seed=3, label=label)[0]
        np.testing.assert_allclose(
            metrics.sliced_wasserstein(x, truth, label, num_directions=12),
            metrics.sliced_wasserstein(x, many, num_directions=12),
            rtol=0.02,
        )


def test_sliced_distance_agrees_with_pot_on_the_same_directions(ot):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 2)), 0.5 + rng.normal(size=(200, 2))
    wanted = ot.sliced_wasserstein_distance(x, y, projections=half_circle(64).T)
    np.testing.assert_allclose(metrics.sliced_wasserstein(x, y), wanted)


def test_sliced_distance_on_a_line_is_the_distance_on_the_line():
    x = draw(LINE, 100)[0]
    assert metrics.sliced_wasserstein(x, LINE, 1) == metrics.wasserstein_1d(x, LINE, 1)
    assert metrics.sliced_wasserstein(x, x + 1) == pytest.approx(1)


def test_distances_do_not_depend_on_the_order_of_samples():
    x, y = draw(LINE, 400)[0], draw(LINE, 300, seed=1)[0]
    order = np.random.default_rng(0).permutation(400)
    plane = np.random.default_rng(1).normal(size=(400, 2))
    for function, samples, truth in (
        (metrics.wasserstein_1d, x, LINE),
        (metrics.wasserstein_1d, x, y),
        (metrics.sliced_wasserstein, plane, CORNERS),
        (metrics.energy_distance, x, y),
        (metrics.energy_distance, plane, plane[:200] + 1),
    ):
        np.testing.assert_allclose(
            function(samples[order], truth), function(samples, truth), rtol=1e-5
        )
