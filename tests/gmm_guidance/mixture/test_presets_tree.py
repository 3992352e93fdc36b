"""The branching mixture against the moments that its paper publishes."""

import numpy as np
import pytest

from gmm_guidance import presets


@pytest.fixture(scope="module")
def tree():
    return presets.tree()


def moments(mixture, label):
    """Mean and standard deviation of one class in NumPy, each ``[2]``."""
    own = mixture.labels == label
    weights = np.exp(np.asarray(mixture.log_weights, np.float64)[own])
    weights /= weights.sum()
    points = np.asarray(mixture.means, np.float64)[own]
    vectors = np.asarray(mixture.eigenvectors)[own]
    variances = np.asarray(mixture.variances)[own]
    along = np.einsum("kij,kj->ki", vectors**2, variances)
    mean = weights @ points
    return mean, np.sqrt(weights @ (points**2 + along) - mean**2)


def test_tree_has_the_published_size_and_moments(tree):
    assert tree.num_components == 2 * 127 * 8
    assert (tree.dim, tree.num_labels) == (2, 2)
    np.testing.assert_array_equal(np.bincount(tree.labels), [1016, 1016])
    # The published class A; each draw's own jitter moves these by about 0.025.
    mean, sd = moments(tree, 0)
    np.testing.assert_allclose(mean, [0.37, 0.36], atol=0.05)
    np.testing.assert_allclose(sd, [0.34, 0.34], atol=0.05)
    np.testing.assert_allclose(moments(tree, 1)[0], [-0.37, -0.36], atol=0.06)


def test_tree_agrees_with_the_published_moments_on_average_over_seeds():
    draws = [moments(presets.tree(seed=seed), 0) for seed in range(12)]
    mean, sd = np.mean(draws, axis=0)
    np.testing.assert_allclose(mean, [0.37, 0.36], atol=0.02)
    np.testing.assert_allclose(sd, [0.34, 0.34], atol=0.02)


@pytest.mark.parametrize("classes, depth", [(1, 3), (2, 7), (4, 3), (24, 1)])
def test_tree_scale_and_class_balance(classes, depth):
    mixture = presets.tree(depth=depth, classes=classes, scale=0.7)
    assert mixture.num_components == classes * (2**depth - 1) * 8
    squares = [np.square(moments(mixture, label)).sum(0) for label in range(classes)]
    np.testing.assert_allclose(np.sqrt(np.mean(squares)), 0.7, rtol=1e-5)
    weights = np.exp(np.asarray(mixture.log_weights))
    np.testing.assert_allclose(
        np.bincount(mixture.labels, weights), 1 / classes, rtol=1e-5
    )


def test_tree_trunks_start_at_evenly_spread_angles():
    mixture = presets.tree(depth=1, classes=4)
    means = np.asarray(mixture.means)
    angles = np.arctan2(means[:, 1], means[:, 0]) % (2 * np.pi)
    wanted = np.repeat(np.pi / 4 + np.pi / 2 * np.arange(4), 8)
    np.testing.assert_allclose(angles, wanted, atol=1e-6)


def test_tree_is_deterministic_and_its_seed_matters(tree):
    np.testing.assert_array_equal(presets.tree().means, tree.means)
    assert not np.allclose(presets.tree(seed=3).means, tree.means)


@pytest.mark.parametrize("sigma", [0.0, 0.002, 0.03, 0.5])
def test_tree_is_finite_far_from_the_data(tree, sigma):
    # Public code multiplies densities out and returns NaN here.
    x = np.array([[3.0, 3.0], [6.0, 6.0], [-20.0, 1.0]], np.float32)
    for label in (None, 0):
        assert np.isfinite(tree.log_prob(x, sigma, label)).all()
        assert np.isfinite(tree.score(x, sigma, label)).all()


def test_tree_components_lie_along_branches():
    # One trunk: 8 evenly spaced Gaussians, longer along the trunk than across it.
    mixture = presets.tree(depth=1, classes=1)
    means = np.asarray(mixture.means, np.float64)
    steps = np.diff(means, axis=0)
    np.testing.assert_allclose(
        steps, np.broadcast_to(steps[:1], steps.shape), atol=1e-6
    )
    np.testing.assert_allclose(means[0], steps[0] / 2, atol=1e-6)
    length = 8 * np.linalg.norm(steps[0])
    direction = steps[0] / np.linalg.norm(steps[0])
    covariance = np.asarray(mixture.covariances, np.float64)[0]
    np.testing.assert_allclose(
        np.sqrt(direction @ covariance @ direction), 0.06 * length, rtol=1e-4
    )
    thin = np.sqrt(np.linalg.eigvalsh(covariance)[0])
    assert 0.2 / 0.292 / 1.2 < thin / (0.06 * length) < 0.2 / 0.292 / 0.8


def test_tree_branches_start_where_the_trunk_ends():
    # One Gaussian in the middle of each of three branches tells their ends.
    mixture = presets.tree(depth=2, components_per_branch=1, classes=1)
    trunk, *others = np.asarray(mixture.means, np.float64)
    halves = np.array(others) - 2 * trunk
    lengths = 2 * np.linalg.norm([trunk, *halves], axis=1)
    assert np.all(0.8 * 0.8 / 1.2 < lengths[1:] / lengths[0])
    assert np.all(lengths[1:] / lengths[0] < 0.8 * 1.2 / 0.8)
    angles = np.arctan2(*np.array([trunk, *halves]).T[::-1])
    left, right = angles[1:] - angles[0]
    assert -1.2 <= left <= -0.8 and 0.8 <= right <= 1.2
    weights = lengths * [1.0, 0.5, 0.5]
    np.testing.assert_allclose(
        np.exp(np.asarray(mixture.log_weights)), weights / weights.sum(), rtol=1e-5
    )
