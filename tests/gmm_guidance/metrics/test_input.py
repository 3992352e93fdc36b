"""Every argument that a metric refuses, by its message."""

import numpy as np
import pytest
from oracles.metric_truths import CORNERS, MODES

from gmm_guidance import metrics


def bad_samples():
    x = np.zeros((5, 2))
    x[1, 0], x[3, 1] = np.nan, np.inf
    return x


PLANE = np.zeros((4, 2))


@pytest.mark.parametrize(
    "function, arguments, message",
    [
        (metrics.cdf, (CORNERS, 0.0), "cdf needs a mixture of dimension 1, got .* 2"),
        (metrics.cdf, (MODES, 0.0, 3), r"labels must be in 0\.\.1, or 2 .*got \[3\]"),
        (metrics.quantile, (CORNERS, 0.5), "quantile needs a mixture of dimension 1"),
        (metrics.quantile, (MODES, [0.5, 1.5]), r"u must lie in \[0, 1\], got \[1.5\]"),
        (metrics.quantile, (MODES, np.nan), r"u must lie in \[0, 1\], got \[nan\]"),
        (metrics.wasserstein_1d, (PLANE, MODES), r"shape \[n, 1\].*got \(4, 2\)"),
        (metrics.wasserstein_1d, (PLANE, CORNERS), "needs a mixture of dimension 1"),
        (metrics.wasserstein_1d, ([0.0], MODES, None, 3), "p must be 1 or 2, got 3"),
        (metrics.wasserstein_1d, ([0.0], [0.0], 1), "label chooses a class"),
        (metrics.wasserstein_1d, ([], MODES), "at least 1 samples are needed, got 0"),
        (metrics.wasserstein_1d, ([0.0], MODES, [0]), "None or one integer"),
        (metrics.wasserstein_1d, ([0.0], MODES, 0.5), "labels must be integers"),
        (metrics.sliced_wasserstein, (PLANE, PLANE[:, :1]), r"\[n, 2\].*got \(4, 1\)"),
        (metrics.sliced_wasserstein, (PLANE[0], CORNERS), r"\[n, 2\].*got \(2,\)"),
        (metrics.sliced_wasserstein, (PLANE, PLANE, 0), "label chooses a class"),
        (metrics.sliced_wasserstein, (PLANE, CORNERS, 5), "got .5."),
        (metrics.sliced_wasserstein, (PLANE, CORNERS, 0, 0), "num_directions must be"),
        (metrics.sliced_wasserstein, (PLANE, CORNERS, 0, 8, 3), "p must be 1 or 2"),
        (metrics.sliced_wasserstein, (bad_samples(), CORNERS), "2 of 5 hold NaN"),
        (metrics.energy_distance, ([0.0], [0.0, 1.0]), "at least 2 samples"),
        (metrics.energy_distance, (PLANE, [0.0, 1.0]), r"shape \[n, 2\]"),
        (metrics.energy_distance, (bad_samples(), PLANE), "the first at index 1"),
        (metrics.mode_statistics, (bad_samples(), 0, CORNERS), "2 of 5 hold NaN"),
        (metrics.mode_statistics, (PLANE, [0, 1], CORNERS), r"shape \[4\].*got \(2,\)"),
        (metrics.mode_statistics, (PLANE, 5, CORNERS), r"0\.\.3, or 4 .*got \[5\]"),
        (metrics.mode_statistics, (PLANE, -1, CORNERS), r"got \[-1\]"),
        (metrics.mode_statistics, (PLANE, 0.0, CORNERS), "must be integers"),
        (metrics.mode_statistics, (np.zeros((4, 3)), 0, CORNERS), r"got \(4, 3\)"),
        (metrics.class_statistics, (PLANE, None, CORNERS), r"0\.\.3; got \[4\]"),
        (metrics.outside_fraction, (PLANE, 0, CORNERS, 0.0), "num_std must be"),
        (metrics.outside_fraction, (PLANE, 9, CORNERS), r"got \[9\]"),
        (metrics.negative_log_likelihood, (bad_samples(), 0, CORNERS), "2 of 5"),
        (metrics.wrong_mode_fraction, (PLANE, 4, CORNERS), r"0\.\.3; got \[4\]"),
        (metrics.summarize, (PLANE, [0, 0, 0, 1], CORNERS), "label 1 has 1"),
        (metrics.truth_floor, (None, MODES, [0, 1], 1), "num_repeats must be at least"),
        (metrics.truth_floor, (None, MODES, 0), r"shape \[n\].*got \(\)"),
        (metrics.truth_floor, (None, MODES, [0, 3]), r"got \[3\]"),
        (metrics.mean_and_standard_error, ([1.0],), "at least 2 values .* got 1"),
        (metrics.mean_and_standard_error, (1.0,), "at least 2 values"),
        (metrics.confidence_interval, ([1.0, 2.0], 1.0), "strictly between 0 and 1"),
        (metrics.confidence_interval, ([1.0],), "at least 2 values"),
    ],
)
def test_bad_arguments_are_named(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
