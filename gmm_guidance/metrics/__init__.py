"""Distances and statistics of samples beside the mixture they should come from.

The truth enters in closed form wherever there is one, so its side has no sampling
noise: Wasserstein distances use the exact distribution function of the (projected)
mixture. What remains is the noise of the samples themselves, which biases distances
upwards: print ``truth_floor`` next to every number.

Samples are arrays of shape ``[n, d]``, or ``[n]`` on a line. Labels are ``[n]``
integers or one integer for all; ``None`` and ``mixture.num_labels`` mean no condition.
The functions run on the host in float64, except for what the mixture computes itself
and ``energy_distance`` above one dimension. All raise ``ValueError`` for samples that
are empty, of the wrong shape or not finite, and for labels out of range.
"""

from gmm_guidance.metrics.energy import energy_distance
from gmm_guidance.metrics.fractions import outside_fraction, wrong_mode_fraction
from gmm_guidance.metrics.likelihood import (
    NegativeLogLikelihood,
    negative_log_likelihood,
)
from gmm_guidance.metrics.quantiles import cdf, quantile
from gmm_guidance.metrics.statistics import (
    GroupStatistics,
    class_statistics,
    mode_statistics,
)
from gmm_guidance.metrics.summary import summarise, truth_floor
from gmm_guidance.metrics.uncertainty import (
    confidence_interval,
    mean_and_standard_error,
)
from gmm_guidance.metrics.wasserstein import sliced_wasserstein, wasserstein_1d

__all__ = [
    "GroupStatistics",
    "NegativeLogLikelihood",
    "cdf",
    "class_statistics",
    "confidence_interval",
    "energy_distance",
    "mean_and_standard_error",
    "mode_statistics",
    "negative_log_likelihood",
    "outside_fraction",
    "quantile",
    "sliced_wasserstein",
    "summarise",
    "truth_floor",
    "wasserstein_1d",
    "wrong_mode_fraction",
]
