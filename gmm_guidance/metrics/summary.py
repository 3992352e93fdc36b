"""Every scalar metric at once, and its floor for true samples."""

from __future__ import annotations

import math

import jax
import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.metrics._checks import check_label_values, check_labeled
from gmm_guidance.metrics.energy import energy_distance
from gmm_guidance.metrics.fractions import outside_fraction, wrong_mode_fraction
from gmm_guidance.metrics.likelihood import negative_log_likelihood
from gmm_guidance.metrics.statistics import class_statistics, mode_statistics
from gmm_guidance.metrics.uncertainty import mean_and_standard_error
from gmm_guidance.metrics.wasserstein import sliced_wasserstein
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


def summarize(
    samples: ArrayLike,
    labels: ArrayLike | None,
    mixture: GaussianMixture,
    *,
    key: jax.Array | None = None,
) -> dict[str, float]:
    """Every scalar metric of one set of samples.

    Distances are to ``p(x | label)``, one for each label that occurs, then averaged
    with equal weights. Shifts, in standard deviations, and widths are averaged over
    modes (classes) in proportion to their samples, over those where they are defined;
    NaN where none is (the outward shift of a mixture of a single mode).

    Args:
        samples: array of shape ``[n, d]``, at least 2 for each label that occurs.
        labels: requested labels, ``[n]`` or one integer; ``None`` for no condition.
        mixture: the truth.
        key: JAX random key of the true samples that the energy distance needs (as many
            as there are samples); a fixed one by default.

    Returns:
        ``w2`` (one dimension) or ``sliced_w2``, ``energy_distance``, ``mode_shift``
        (outward), ``mode_width_ratio``, ``mode_fraction_error`` (total variation of
        fractions and their expectation), ``outside_fraction`` (3 standard deviations),
        ``nll_mean``, ``nll_median``, ``nll_p99``; and, if every sample has a class,
        ``class_shift`` (outward), ``class_width_ratio`` and ``wrong_mode_fraction``.

    Raises:
        ValueError: if a label has a single sample.
    """
    x, label = check_labeled(samples, labels, mixture)
    values, counts = np.unique(label, return_counts=True)
    if counts.min() < 2:
        raise ValueError(
            f"every label needs at least 2 samples, label {values[counts.argmin()]} "
            f"has 1. Draw more, or leave that label out."
        )
    if key is None:
        # Not one of the keys a user is likely to have drawn the samples with.
        key = jax.random.fold_in(jax.random.key(0), 0x6D65_7472)
    # One draw for all labels: one compilation, whatever the numbers of each.
    true = np.asarray(mixture.sample(key, len(x), label)[0])
    sliced, energy = [], []
    for value in values:
        own = x[label == value]
        sliced.append(sliced_wasserstein(own, mixture, int(value)))
        energy.append(energy_distance(own, true[label == value]))
    modes = mode_statistics(x, label, mixture)
    nll = negative_log_likelihood(x, label, mixture)
    excess = np.abs(modes.fraction - modes.expected_fraction)
    result = {
        "w2" if mixture.dim == 1 else "sliced_w2": float(np.mean(sliced)),
        "energy_distance": float(np.mean(energy)),
        "mode_shift": _weighted_mean(modes.outward_shift, modes.count),
        "mode_width_ratio": _weighted_mean(modes.width_ratio, modes.count),
        "mode_fraction_error": float(0.5 * excess.sum()),
        "outside_fraction": outside_fraction(x, label, mixture),
        "nll_mean": nll.mean,
        "nll_median": nll.median,
        "nll_p99": nll.p99,
    }
    if (label < mixture.num_labels).all():
        classes = class_statistics(x, label, mixture)
        result |= {
            "class_shift": _weighted_mean(classes.outward_shift, classes.count),
            "class_width_ratio": _weighted_mean(classes.width_ratio, classes.count),
            "wrong_mode_fraction": wrong_mode_fraction(x, label, mixture),
        }
    return result


def truth_floor(
    key: jax.Array,
    mixture: GaussianMixture,
    labels: ArrayLike,
    num_repeats: int = 5,
) -> dict[str, dict[str, float]]:
    """``summarize`` of true samples: the floor of every metric.

    Args:
        key: JAX random key.
        mixture: the truth.
        labels: ``[n]`` integers, the labels of the samples to be judged; as many true
            samples are drawn, with the same labels.
        num_repeats: independent draws, at least 2.

    Returns:
        For each name of ``summarize`` a dictionary of ``mean`` and ``standard_error``
        over the draws.

    Raises:
        ValueError: if ``num_repeats`` is below 2 or ``labels`` not of shape ``[n]``.
    """
    if num_repeats < 2:
        raise ValueError(
            f"num_repeats must be at least 2 for a standard error, got {num_repeats}."
        )
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size:
        raise ValueError(
            f"labels must have shape [n], n at least 1, got {labels.shape}. For n "
            f"samples without a condition use numpy.full(n, mixture.num_labels)."
        )
    label = check_label_values(labels, mixture)
    rows = []
    for repeat_key in jax.random.split(key, num_repeats):
        sample_key, reference_key = jax.random.split(repeat_key)
        x, _ = mixture.sample(sample_key, len(label), label)
        rows.append(summarize(x, label, mixture, key=reference_key))
    floor = {}
    for name in rows[0]:
        mean, error = mean_and_standard_error([row[name] for row in rows])
        floor[name] = {"mean": float(mean), "standard_error": float(error)}
    return floor


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    defined = np.isfinite(values) & (weights > 0)
    if not defined.any():
        return math.nan
    return float(np.average(values[defined], weights=weights[defined]))
