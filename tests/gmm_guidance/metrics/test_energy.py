"""Energy distance against SciPy's pairwise distances and its biased estimate."""

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats

from gmm_guidance import metrics


@pytest.mark.parametrize(
    "n, m, dim", [(50, 70, 1), (3, 2, 2), (1500, 1025, 2), (300, 40, 7)]
)
def test_energy_distance_agrees_with_scipys_pairwise_distances(n, m, dim):
    rng = np.random.default_rng(n)
    x, y = 20 + rng.normal(size=(n, dim)), 20.5 + 1.3 * rng.normal(size=(m, dim))
    across = scipy.spatial.distance.cdist(x, y).mean()
    wanted = (
        2 * across
        - scipy.spatial.distance.pdist(x).mean()
        - scipy.spatial.distance.pdist(y).mean()
    )
    value = metrics.energy_distance(x, y)
    np.testing.assert_allclose(value, wanted, atol=2e-7 * across)


def test_energy_distance_beside_scipys_biased_root():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=200), 1 + rng.normal(size=300)
    # Putting the zero self-distances back turns the unbiased into the biased estimate.
    bias = [np.mean(scipy.spatial.distance.pdist(a[:, None])) / len(a) for a in (x, y)]
    np.testing.assert_allclose(
        metrics.energy_distance(x, y) + sum(bias),
        scipy.stats.energy_distance(x, y) ** 2,
        rtol=1e-10,
    )


@pytest.mark.parametrize("dim, repeats", [(1, 300), (2, 100)])
def test_energy_distance_is_unbiased_and_may_be_negative(dim, repeats):
    rng = np.random.default_rng(0)
    values = [
        metrics.energy_distance(rng.normal(size=(40, dim)), rng.normal(size=(30, dim)))
        for _ in range(repeats)
    ]
    mean, error = metrics.mean_and_standard_error(values)
    assert abs(mean) < 3.5 * error
    assert error < 0.01  # a seventh of what counting pairs of a sample with itself adds
    assert min(values) < 0
