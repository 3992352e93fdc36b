"""Distances and statistics of samples, against a mixture or other samples.

A mixture enters in closed form wherever there is one, so its side has no sampling
noise: Wasserstein distances use the exact distribution function of the (projected)
mixture. What remains is the noise of the samples themselves, which biases distances
upwards: report ``truth_floor`` next to every number. Some distances have no such closed
form and compare two sets of samples (``wasserstein_2``, ``energy_distance``). Sets of
images are compared by their features in a network (``frechet_distance``,
``precision_recall``, ``density_coverage``), or by a classifier's predictions
(``inception_score``): these metrics depend on that network.

Samples are arrays of shape ``[n, d]``, or ``[n]`` on a line. Labels are ``[n]``
integers or one integer for all; ``None`` and ``mixture.num_labels`` mean no condition.
The functions run on the host in float64, except for the mixture's own closed forms and
for ``energy_distance`` above one dimension. All raise ``ValueError`` for samples that
are empty, of the wrong shape or not finite, and for labels out of range.
"""

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
from gmm_guidance.metrics.optimal_transport import wasserstein_2
from gmm_guidance.metrics.quantiles import cdf, quantile
from gmm_guidance.metrics.statistics import (
    GroupStatistics,
    class_statistics,
    mode_statistics,
)
from gmm_guidance.metrics.summary import summarize, truth_floor
from gmm_guidance.metrics.uncertainty import (
    confidence_interval,
    mean_and_standard_error,
)
from gmm_guidance.metrics.video import TemporalStatistics, temporal_statistics
from gmm_guidance.metrics.wasserstein import sliced_wasserstein, wasserstein_1d

__all__ = [
    "DensityCoverage",
    "FeatureMoments",
    "GroupStatistics",
    "InceptionScore",
    "NegativeLogLikelihood",
    "PrecisionRecall",
    "TemporalStatistics",
    "cdf",
    "class_statistics",
    "confidence_interval",
    "density_coverage",
    "energy_distance",
    "feature_moments",
    "frechet_distance",
    "inception_score",
    "mean_and_standard_error",
    "mode_statistics",
    "negative_log_likelihood",
    "outside_fraction",
    "precision_recall",
    "quantile",
    "sliced_wasserstein",
    "summarize",
    "temporal_statistics",
    "truth_floor",
    "wasserstein_1d",
    "wasserstein_2",
    "wrong_mode_fraction",
]
