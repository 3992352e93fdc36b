"""Fréchet distance: closed forms, matrix roots, singular covariances, merging."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from gmm_guidance import metrics

FEW = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def moments(mean, covariance):
    return metrics.FeatureMoments(np.array(mean), np.array(covariance), 100)


def random_covariance(rng, dim):
    root = rng.normal(size=(dim, dim)) + 2 * np.eye(dim)
    return root @ root.T


def rotation(rng, dim):
    return np.linalg.qr(rng.normal(size=(dim, dim)))[0]


def by_sqrtm(x, y):
    """The formula of the paper, with the root of the product itself."""
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T))
    shift = x.mean(axis=0) - y.mean(axis=0)
    return shift @ shift + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root.real)


def test_on_a_line_by_hand():
    """Means 1 and 6, variances 2 and 8: 25 + (sqrt 2 - 2 sqrt 2)^2."""
    assert metrics.frechet_distance([0, 2], [4, 8]) == pytest.approx(27, rel=1e-14)


@pytest.mark.parametrize("dim", [2, 5, 12])
def test_scipy_matrix_root(dim):
    rng = np.random.default_rng(dim)
    x = rng.normal(size=(400, dim)) @ random_covariance(rng, dim)
    y = rng.normal(size=(300, dim)) @ random_covariance(rng, dim) + 0.7
    found = metrics.frechet_distance(x, y)
    assert found == pytest.approx(by_sqrtm(x, y), rel=1e-10)
    a, b = metrics.feature_moments(x), metrics.feature_moments(y)
    assert metrics.frechet_distance(a, b) == found == metrics.frechet_distance(x, b)


def test_commuting_covariances():
    """In a common eigenbasis: the sum of squared differences of deviations."""
    rng = np.random.default_rng(0)
    stds = rng.uniform(0.1, 3.0, size=(2, 6))
    basis = rotation(rng, 6)
    a, b = (moments(np.zeros(6), basis * s**2 @ basis.T) for s in stds)
    expected = np.sum((stds[0] - stds[1]) ** 2)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    diagonal = [moments(np.full(6, i), np.diag(s**2)) for i, s in enumerate(stds)]
    assert metrics.frechet_distance(*diagonal) == pytest.approx(6 + expected)


def test_fewer_features_than_dimensions():
    """Orthonormal axes in a space of 60 change no distance of features in 4."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(20, 4)) @ np.diag([1, 2, 3, 4])
    axes = rotation(rng, 60)
    embedded = metrics.frechet_distance(x @ axes[:4], y @ axes[:4])
    assert embedded == pytest.approx(by_sqrtm(x, y), rel=1e-11)
    # Without a common direction the root vanishes.
    across = metrics.frechet_distance(
        (x - x.mean(axis=0)) @ axes[:4], (y - y.mean(axis=0)) @ axes[4:8]
    )
    traces = np.trace(np.cov(x.T)) + np.trace(np.cov(y.T))
    assert across == pytest.approx(traces, rel=1e-12)


def test_a_set_is_at_no_distance_from_itself():
    rng = np.random.default_rng(2)
    for shape in ((500, 8), (10, 100), (2, 3)):
        x = 5 + rng.normal(size=shape)
        assert 0 <= metrics.frechet_distance(x, x[::-1]) < 1e-11
    assert metrics.frechet_distance(np.ones((3, 2)), np.ones((4, 2))) == 0
    assert metrics.frechet_distance(np.ones((3, 2)), np.zeros((4, 2))) == 2


def test_one_null_direction_costs_no_precision():
    """tr (A B)^(1/2) = |u| for A = u u^T and B = 1: a root of noise would add 1e-8."""
    rng = np.random.default_rng(3)
    u = rng.normal(size=50)
    a, b = moments(np.zeros(50), np.outer(u, u)), moments(np.zeros(50), np.eye(50))
    expected = u @ u + 50 - 2 * np.linalg.norm(u)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-13)


def test_moments_are_numpys():
    x = np.random.default_rng(4).normal(size=(37, 5)).astype(np.float32)
    found = metrics.feature_moments(x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(exact, rowvar=False), 1e-13)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    assert found.count == 37
    assert metrics.feature_moments([1.0, 3.0]).covariance.tolist() == [[2.0]]


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_merged_chunks_are_the_whole(offset):
    x = np.random.default_rng(5).normal(size=(400, 6)) * np.arange(1, 7)
    x[200:] += 3
    chunks = np.split(x + offset, [1, 2, 50, 57, 399])  # of 1, 1, 48, 7, 342 and 1
    merged = metrics.feature_moments(chunks[0])
    for chunk in chunks[1:]:
        merged = merged.merge(metrics.feature_moments(chunk))
    assert merged.count == 400
    tolerance = 1e-13 * (1 + offset)  # the rounding of the features themselves
    np.testing.assert_allclose(merged.mean, x.mean(axis=0) + offset, 1e-13)
    np.testing.assert_allclose(merged.covariance, np.cov(x.T), tolerance, tolerance)


def test_merging_has_no_order_and_leaves_its_parts_alone():
    x = np.random.default_rng(6).normal(size=(9, 2))
    a, b = metrics.feature_moments(x[:4]), metrics.feature_moments(x[4:])
    before = a.mean.copy(), a.covariance.copy()
    one, two = a.merge(b), b.merge(a)
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-14)
    np.testing.assert_allclose(one.covariance, two.covariance, rtol=1e-14)
    assert (a.mean == before[0]).all() and (a.covariance == before[1]).all()
    single = metrics.feature_moments(x[:1])
    assert np.isnan(single.covariance).all()


def test_moments_in_single_precision():
    """As published statistics often are: with eigenvalues a little below zero."""
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(20, 40)), rng.normal(size=(30, 40))
    rounded = metrics.FeatureMoments(
        x.mean(axis=0).astype(np.float32), np.cov(x.T).astype(np.float32), 20
    )
    assert np.linalg.eigvalsh(rounded.covariance)[0] < -1e-9
    found = metrics.frechet_distance(rounded, y)
    assert found == pytest.approx(metrics.frechet_distance(x, y), rel=1e-3)


@FEW
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(-6, 6))
def test_symmetry_rotation_shift_and_scale(seed, dim, log_scale):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rng.integers(2, 12), dim)) * rng.uniform(0.01, 5, dim)
    y = rng.normal(size=(rng.integers(2, 12), dim)) @ rng.normal(size=(dim, dim))
    found = metrics.frechet_distance(x, y)
    close = dict(rel=1e-9, abs=1e-11 * (np.var(x) + np.var(y)) * dim)
    assert metrics.frechet_distance(y, x) == pytest.approx(found, **close)
    turn, shift, scale = rotation(rng, dim), rng.normal(size=dim), 10**log_scale
    assert metrics.frechet_distance(x @ turn, y @ turn) == pytest.approx(found, **close)
    moved = metrics.frechet_distance(x + shift, y + shift)
    assert moved == pytest.approx(found, **close)
    scaled = metrics.frechet_distance(scale * x, scale * y) / scale**2
    assert scaled == pytest.approx(found, **close)
    assert found >= np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) - close["abs"]


PLANE = np.array([[0.0, 1.0], [2.0, 5.0], [1.0, 1.0]])
BAD = np.array([[0.0, np.nan], [1.0, 2.0], [np.inf, 0.0]])


@pytest.mark.parametrize(
    "function, arguments, message",
    [
        (metrics.frechet_distance, (PLANE, PLANE[:, :1]), "one dimension, got 2 and 1"),
        (metrics.frechet_distance, (PLANE[:1], PLANE), "at least 2 features, got 1"),
        (metrics.frechet_distance, (PLANE, BAD), "2 of 3 hold NaN"),
        (metrics.frechet_distance, (PLANE[None], PLANE), r"got \(1, 3, 2\)"),
        (metrics.feature_moments, (np.zeros((0, 2)),), "at least 1 samples"),
        (moments, ([0.0, 0.0], np.eye(3)), r"\[d\] and \[d, d\], got \(2,\) and"),
        (moments, ([[0.0]], [[1.0]]), r"\[d\] and \[d, d\], got \(1, 1\)"),
        (moments, ([0.0], [[np.nan]]), "must be finite"),
        (moments, ([np.inf], [[1.0]]), "must be finite"),
        (moments, ([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), "symmetric, .* up to 0.5"),
        (metrics.FeatureMoments, ([0.0], [[1.0]], 0), "at least 1, got 0"),
        (metrics.FeatureMoments, ([0.0], [[1.0]], 2.5), "an integer .* got 2.5"),
    ],
)
def test_bad_arguments_are_named(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_impossible_covariances_and_merges_are_named():
    good, indefinite = moments([0.0, 0.0], np.eye(2)), moments([0, 0], np.diag([1, -1]))
    with pytest.raises(ValueError, match="semidefinite, got eigenvalues from -1 to 1"):
        metrics.frechet_distance(good, indefinite)
    with pytest.raises(ValueError, match="one dimension, got 2 and 1"):
        good.merge(moments([0.0], [[1.0]]))
