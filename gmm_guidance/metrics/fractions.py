"""Fractions of samples that are where they should not be."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.metrics._checks import check_labeled
from gmm_guidance.metrics._truth import MAX_ELEMENTS, components
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


def outside_fraction(
    samples: ArrayLike,
    labels: ArrayLike | None,
    mixture: GaussianMixture,
    num_std: float = 3.0,
) -> float:
    """Fraction of samples far from every component of their own label.

    Args:
        samples: array of shape ``[n, d]``.
        labels: requested labels, ``[n]`` or one integer; ``None`` for no condition.
        mixture: the truth.
        num_std: how far, in standard deviations (Mahalanobis distance), > 0.

    Returns:
        A fraction in [0, 1]. True samples of one Gaussian give 0.0027 in one dimension
        and ``exp(-4.5)`` = 0.011 in two at the default.

    Raises:
        ValueError: if ``num_std`` is not positive.
    """
    if not num_std > 0:
        raise ValueError(f"num_std must be positive, got {num_std}.")
    x, label = check_labeled(samples, labels, mixture)
    outside = 0
    for value in np.unique(label):
        _, means, covariances = components(mixture, int(value))
        # |A (x - m)|^2 with A^T A the inverse covariance, as one matrix product.
        whitening = np.linalg.inv(np.linalg.cholesky(covariances))
        count, dim = means.shape
        matrix = whitening.reshape(count * dim, dim).T
        shift = np.einsum("kij,kj->ki", whitening, means).reshape(-1)
        own = x[label == value]
        for rows in np.array_split(own, -(-own.shape[0] * len(shift) // MAX_ELEMENTS)):
            squares = (rows @ matrix - shift[None]) ** 2
            nearest = squares.reshape(len(rows), count, dim).sum(axis=2).min(axis=1)
            outside += int(np.sum(nearest > num_std**2))
    return outside / len(x)


def wrong_mode_fraction(
    samples: ArrayLike, labels: ArrayLike, mixture: GaussianMixture
) -> float:
    """Fraction of samples whose most probable label is not the requested one.

    Args:
        samples: array of shape ``[n, d]``.
        labels: requested labels, ``[n]`` or one integer, each of an actual class.
        mixture: the truth, which gives ``p(label | x)`` at zero noise.

    Returns:
        A fraction in [0, 1]; overlapping classes make it positive for true samples too.

    Raises:
        ValueError: if a label is ``None`` or ``num_labels`` (no class).
    """
    x, label = check_labeled(samples, labels, mixture, null_allowed=False)
    posterior = np.asarray(mixture.label_posterior(x))
    return float(np.mean(posterior.argmax(axis=1) != label))
