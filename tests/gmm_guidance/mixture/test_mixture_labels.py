"""Conditions on labels, and the shapes of points, noise levels and labels."""

import jax.numpy as jnp
import numpy as np
import pytest

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


@pytest.fixture(scope="module")
def plane():
    """Six full covariances in the plane, two for each of three labels."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 2, 2))
    weights = rng.uniform(0.2, 1.0, 6)
    return GaussianMixture(
        1.5 * rng.normal(size=(6, 2)),
        0.5 * root @ root.swapaxes(1, 2) + 0.1 * np.eye(2),
        weights / weights.sum(),
        np.arange(6) % 3,
    )


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(2).normal(size=(6, 2)).astype(np.float32)


@pytest.mark.parametrize("method", ["log_prob", "posterior_covariance"])
def test_a_label_may_be_written_in_many_ways(plane, points, method):
    function = getattr(plane, method)
    per_sample = function(points, 0.5, np.array([2, 0, 1, 3, 0, 2]))
    alone = [function(points, 0.5, label) for label in range(4)]
    wanted = np.stack([alone[c][i] for i, c in enumerate([2, 0, 1, 3, 0, 2])])
    np.testing.assert_allclose(per_sample, wanted, rtol=2e-5, atol=1e-6)
    as_array = function(points, 0.5, jnp.asarray(1))
    np.testing.assert_allclose(as_array, alone[1], rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(function(points, 0.5, np.int64(1)), alone[1])
    np.testing.assert_array_equal(function(points, 0.5), alone[3])  # null is None
    own = getattr(plane.condition(1), method)(points, 0.5)
    np.testing.assert_allclose(own, alone[1], rtol=1e-6)
    assert np.abs(np.asarray(alone[0]) - np.asarray(alone[1])).max() > 0.01


def test_condition_is_the_class_renormalized(plane):
    part = plane.condition(1)
    own = np.flatnonzero(plane.labels == 1)
    assert (part.num_components, part.num_labels) == (len(own), 1)
    np.testing.assert_array_equal(part.means, np.asarray(plane.means)[own])
    weights = np.asarray(plane.weights)[own]
    np.testing.assert_allclose(part.weights, weights / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(plane.label_weights[1], weights.sum(), rtol=1e-6)


def test_rows_of_several_labels_are_the_single_calls(plane, points):
    each = np.array([0, 1, 2, 3, 1, 0])
    rows = plane.denoise_rows(points, 0.5, (None, 1, each))
    assert rows.shape == (3, 6, 2)
    for row, label in zip(rows, (None, 1, each), strict=True):
        alone = plane.denoise(points, 0.5, label)
        np.testing.assert_allclose(row, alone, rtol=1e-5, atol=1e-6)


# --- shapes


def test_shapes_of_points_and_noise_levels(plane, points):
    grid, sigma = points.reshape(2, 3, 2), np.linspace(0.1, 3, 6).reshape(2, 3)
    label = np.arange(6).reshape(2, 3) % 3
    covariance = plane.posterior_covariance(grid, sigma, label)
    assert covariance.shape == (2, 3, 2, 2)
    score = plane.score(grid, sigma, label)
    assert score.shape == (2, 3, 2)
    one = plane.score(points[4], float(sigma[1, 1]), 1)  # a single point, no batch
    np.testing.assert_allclose(score[1, 1], one, rtol=1e-4, atol=1e-5)
    assert plane.label_posterior(grid, sigma).shape == (2, 3, 3)
    whole = plane.log_prob(np.array([[1, -2]]), 1)  # integers
    np.testing.assert_array_equal(whole, plane.log_prob([[1.0, -2.0]], 1.0))
