"""Distances and statistics of samples beside the mixture they should come from.

The truth enters in closed form wherever there is one, so its side has no sampling
noise: Wasserstein distances use the exact distribution function of the (projected)
mixture. What remains is the noise of the samples themselves, which biases distances
upwards: print ``truth_floor`` next to every number. Some distances have no closed form
on the truth's side and compare two sets of samples; their floor is ``sample_floor``.

Samples are arrays of shape ``[n, d]``, or ``[n]`` on a line. Labels are ``[n]``
integers or one integer for all; ``None`` and ``mixture.num_labels`` mean no condition.
The functions run on the host in float64, except for what the mixture computes itself,
for ``mmd``, and for ``energy_distance`` above one dimension. All raise ``ValueError``
for samples that are empty, of the wrong shape or not finite, and for labels out of
range.
"""

from gmm_guidance.metrics.comparison import compare_to_samples, sample_floor
from gmm_guidance.metrics.energy import energy_distance
from gmm_guidance.metrics.fractions import outside_fraction, wrong_mode_fraction
from gmm_guidance.metrics.likelihood import (
    NegativeLogLikelihood,
    negative_log_likelihood,
)
from gmm_guidance.metrics.mean_discrepancy import mmd
from gmm_guidance.metrics.nearest import NearestNeighbours, nearest_neighbours
from gmm_guidance.metrics.optimal_transport import wasserstein_2
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
    "NearestNeighbours",
    "NegativeLogLikelihood",
    "cdf",
    "class_statistics",
    "compare_to_samples",
    "confidence_interval",
    "energy_distance",
    "mean_and_standard_error",
    "mmd",
    "mode_statistics",
    "nearest_neighbours",
    "negative_log_likelihood",
    "outside_fraction",
    "quantile",
    "sample_floor",
    "sliced_wasserstein",
    "summarise",
    "truth_floor",
    "wasserstein_1d",
    "wasserstein_2",
    "wrong_mode_fraction",
]
