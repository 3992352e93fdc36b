"""Fréchet distance between the Gaussians fitted to two sets of features."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.metrics._checks import check_samples


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureMoments:
    """Mean and covariance of a set of features: all that ``frechet_distance`` needs.

    Made by ``feature_moments``, or from statistics that others published.

    Attributes:
        mean: array of shape ``[d]``, in units of the features; kept in float64.
        covariance: unbiased covariance, ``[d, d]``, as of ``np.cov(rowvar=False)``. One
            feature alone has none: NaN.
        count: number of features, at least 1.

    Raises:
        ValueError: if the shapes do not fit, the count is no positive integer, or, for
            2 features and more, a value is not finite or the covariance is not
            symmetric.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    def __post_init__(self) -> None:
        mean = np.asarray(self.mean, np.float64)
        covariance = np.asarray(self.covariance, np.float64)
        if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not mean.size:
            raise ValueError(
                f"mean and covariance must have shapes [d] and [d, d], got "
                f"{mean.shape} and {covariance.shape}."
            )
        if not isinstance(self.count, (int, np.integer)) or self.count < 1:
            raise ValueError(
                f"count must be an integer of at least 1, got {self.count}."
            )
        known = self.count > 1
        if not np.isfinite(mean).all() or (known and not np.isfinite(covariance).all()):
            raise ValueError(
                "mean and covariance must be finite, got NaN or infinity. Features of "
                "more than about 1e150 overflow when squared: rescale them."
            )
        if known:
            asymmetry = np.abs(covariance - covariance.T).max()
            # Others' statistics may have been computed in single precision.
            if asymmetry > 1e-5 * np.abs(covariance).max():
                raise ValueError(
                    f"covariance must be symmetric, but differs from its transpose by "
                    f"up to {asymmetry:.3g}."
                )
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)
        object.__setattr__(self, "count", int(self.count))

    def merge(self, other: FeatureMoments) -> FeatureMoments:
        """Moments of both sets together, equal to those of the whole up to rounding.

        A stream of any length needs the memory of one chunk and one covariance:
        ``moments = moments.merge(feature_moments(chunk))``. A chunk may be one feature.

        Args:
            other: moments of further features in the same space.

        Returns:
            Moments of ``count + other.count`` features.

        Raises:
            ValueError: if the dimensions differ.

        References:
            Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for
            computing sample variances (1979), here for covariances.
        """
        _check_same_dimension(self, other)
        count = self.count + other.count
        difference = other.mean - self.mean
        between = (self.count / count * other.count) * np.outer(difference, difference)
        scatter = self._scatter() + other._scatter() + between
        return FeatureMoments(
            mean=self.mean + (other.count / count) * difference,
            covariance=scatter / (count - 1),
            count=count,
        )

    def _scatter(self) -> np.ndarray:
        """Sum of outer products of deviations from the mean: 0 for one feature."""
        if self.count == 1:
            return np.zeros_like(self.covariance)
        return (self.count - 1) * self.covariance


def feature_moments(features: ArrayLike) -> FeatureMoments:
    """Mean and unbiased covariance of features, in float64.

    Args:
        features: array of shape ``[n, d]``, or ``[n]`` on a line.

    Returns:
        ``FeatureMoments``. From one feature the covariance is NaN: good for merging
        only.

    Raises:
        ValueError: if there is no feature, or one is not finite.
    """
    x = check_samples(features)
    mean = x.mean(axis=0)
    centered = x - mean
    dim = x.shape[1]
    return FeatureMoments(
        mean=mean,
        covariance=(
            centered.T @ centered / (len(x) - 1)
            if len(x) > 1
            else np.full((dim, dim), np.nan)
        ),
        count=len(x),
    )


def frechet_distance(
    a: ArrayLike | FeatureMoments, b: ArrayLike | FeatureMoments
) -> float:
    """Squared Fréchet distance between Gaussians with the moments of two sets.

    ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``, the squared W2 of the two
    Gaussians. It is called FID if, and only if, the features are those of the published
    Inception network; the square is customary, so a shift by ``t`` gives ``t^2``.

    **Biased upwards**: positive for two sets of the same distribution, by an amount
    that falls about as ``1 / n`` and depends on the distribution. Compare sets of equal
    size only, against the same reference, and with the value for as many true samples.
    Only means and covariances enter: equal moments are at distance 0.

    Covariances may be singular, as with fewer features than dimensions.

    Args:
        a: features of shape ``[n, d]`` (``[n]`` on a line), or ``FeatureMoments``.
        b: the same in the same space; the order does not matter.

    Returns:
        The squared distance in squared units of the features, 0 or more. It is a
        difference of traces: values below about 1e-12 of these are rounding.

    Raises:
        ValueError: if the dimensions differ, a set has fewer than 2 features, a value
            is not finite, or a covariance is not positive semidefinite.

    References:
        Heusel et al., GANs trained by a two time-scale update rule converge to a local
        Nash equilibrium, arXiv:1706.08500, eq. 6; for Gaussians Dowson and Landau
        (1982). Of the bias: Chong and Forsyth, arXiv:1911.07023.
    """
    one, two = _moments(a), _moments(b)
    _check_same_dimension(one, two)
    # tr (S_a S_b)^(1/2) = tr (A S_b A)^(1/2) with A the symmetric root of S_a, and the
    # eigenvalues of A S_b A are the squared singular values of F_a^T F_b for any
    # factors S = F F^T. Singular values have the error of the matrix; roots of
    # eigenvalues would turn an error of 1e-16 in one that should be 0 into 1e-8.
    product = _factor(one).T @ _factor(two)
    trace_of_root = np.linalg.svd(product, compute_uv=False).sum()
    traces = np.trace(one.covariance) + np.trace(two.covariance)
    shift = np.sum((one.mean - two.mean) ** 2)
    return max(0.0, float(shift + (traces - 2 * trace_of_root)))


def _moments(value: ArrayLike | FeatureMoments) -> FeatureMoments:
    moments = value if isinstance(value, FeatureMoments) else feature_moments(value)
    if moments.count < 2:
        raise ValueError(
            f"a covariance needs at least 2 features, got {moments.count}. Merge with "
            f"the moments of more."
        )
    return moments


def _check_same_dimension(a: FeatureMoments, b: FeatureMoments) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"both sets must have features of one dimension, got {len(a.mean)} and "
            f"{len(b.mean)}. Use the same feature extractor for both."
        )


def _factor(moments: FeatureMoments) -> np.ndarray:
    """``F`` of shape ``[d, rank]`` with ``covariance = F F^T``."""
    covariance = moments.covariance
    values, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
    largest = np.abs(values).max()
    if values[0] < -1e-3 * largest:
        raise ValueError(
            f"covariance must be positive semidefinite, got eigenvalues from "
            f"{values[0]:.3g} to {values[-1]:.3g}."
        )
    # What the rounding of the largest eigenvalue leaves in null directions: as in
    # np.linalg.matrix_rank.
    kept = values > len(values) * np.finfo(np.float64).eps * largest
    return vectors[:, kept] * np.sqrt(values[kept])
