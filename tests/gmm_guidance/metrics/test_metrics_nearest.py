"""Nearest-neighbour distances against all pairs, and the comparisons' floor."""

import os

import jax
import numpy as np
import pytest
from oracles.metric_truths import CORNERS

from gmm_guidance import metrics

os.environ.setdefault("POT_BACKEND_DISABLE_PYTORCH", "1")  # seconds to import


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_all_pairs(dim):
    rng = np.random.default_rng(dim)
    x, y = rng.normal(size=(60, dim)), rng.normal(size=(90, dim)) + 0.5
    distances = np.array([[np.linalg.norm(a - b) for b in y] for a in x])
    found = metrics.nearest_neighbours(x, y)
    np.testing.assert_allclose(found.precision, distances.min(axis=1).mean())
    np.testing.assert_allclose(found.recall, distances.min(axis=0).mean())


def test_which_is_which():
    """A missed mode costs recall, a superfluous one precision."""
    truth = np.array([[0.0, 0.0], [10.0, 0.0]])
    assert metrics.nearest_neighbours(truth[:1], truth) == (0.0, 5.0)
    both = np.concatenate([truth, [[0.0, 6.0]]])
    assert metrics.nearest_neighbours(both, truth) == (2.0, 0.0)


def test_comparison_holds_the_single_functions():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 80, 2))
    found = metrics.compare_to_samples(x, y)
    neighbours = metrics.nearest_neighbours(x, y)
    assert found == {
        "w2": metrics.wasserstein_2(x, y),
        "sliced_w2": metrics.sliced_wasserstein(x, y),
        "energy_distance": metrics.energy_distance(x, y),
        "mmd": metrics.mmd(x, y),
        "nn_precision": neighbours.precision,
        "nn_recall": neighbours.recall,
    }
    assert found["sliced_w2"] < found["w2"]


def test_floor_is_of_the_label_asked_for():
    """Each corner alone is a unit Gaussian; all four are 8 apart."""
    one = metrics.sample_floor(jax.random.key(0), CORNERS, 2, 200, 4)
    every = metrics.sample_floor(jax.random.key(0), CORNERS, None, 200, 4)
    assert one["w2"]["mean"] < 0.6 < 1.0 < every["w2"]["mean"]
    for entry in one.values():
        assert entry["standard_error"] == pytest.approx(entry["standard_deviation"] / 2)
    for name in ("energy_distance", "mmd"):  # unbiased: no floor but noise
        assert abs(one[name]["mean"]) < 5 * one[name]["standard_error"] + 1e-3
    again = metrics.sample_floor(jax.random.key(0), CORNERS, 2, 200, 4)
    assert again == one
    assert metrics.sample_floor(jax.random.key(1), CORNERS, 2, 200, 4) != one


def test_floor_falls_with_the_number_of_samples():
    small, large = (
        metrics.sample_floor(jax.random.key(3), CORNERS, 0, n, 3) for n in (100, 900)
    )
    for name in ("w2", "sliced_w2", "nn_precision", "nn_recall"):
        assert large[name]["mean"] < 0.6 * small[name]["mean"]


def test_errors():
    x = np.zeros((3, 2))
    with pytest.raises(ValueError, match="shape"):
        metrics.nearest_neighbours(x, np.zeros((3, 1)))
    with pytest.raises(ValueError, match="at least 2"):
        metrics.compare_to_samples(x[:1], x)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="num_repeats"):
        metrics.sample_floor(key, CORNERS, 0, 10, 1)
    with pytest.raises(ValueError, match="num_samples"):
        metrics.sample_floor(key, CORNERS, 0, 1)
    with pytest.raises(ValueError, match="labels must be in"):
        metrics.sample_floor(key, CORNERS, 9, 10)
