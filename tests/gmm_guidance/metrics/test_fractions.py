"""Fractions outside and in the wrong mode: chi-square tails, SciPy, and by hand."""

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
from oracles.metric_truths import GAUSSIAN, MODES, draw, full_mixture

from gmm_guidance import metrics, presets


@pytest.mark.parametrize(
    "mixture, wanted",
    [
        (GAUSSIAN, 2 * scipy.stats.norm.sf(3)),
        (full_mixture(0, count=1, dim=2, num_labels=1), np.exp(-4.5)),
    ],
)
def test_outside_fraction_of_true_samples_is_the_chi_square_tail(mixture, wanted):
    n = 100_000
    x, labels = draw(mixture, n)
    value = metrics.outside_fraction(x, labels, mixture)
    assert abs(value - wanted) < 4 * np.sqrt(wanted / n)


def test_outside_fraction_agrees_with_scipys_mahalanobis_distance():
    truth = full_mixture(4, count=6, dim=3)
    x, labels = draw(truth, 40)
    x = x + 0.5 * np.random.default_rng(0).normal(size=x.shape)
    means = np.asarray(truth.means, np.float64)
    inverses = np.linalg.inv(np.asarray(truth.covariances, np.float64))
    nearest = np.array(
        [
            min(
                scipy.spatial.distance.mahalanobis(point, means[k], inverses[k])
                for k in np.flatnonzero(truth.labels == label)
            )
            for point, label in zip(x, labels, strict=True)
        ]
    )
    # Just below and above every sample's own distance: each of them is right.
    for distance in nearest:
        for num_std in (0.9999 * distance, 1.0001 * distance):
            value = metrics.outside_fraction(x, labels, truth, num_std)
            assert value == np.mean(nearest > num_std)


def test_outside_fraction_looks_at_the_own_label_or_at_all():
    x = np.array([-4.0, 4.0, 0.0, 4.0])
    assert metrics.outside_fraction(x, 0, MODES) == 0.75
    assert metrics.outside_fraction(x, [0, 1, 0, 0], MODES) == 0.5
    assert metrics.outside_fraction(x, None, MODES) == 0.25


def test_wrong_mode_fraction_by_hand():
    x = np.tile([-4.0, 4.0, 1.0, -0.1], 100)
    assert metrics.wrong_mode_fraction(x, np.tile([0, 1, 1, 0], 100), MODES) == 0
    assert metrics.wrong_mode_fraction(x, np.tile([1, 0, 1, 0], 100), MODES) == 0.5
    assert metrics.wrong_mode_fraction(x, 0, MODES) == 0.5


def test_wrong_mode_fraction_of_overlapping_classes():
    """True samples cross the boundary with probability Phi(-1)."""
    close = presets.two_modes(std=1.0, mean=1.0)
    quantiles = scipy.stats.norm.ppf((np.arange(200) + 0.5) / 200)
    x = np.concatenate([quantiles - 1, quantiles + 1])
    value = metrics.wrong_mode_fraction(x, np.repeat([0, 1], 200), close)
    np.testing.assert_allclose(value, scipy.stats.norm.cdf(-1), atol=1 / 200)
