"""Distances and statistics of samples beside the mixture they should come from.

The truth enters in closed form wherever there is one, so its side has no sampling
noise: Wasserstein distances use the exact distribution function of the (projected)
mixture. What remains is the noise of the samples themselves, which biases distances
upwards: print ``truth_floor`` next to every number. Some distances have no closed form
on the truth's side and compare two sets of samples; their floor is ``sample_floor``.
Images have no closed form either: there two sets are compared by their features in a
network (``frechet_distance``, ``precision_recall``, ``density_coverage``), or judged by
a classifier (``inception_score``). These numbers know the features only.

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
from gmm_guidance.metrics.frechet import (
    FeatureMoments,
    feature_moments,
    frechet_distance,
)
from gmm_guidance.metrics.inception_score import InceptionScore, inception_score
from gmm_guidance.metrics.likelihood import (
    NegativeLogLikelihood,
    negative_log_likelihood,
)
from gmm_guidance.metrics.manifolds import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
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
    "DensityCoverage",
    "FeatureMoments",
    "GroupStatistics",
    "InceptionScore",
    "NearestNeighbours",
    "NegativeLogLikelihood",
    "PrecisionRecall",
    "cdf",
    "class_statistics",
    "compare_to_samples",
    "confidence_interval",
    "density_coverage",
    "energy_distance",
    "feature_moments",
    "frechet_distance",
    "inception_score",
    "mean_and_standard_error",
    "mmd",
    "mode_statistics",
    "nearest_neighbours",
    "negative_log_likelihood",
    "outside_fraction",
    "precision_recall",
    "quantile",
    "sample_floor",
    "sliced_wasserstein",
    "summarise",
    "truth_floor",
    "wasserstein_1d",
    "wasserstein_2",
    "wrong_mode_fraction",
]
