"""What became of each mode or class: fractions, shifts and widths."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.metrics._checks import check_labeled
from gmm_guidance.metrics._truth import MAX_ELEMENTS, components, members
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupStatistics:
    """What became of each mode (or class); arrays with one row for each, ``[G]``.

    ``std`` is the truth's root mean square standard deviation over the dimensions.
    Entries without the samples they need are NaN.

    Attributes:
        count: number of samples.
        fraction: ``count`` over the number of samples.
        expected_fraction: what ``fraction`` would be on average for true samples with
            the same labels.
        mean_shift: sample mean minus true mean, ``[G, d]``, in units of the data.
        relative_shift: length of ``mean_shift`` in units of ``std``.
        outward_shift: ``mean_shift`` along the direction from the whole mixture's mean
            to the group's own, in units of ``std``; NaN where the two agree.
        width_ratio: root of the trace of the samples' (unbiased) covariance over that
            of the true one; needs 2 samples. 1 = right, below = too narrow.
    """

    count: np.ndarray
    fraction: np.ndarray
    expected_fraction: np.ndarray
    mean_shift: np.ndarray
    relative_shift: np.ndarray
    outward_shift: np.ndarray
    width_ratio: np.ndarray


def mode_statistics(
    samples: ArrayLike, labels: ArrayLike | None, mixture: GaussianMixture
) -> GroupStatistics:
    """Share, shift and width of every component.

    Each sample counts for the component most responsible for it at zero noise among
    those of its own label. Where components overlap this cuts their tails, so that even
    true samples have ``width_ratio`` below 1: compare with true samples.

    Args:
        samples: array of shape ``[n, d]``.
        labels: requested labels, ``[n]`` or one integer; ``None`` for no condition.
        mixture: the truth.

    Returns:
        Statistics with a row for each of the mixture's ``K`` components.
    """
    x, label = check_labeled(samples, labels, mixture)
    count = mixture.num_components
    chunk = max(1, 16 * MAX_ELEMENTS // count)
    assigned = np.empty(len(x), int)
    for i in range(0, len(x), chunk):
        part = slice(i, i + chunk)
        fractions = mixture.responsibilities(x[part], label=label[part])
        assigned[part] = np.argmax(fractions, axis=1)
    weights, means, covariances = components(mixture, None)
    expected = np.zeros(count)
    for value, number in zip(*np.unique(label, return_counts=True), strict=True):
        member = members(mixture, value)
        expected += np.where(member, weights / weights[member].sum(), 0.0) * number
    return _group_statistics(
        x, assigned, means, covariances, expected / len(x), weights @ means
    )


def class_statistics(
    samples: ArrayLike, labels: ArrayLike, mixture: GaussianMixture
) -> GroupStatistics:
    """Shift and width of every class: ``mode_statistics`` with labels for components.

    Args:
        samples: array of shape ``[n, d]``.
        labels: requested labels, ``[n]`` or one integer, each of an actual class.
        mixture: the truth.

    Returns:
        Statistics with a row for each of the mixture's labels. ``fraction`` equals
        ``expected_fraction``: the labels were given.

    Raises:
        ValueError: if a label is ``None`` or ``num_labels`` (no class).
    """
    x, label = check_labeled(samples, labels, mixture, null_allowed=False)
    means = np.zeros((mixture.num_labels, mixture.dim))
    covariances = np.zeros((mixture.num_labels, mixture.dim, mixture.dim))
    for value in range(mixture.num_labels):
        means[value], covariances[value] = _moments(*components(mixture, value))
    fraction = np.bincount(label, minlength=mixture.num_labels) / len(x)
    weights, centers, _ = components(mixture, None)
    return _group_statistics(x, label, means, covariances, fraction, weights @ centers)


def _moments(
    weights: np.ndarray, means: np.ndarray, covariances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    mean = weights @ means
    offset = means - mean[None]
    covariance = np.einsum("k,kij->ij", weights, covariances)
    return mean, covariance + np.einsum("k,ki,kj->ij", weights, offset, offset)


def _group_statistics(
    x: np.ndarray,
    group: np.ndarray,
    means: np.ndarray,
    covariances: np.ndarray,
    expected_fraction: np.ndarray,
    center: np.ndarray,
) -> GroupStatistics:
    groups, dim = means.shape
    count = np.bincount(group, minlength=groups)
    offset = x - means[group]  # from the true mean: no loss of digits in the squares
    total = np.zeros((groups, dim))
    np.add.at(total, group, offset)
    squares = np.bincount(group, np.sum(offset**2, axis=1), groups)
    outward = means - center[None]
    distance = np.linalg.norm(outward, axis=1)
    trace = np.trace(covariances, axis1=1, axis2=2)
    std = np.sqrt(trace / dim)
    # The center is a float sum: a mode "at" it is off by rounding only.
    has_outward = distance > 1e-4 * std
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = total / count[:, None]
        direction = np.where(has_outward, distance, np.nan)[:, None]
        variance = (squares - count * np.sum(shift**2, axis=1)) / (count - 1)
        width = np.sqrt(np.maximum(variance, 0.0) / trace)
    return GroupStatistics(
        count=count,
        fraction=count / len(x),
        expected_fraction=expected_fraction,
        mean_shift=shift,
        relative_shift=np.linalg.norm(shift, axis=1) / std,
        outward_shift=np.sum(shift * outward / direction, axis=1) / std,
        width_ratio=np.where(count >= 2, width, np.nan),
    )
