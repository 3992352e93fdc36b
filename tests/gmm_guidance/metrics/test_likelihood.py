"""Negative log likelihood against SciPy, and why it must not be reported alone."""

import numpy as np
import scipy.special
import scipy.stats
from oracles.metric_truths import CORNERS, LINE, N_CORNERS, N_LINE, draw

from gmm_guidance import metrics


def test_negative_log_likelihood_agrees_with_scipy():
    x, _ = draw(LINE, N_LINE)
    logs = scipy.stats.norm.logpdf(x, [0.5, 5.0], [0.2, 0.5])
    values = -scipy.special.logsumexp(logs, axis=1, b=[0.6, 0.4])
    result = metrics.negative_log_likelihood(x, 1, LINE)
    np.testing.assert_allclose(result.mean, values.mean(), rtol=1e-5)
    np.testing.assert_allclose(result.median, np.median(values), rtol=1e-5)
    np.testing.assert_allclose(result.p99, np.quantile(values, 0.99), rtol=1e-5)


def test_negative_log_likelihood_rewards_shrinkage():
    """Half as wide is better than true: the squares of the noise count a quarter."""
    x, labels = draw(CORNERS, N_CORNERS)
    means = np.asarray(CORNERS.means)[labels]
    true = metrics.negative_log_likelihood(x, labels, CORNERS).mean
    shrunk = metrics.negative_log_likelihood(means + 0.5 * (x - means), labels, CORNERS)
    squares = np.mean(np.sum((x - means) ** 2, axis=1))
    np.testing.assert_allclose(true, np.log(2 * np.pi) + 0.5 * squares, rtol=1e-5)
    np.testing.assert_allclose(shrunk.mean, true - 0.375 * squares, rtol=1e-5)
