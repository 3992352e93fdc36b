"""Every statistic that two sets of features allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import gmm_guidance as gg
from full_models.statistics.features import FeatureSet

#: What ``measure`` may hold; in the order of its calculation.
STATISTICS = (
    "frechet_distance",
    "precision",
    "recall",
    "density",
    "coverage",
    "inception_score",
)


def measure(
    samples: FeatureSet,
    reference: FeatureSet,
    nearest: int = 5,
    splits: int = 10,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Statistics of samples against a reference, in float64.

    The numbers know the features only: the Fréchet distance is the FID of papers if the
    features of both sets are those of the published Inception network.

    Args:
        samples: the generated images' features.
        reference: those of real images, in the same space.
        nearest: k of the nearest neighbors, for precision, recall, density and
            coverage alike. The papers have 3 for the first two and 5 for the others.
        splits: parts of the inception score.
        progress: called with the name of what is calculated next.

    Returns:
        A dictionary with ``frechet_distance``; ``precision``, ``recall``, ``density``
        and ``coverage``, if both sets hold features; ``inception_score`` and
        ``inception_score_std`` (over the parts), if the samples hold a classifier's
        predictions. Besides ``dim``, ``num_samples`` and ``num_reference`` (``None``
        where only moments are known), ``nearest`` and ``splits`` where they were used,
        and ``warnings``, a list of sentences.

    Raises:
        ValueError: if the dimensions differ, ``nearest`` is not in 1..n - 1 for both
            sets, ``splits`` not in 1..n, or moments are those of no Gaussian.
    """
    if samples.dim != reference.dim:
        raise ValueError(
            f"both sets must have features of one dimension; {samples.origin} has "
            f"{samples.dim}, {reference.origin} has {reference.dim}. Extract both with "
            f"the same function."
        )
    for one, other in ((samples, reference), (reference, samples)):
        if one.features is not None and other.features is not None:
            _check_nearest(nearest, len(one.features), one.origin)
    progress("Fréchet distance")
    result: dict[str, Any] = {
        "frechet_distance": gg.metrics.frechet_distance(
            samples.moments(), reference.moments()
        )
    }
    if samples.features is not None and reference.features is not None:
        result |= _manifolds(reference.features, samples.features, nearest, progress)
    probabilities = samples.class_probabilities()
    if probabilities is not None:
        progress("inception score")
        score = gg.metrics.inception_score(probabilities, splits)
        result |= {
            "inception_score": score.mean,
            "inception_score_std": score.std,
            "splits": splits,
        }
    return result | {
        "dim": samples.dim,
        "num_samples": samples.count,
        "num_reference": reference.count,
        "warnings": _warnings(samples, reference),
    }


def _manifolds(
    real: np.ndarray,
    generated: np.ndarray,
    nearest: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    progress("precision and recall")
    precision, recall = gg.metrics.precision_recall(real, generated, nearest)
    progress("density and coverage")
    density, coverage = gg.metrics.density_coverage(real, generated, nearest)
    return {
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "nearest": nearest,
    }


def _warnings(samples: FeatureSet, reference: FeatureSet) -> list[str]:
    """What makes the numbers less than they seem."""
    found = [
        f"{one.origin} has {one.count} samples of {one.dim} dimensions: the covariance "
        f"is singular and the Fréchet distance strongly biased upwards. Use many more "
        f"samples than dimensions."
        for one in (samples, reference)
        if one.count is not None and one.count <= one.dim
    ]
    if None not in (samples.count, reference.count) and (
        samples.count != reference.count
    ):
        found.append(
            f"the sets have {samples.count} and {reference.count} samples: precision, "
            f"recall, density and coverage depend on both. Compare them only with "
            f"numbers from sets of these sizes."
        )
    return found


def _check_nearest(nearest: int, count: int, origin: str) -> None:
    if not 1 <= nearest < count:
        raise ValueError(
            f"nearest must be at least 1 and below the number of samples, {count} in "
            f"{origin}; got {nearest}. Use more samples, or a smaller nearest."
        )
