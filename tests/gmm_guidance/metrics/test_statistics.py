"""Statistics of modes and classes: distortions read off, and NumPy's moments."""

import numpy as np
import pytest
from oracles.metric_truths import (
    CORNERS,
    DIAGONAL,
    LINE,
    LINE_MEANS,
    LINE_VARIANCES,
    N_CORNERS,
    N_LINE,
    draw,
)

from gmm_guidance import metrics, presets
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


@pytest.mark.parametrize(
    "statistics", [metrics.mode_statistics, metrics.class_statistics]
)
def test_statistics_of_a_known_distortion(statistics):
    """Every mode pushed outward by half a std and narrowed to 0.7: read off exactly."""
    truth = presets.four_corners(std=0.5)
    labels = np.arange(N_CORNERS) % 4
    noise = np.random.default_rng(0).normal(size=(N_CORNERS // 4, 4, 2))
    noise -= noise.mean(axis=0)  # standardised, so that there is no sampling noise
    noise /= np.sqrt(np.mean(noise.var(axis=0, ddof=1), axis=1))[:, None]
    means = 4.0 * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])[labels]
    outward = means / np.linalg.norm(means, axis=1, keepdims=True)
    x = means + 0.25 * outward + 0.7 * 0.5 * noise.reshape(N_CORNERS, 2)
    result = statistics(x, labels, truth)
    np.testing.assert_allclose(result.outward_shift, 0.5, rtol=1e-5)
    np.testing.assert_allclose(result.relative_shift, 0.5, rtol=1e-5)
    np.testing.assert_allclose(result.width_ratio, 0.7, rtol=1e-5)
    np.testing.assert_allclose(result.mean_shift, 0.25 * outward[:4], rtol=1e-5)
    np.testing.assert_array_equal(result.count, [N_CORNERS // 4] * 4)
    np.testing.assert_allclose(result.fraction, 0.25)
    np.testing.assert_allclose(result.expected_fraction, 0.25, rtol=1e-6)


def test_mode_statistics_agree_with_numpy_moments():
    x, labels = draw(LINE, N_LINE)
    result = metrics.mode_statistics(x, labels, LINE)
    # In label 1 the modes at 0.5 and 5 do not overlap: a threshold separates them.
    for mode, own in ((0, x[labels == 0]), (2, x[(labels == 1) & (x[:, 0] > 2.5)])):
        assert result.count[mode] == len(own)
        shift = own.mean(0) - LINE_MEANS[mode]
        np.testing.assert_allclose(result.mean_shift[mode], shift)
        width = np.sqrt(own.var(ddof=1) / LINE_VARIANCES[mode])
        np.testing.assert_allclose(result.width_ratio[mode], width)
    shares = np.mean(labels == 1) * np.array([0.6, 0.4])
    np.testing.assert_allclose(result.expected_fraction[1:], shares, rtol=1e-5)


def test_mode_statistics_with_missing_and_single_samples():
    x = np.array([[-4.0, -4.0], [-3.0, -4.0], [4.0, 5.0]])
    result = metrics.mode_statistics(x, 0, DIAGONAL)
    np.testing.assert_array_equal(result.count, [2, 0, 0, 1])
    np.testing.assert_allclose(result.expected_fraction, [0.5, 0, 0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(result.mean_shift[0], [0.5, 0.0], atol=1e-12)
    assert np.isnan(result.mean_shift[[1, 2]]).all()
    assert np.isnan(result.width_ratio[1:]).all()  # one sample has no width
    assert np.isfinite(result.outward_shift[3])
    classes = metrics.class_statistics(x, 0, DIAGONAL)
    # Both diagonals' means are the overall mean: there is no outward direction.
    assert np.isnan(classes.outward_shift).all()
    assert np.isfinite(classes.relative_shift[0])


def test_outward_is_away_from_the_whole_mixtures_mean():
    # The mean is 0.15, so 0.5 lies above it, although it is the lower of its class.
    mode = np.arange(N_LINE) % 3
    x = LINE_MEANS[mode] + 0.1
    modes = metrics.mode_statistics(x, np.array([0, 1, 1])[mode], LINE)
    np.testing.assert_allclose(modes.outward_shift, [-0.1, 0.5, 0.2], rtol=1e-5)
    low = GaussianMixture(np.array([[6.0], [10.0]]), 1.0, labels=np.arange(2))
    result = metrics.class_statistics(np.array([5.0, 10.5]), [0, 1], low)
    np.testing.assert_allclose(result.outward_shift, [1.0, 0.5], rtol=1e-5)


def test_samples_count_for_modes_of_their_own_label_only():
    x = np.full((N_CORNERS, 2), 4.0)  # all at the last corner, whatever was asked
    labels = np.minimum(np.arange(N_CORNERS), 3)
    result = metrics.mode_statistics(x, labels, CORNERS)
    np.testing.assert_array_equal(result.count, [1, 1, 1, N_CORNERS - 3])
    for null in (None, CORNERS.num_labels):
        free = metrics.mode_statistics(x, null, CORNERS)
        np.testing.assert_array_equal(free.count, [0, 0, 0, N_CORNERS])
        np.testing.assert_allclose(free.expected_fraction, 0.25, rtol=1e-6)


def test_class_statistics_use_the_class_moments():
    x, labels = draw(LINE, N_LINE)
    result = metrics.class_statistics(x, labels, LINE)
    # Of two modes: E[variance] + Var[mean], with the weights 0.6 and 0.4.
    spread = 0.6 * 0.04 + 0.4 * 0.25 + 0.6 * 0.4 * 4.5**2
    for label, mean, std in ((0, -2.0, 1.0), (1, 2.3, np.sqrt(spread))):
        own = x[labels == label]
        shift = own.mean(0) - mean
        np.testing.assert_allclose(result.mean_shift[label], shift, atol=1e-5)
        np.testing.assert_allclose(
            result.relative_shift[label], np.abs(shift[0]) / std, atol=1e-5
        )
        np.testing.assert_allclose(
            result.width_ratio[label], own.std(ddof=1) / std, rtol=1e-4
        )
