"""Mixtures that the tests of the metrics share, and samples of them drawn in NumPy.

Sharing the mixtures and the numbers of samples shares the compiled programs as well.
"""

from __future__ import annotations

import numpy as np
import scipy.stats

from gmm_guidance import presets
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from oracles.mixture64 import Mixture64

N_LINE, N_CORNERS = 500, 600

MODES = presets.two_modes()
CORNERS = presets.four_corners()
DIAGONAL = presets.four_corners(labels="diagonal")
GAUSSIAN = GaussianMixture(np.array([[1.5]]), 4.0)

# Overlapping, unequal modes on a line; label 1 has two of them.
LINE_MEANS = np.array([-2.0, 0.5, 5.0])
LINE_VARIANCES = np.array([1.0, 0.04, 0.25])
LINE_WEIGHTS = np.array([0.5, 0.3, 0.2])
LINE = GaussianMixture(
    LINE_MEANS[:, None], LINE_VARIANCES, LINE_WEIGHTS, np.array([0, 1, 1])
)


def full_mixture(seed: int, count: int, dim: int, num_labels: int = 2):
    """Full covariances at random, means a few standard deviations apart."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(count, dim, dim)) / np.sqrt(dim)
    covariances = root @ root.swapaxes(1, 2) + 0.1 * np.eye(dim)
    weights = rng.uniform(0.5, 1.5, count)
    return GaussianMixture(
        2 * rng.normal(size=(count, dim)),
        covariances,
        weights / weights.sum(),
        np.arange(count) % num_labels,
    )


def draw(mixture: GaussianMixture, n: int, seed: int = 0, label: int | None = None):
    """Samples ``[n, d]`` float64, of one label or all, and their labels ``[n]``."""
    weights = np.asarray(mixture.weights, np.float64)
    covariances = np.asarray(mixture.covariances, np.float64)
    truth = Mixture64.build(
        mixture.means,
        0.5 * (covariances + covariances.swapaxes(1, 2)),  # symmetric to rounding
        weights / weights.sum(),
        mixture.labels,
    )
    return truth.part(label).draw(np.random.default_rng(seed), n)


def line_cdf(mixture: GaussianMixture, x, label: int | None = None):
    """The distribution function of a mixture on a line by SciPy, written out."""
    weights = np.asarray(mixture.weights, np.float64)
    if label is not None:
        weights = weights * (mixture.labels == label)
    weights = weights / weights.sum()
    means = np.asarray(mixture.means, np.float64)[:, 0]
    stds = np.sqrt(np.asarray(mixture.covariances, np.float64)[:, 0, 0])
    return scipy.stats.norm.cdf(np.asarray(x)[..., None], means, stds) @ weights
