"""All distances between samples and true samples, and what true samples give."""

from __future__ import annotations

import jax
import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.metrics._checks import check_one_label, check_samples
from gmm_guidance.metrics.energy import energy_distance
from gmm_guidance.metrics.mean_discrepancy import mmd
from gmm_guidance.metrics.nearest import nearest_neighbours
from gmm_guidance.metrics.optimal_transport import wasserstein_2
from gmm_guidance.metrics.uncertainty import mean_and_standard_error
from gmm_guidance.metrics.wasserstein import sliced_wasserstein
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


def compare_to_samples(
    samples: ArrayLike, truth_samples: ArrayLike
) -> dict[str, float]:
    """Every distance between two sets of samples, where the truth is samples too.

    Slower than ``summarise``: the exact W2 takes most of the time, seconds for 2,000
    points and about a minute for 10,000.

    Args:
        samples: array of shape ``[n, d]``, one condition alone.
        truth_samples: array of shape ``[m, d]`` from the same condition; as many.

    Returns:
        ``w2`` (exact), ``sliced_w2``, ``energy_distance``, ``mmd`` (bandwidths set by
        the true samples), ``nn_precision`` and ``nn_recall``. See these functions for
        their units and bias.

    Raises:
        ValueError: as these functions: above a line for more than 10,000 points, or
            for sets of unequal size without POT; for fewer than 2 points.
    """
    x = check_samples(samples, least=2)
    y = check_samples(truth_samples, x.shape[1], least=2)
    neighbours = nearest_neighbours(x, y)
    return {
        "w2": wasserstein_2(x, y),
        "sliced_w2": sliced_wasserstein(x, y),
        "energy_distance": energy_distance(x, y),
        "mmd": mmd(x, y),
        "nn_precision": neighbours.precision,
        "nn_recall": neighbours.recall,
    }


def sample_floor(
    key: jax.Array,
    mixture: GaussianMixture,
    label: int | None,
    num_samples: int,
    num_repeats: int = 5,
) -> dict[str, dict[str, float]]:
    """What ``compare_to_samples`` says of two independent sets of true samples.

    Args:
        key: JAX random key.
        mixture: the truth.
        label: its class, an integer; ``None`` or ``num_labels`` for all.
        num_samples: samples in each set, at least 2.
        num_repeats: independent pairs of sets, at least 2.

    Returns:
        For each name of ``compare_to_samples`` a dictionary of ``mean``,
        ``standard_error`` of that mean, and ``standard_deviation`` of one comparison
        over the repeats.

    Raises:
        ValueError: if ``num_samples`` or ``num_repeats`` is below 2.
    """
    if num_repeats < 2:
        raise ValueError(
            f"num_repeats must be at least 2 for a standard error, got {num_repeats}."
        )
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}.")
    label = check_one_label(label, mixture)
    rows = []
    for repeat_key in jax.random.split(key, num_repeats):
        both = np.asarray(mixture.sample(repeat_key, 2 * num_samples, label)[0])
        rows.append(compare_to_samples(both[:num_samples], both[num_samples:]))
    floor = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        mean, error = mean_and_standard_error(values)
        floor[name] = {
            "mean": float(mean),
            "standard_error": float(error),
            "standard_deviation": float(values.std(ddof=1)),
        }
    return floor
