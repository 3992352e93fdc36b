"""Standard errors and confidence intervals against SciPy."""

import numpy as np
import pytest
import scipy.stats

from gmm_guidance import metrics
from gmm_guidance.metrics.uncertainty import _student_t


@pytest.mark.parametrize("axis", [0, 1])
def test_mean_and_standard_error_agree_with_scipy(axis):
    values = np.random.default_rng(0).normal(size=(6, 4))
    mean, error = metrics.mean_and_standard_error(values, axis)
    np.testing.assert_allclose(mean, values.mean(axis))
    np.testing.assert_allclose(error, scipy.stats.sem(values, axis))


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_student_quantile_agrees_with_scipy(level):
    degrees = [1, 2, 3, 4, 5, 10, 29, 100, 1001]
    np.testing.assert_allclose(
        [_student_t(level, number) for number in degrees],
        scipy.stats.t.ppf(0.5 + level / 2, degrees),
        rtol=1e-9,
    )


def test_confidence_interval_agrees_with_scipy():
    values = np.random.default_rng(0).normal(size=(5, 3))
    low, high = metrics.confidence_interval(values, 0.9)
    wanted = scipy.stats.t.interval(
        0.9, 4, values.mean(0), scipy.stats.sem(values, axis=0)
    )
    np.testing.assert_allclose([low, high], wanted)
    last = metrics.confidence_interval(values.T, 0.9, axis=1)
    np.testing.assert_array_equal(last, [low, high])
