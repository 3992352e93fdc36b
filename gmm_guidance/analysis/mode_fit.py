"""Least squares of a correction along the principal axes of a mode."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


class Points(NamedTuple):
    """Noised samples of one mode and the correction there, ``[s, n, d]``, float64.

    ``divergence`` is that of the correction, ``[s, n]``, if it was asked for.
    """

    x: np.ndarray
    correction: np.ndarray
    divergence: np.ndarray


class Estimate(NamedTuple):
    """An estimate at each level, ``[s]``, and its influence functions, ``[s, n]``.

    The spread of what each sample contributes is the standard error, also of a sum over
    levels, which share their samples.
    """

    value: np.ndarray
    parts: np.ndarray

    def error(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Standard error at each level, or of the sum over levels with weights."""
        parts = self.parts if weights is None else weights @ self.parts
        count = parts.shape[-1]
        # Two degrees of freedom went to the fit.
        return np.sqrt(np.sum(parts**2, axis=-1) / (count - 2) / count)


class Fit(NamedTuple):
    """Least squares along each principal axis; ``[s, d]``, parts ``[s, n, d]``."""

    slopes: np.ndarray
    slope_parts: np.ndarray
    offsets: np.ndarray
    offset_parts: np.ndarray


class Mode(NamedTuple):
    """Mean and principal axes of a mode, and its outward direction.

    Attributes:
        mean: ``[d]``.
        variances: along the principal axes, ``[d]``.
        axes: the axes, in columns, ``[d, d]``.
        outward: unit vector ``[d]``, NaN for a mode at the center.
    """

    mean: np.ndarray
    variances: np.ndarray
    axes: np.ndarray
    outward: np.ndarray

    @classmethod
    def of(cls, data: GaussianMixture, mode: int, center: np.ndarray) -> Mode:
        """One mode of the class."""
        mean = np.asarray(data.mean(mode), np.float64)
        variances, axes = np.linalg.eigh(np.asarray(data.covariance(mode), np.float64))
        away = mean - center
        length = np.linalg.norm(away)
        at_center = length <= 1e-5 * math.sqrt(variances.sum())
        outward = np.full_like(away, np.nan) if at_center else away / length
        return cls(mean, variances, axes, outward)

    @property
    def along(self) -> np.ndarray:
        """Parts of the outward direction along the principal axes, ``[d]``."""
        return self.outward @ self.axes

    @property
    def spread(self) -> float:
        """Standard deviation along the outward direction."""
        return math.sqrt(self.along**2 @ self.variances)

    def whiten(self, x: np.ndarray) -> np.ndarray:
        """Standardized coordinates along the principal axes, ``[..., d]``."""
        return (x - self.mean) @ self.axes / np.sqrt(self.variances)

    def regress(self, x: np.ndarray, values: np.ndarray) -> Fit:
        """Least squares of values on ``x - mean``, ``[s, n, d]`` each."""
        away, values = (x - self.mean) @ self.axes, values @ self.axes
        middle = away.mean(1, keepdims=True)
        power = np.mean((away - middle) ** 2, axis=1, keepdims=True)
        slopes = np.mean((away - middle) * values, axis=1, keepdims=True) / power
        offsets = np.mean(values - slopes * away, axis=1, keepdims=True)
        residual = values - slopes * away - offsets
        slope_parts = (away - middle) * residual / power
        offset_parts = residual - middle * slope_parts
        return Fit(slopes[:, 0], slope_parts, offsets[:, 0], offset_parts)

    def slope(self, fit: Fit) -> Estimate:
        """Of the root mean square width."""
        weight = self.variances / self.variances.sum()
        return Estimate(fit.slopes @ weight, fit.slope_parts @ weight)

    def push(self, fit: Fit) -> Estimate:
        """The outward part at the mean."""
        return Estimate(fit.offsets @ self.along, fit.offset_parts @ self.along)

    def shift(self, fit: Fit, sigmas: np.ndarray) -> Estimate:
        """What the linear flow makes of the push, in standard deviations."""
        reach = np.sqrt(self.variances / (self.variances + sigmas[:, None] ** 2))
        reach = reach * self.along / self.spread
        return Estimate(
            np.einsum("sd,sd->s", fit.offsets, reach),
            np.einsum("snd,sd->sn", fit.offset_parts, reach),
        )
