"""Standard errors and confidence intervals against SciPy."""

import numpy as np
import pytest
import scipy.stats

from gmm_guidance import metrics


@pytest.mark.parametrize("axis", [0, 1])
def test_mean_and_standard_error_agree_with_scipy(axis):
    values = np.random.default_rng(0).normal(size=(6, 4))
    mean, error = metrics.mean_and_standard_error(values, axis)
    np.testing.assert_allclose(mean, values.mean(axis))
    np.testing.assert_allclose(error, scipy.stats.sem(values, axis))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("repeats", [2, 3, 5, 30])
def test_confidence_interval_agrees_with_scipy(level, repeats):
    values = np.random.default_rng(0).normal(size=(repeats, 3))
    low, high = metrics.confidence_interval(values, level)
    wanted = scipy.stats.t.interval(
        level, repeats - 1, values.mean(0), scipy.stats.sem(values, axis=0)
    )
    np.testing.assert_allclose([low, high], wanted)
    last = metrics.confidence_interval(values.T, level, axis=1)
    np.testing.assert_array_equal(last, [low, high])
