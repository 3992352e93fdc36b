"""Exact W2 against sorting, permutations, translations, all plans and Gaussians."""

import importlib.util
import itertools
import os

import numpy as np
import pytest

from gmm_guidance import metrics
from gmm_guidance.metrics.optimal_transport import MAX_POINTS


@pytest.fixture
def with_pot():
    os.environ.setdefault("POT_BACKEND_DISABLE_PYTORCH", "1")  # seconds to import
    return pytest.importorskip("ot", reason="needs the transport extra: POT")


@pytest.fixture
def without_pot(monkeypatch):
    """As if POT were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ot" else find(name)
    )


@pytest.fixture(params=["with_pot", "without_pot"])
def either(request):
    return request.getfixturevalue(request.param)


def cloud(n, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)) * [1.0, 3.0, 0.2][:dim]


@pytest.mark.parametrize("dim", [2, 3])
def test_a_translation_is_its_length_whatever_the_order(either, dim):
    x, shift = cloud(300, dim), np.array([3.0, -4.0, 12.0])[:dim]
    moved = np.random.default_rng(1).permutation(x) + shift
    wanted = np.linalg.norm(shift)
    np.testing.assert_allclose(metrics.wasserstein_2(x, moved), wanted, rtol=1e-12)
    assert metrics.wasserstein_2(x, x[::-1]) == pytest.approx(0.0, abs=1e-7)


def test_the_best_of_all_plans(either):
    x, y = cloud(6, 2), cloud(6, 2, seed=1)
    costs = [
        np.mean(np.sum((x - y[list(order)]) ** 2, axis=1))
        for order in itertools.permutations(range(6))
    ]
    np.testing.assert_allclose(metrics.wasserstein_2(x, y) ** 2, min(costs), rtol=1e-12)


def test_points_on_a_line_in_the_plane_are_sorted(either):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=200), rng.exponential(size=200)
    direction, corner = np.array([[0.6, 0.8]]), np.array([[5.0, -7.0]])
    wanted = np.sqrt(np.mean((np.sort(a) - np.sort(b)) ** 2))
    value = metrics.wasserstein_2(
        a[:, None] * direction + corner, b[:, None] * direction + corner
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    np.testing.assert_allclose(metrics.wasserstein_2(a, b), wanted, rtol=1e-12)


@pytest.mark.parametrize("n", [2, 50, 1000])
def test_pot_and_scipy_give_the_same_number(with_pot, request, n):
    x, y = cloud(n, 2), 0.5 * cloud(n, 2, seed=1) + 1.0
    by_pot = metrics.wasserstein_2(x, y)
    request.getfixturevalue("without_pot")
    np.testing.assert_allclose(metrics.wasserstein_2(x, y), by_pot, rtol=1e-9)


def test_gaussians_in_closed_form(with_pot):
    """With the bias of n points: the same pair, drawn as a map of the other."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2))
    stretched = x * [2.0, 0.5] + [1.0, 0.0]  # the optimal map between these Gaussians
    wanted = np.sqrt(1.0**2 + (2.0 - 1.0) ** 2 + (1.0 - 0.5) ** 2)
    exact = np.sqrt(np.mean(np.sum((stretched - x) ** 2, axis=1)))
    # A gradient of a convex function is optimal for the points themselves, too.
    np.testing.assert_allclose(metrics.wasserstein_2(x, stretched), exact, rtol=1e-9)
    np.testing.assert_allclose(exact, wanted, rtol=0.03)  # 2,000 random points
    fresh = rng.normal(size=(2000, 2)) * [2.0, 0.5] + [1.0, 0.0]
    np.testing.assert_allclose(metrics.wasserstein_2(x, fresh), wanted, rtol=0.05)


def test_unequal_sizes_are_repeated_points(with_pot, request):
    x, y = cloud(40, 2), cloud(60, 2, seed=1)
    value = metrics.wasserstein_2(x, y)
    assert metrics.wasserstein_2(np.zeros((3, 2)), [[3.0, 4.0]]) == pytest.approx(5.0)
    request.getfixturevalue("without_pot")
    repeated = np.repeat(x, 3, axis=0), np.repeat(y, 2, axis=0)
    np.testing.assert_allclose(value, metrics.wasserstein_2(*repeated), rtol=1e-9)


def test_far_from_the_origin_nothing_is_lost(either):
    x, y = cloud(200, 2), cloud(200, 2, seed=1)
    near, far = metrics.wasserstein_2(x, y), metrics.wasserstein_2(x + 1e6, y + 1e6)
    np.testing.assert_allclose(far, near, rtol=1e-8)


def test_unequal_large_and_bad_sets_are_refused(without_pot):
    with pytest.raises(ValueError, match=r"40 and 60.*need the package POT"):
        metrics.wasserstein_2(cloud(40, 2), cloud(60, 2))
    many = np.zeros((MAX_POINTS + 1, 2))
    with pytest.raises(ValueError, match=r"limited to 10000.*10001 and 3.*GB"):
        metrics.wasserstein_2(many, cloud(3, 2))
    with pytest.raises(ValueError, match="must be finite; 1 of 3"):
        metrics.wasserstein_2([[0.0, 0], [np.nan, 0], [0, 0]], cloud(3, 2))
    with pytest.raises(ValueError, match="shape"):
        metrics.wasserstein_2(cloud(3, 3), cloud(3, 2))
    on_a_line = np.zeros(MAX_POINTS + 1)
    assert metrics.wasserstein_2(on_a_line, [1.0, -1.0]) == pytest.approx(1.0)
