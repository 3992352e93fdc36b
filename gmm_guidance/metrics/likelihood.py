"""How probable samples are under the truth."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.metrics._checks import check_labeled
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegativeLogLikelihood:
    """Negative log densities of samples, in nats: mean, median and 99th percentile.

    Attributes:
        mean: dominated by a few outliers when there are any.
        median: the typical sample.
        p99: the 99th percentile.
    """

    mean: float
    median: float
    p99: float


def negative_log_likelihood(
    samples: ArrayLike, labels: ArrayLike | None, mixture: GaussianMixture
) -> NegativeLogLikelihood:
    """Negative log likelihood ``-log p(x | label)`` of the samples under the truth.

    Never report it alone: it rewards shrinkage. Samples narrower than the truth score
    *better* than true samples; pair it with a distance and a width.

    Args:
        samples: array of shape ``[n, d]``.
        labels: requested labels, ``[n]`` or one integer; ``None`` for no condition.
        mixture: the truth.

    Returns:
        Mean, median and 99th percentile over the samples, in nats.
    """
    x, label = check_labeled(samples, labels, mixture)
    values = -np.asarray(mixture.log_prob(x, label=label), np.float64)
    return NegativeLogLikelihood(
        mean=float(values.mean()),
        median=float(np.median(values)),
        p99=float(np.quantile(values, 0.99)),
    )
