"""Uncertainty of the mean of repeated measurements."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def mean_and_standard_error(
    values: ArrayLike, axis: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of independent repeats and its standard error, ``std / sqrt(n)``.

    Args:
        values: array with ``n >= 2`` repeats along ``axis``.
        axis: the axis of the repeats.

    Returns:
        Mean and standard error (unbiased variance), each of the other axes' shape.

    Raises:
        ValueError: if there are fewer than 2 repeats.
    """
    array = np.asarray(values, np.float64)
    n = array.shape[axis] if array.ndim else 1
    if n < 2:
        raise ValueError(
            f"a standard error needs at least 2 values along axis {axis}, got {n}. "
            f"Repeat the measurement with other seeds."
        )
    return array.mean(axis=axis), array.std(axis=axis, ddof=1) / math.sqrt(n)


def confidence_interval(
    values: ArrayLike, level: float = 0.95, axis: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence interval of the mean of independent, roughly normal repeats.

    Args:
        values: array with ``n >= 2`` repeats along ``axis``.
        level: coverage, in (0, 1).
        axis: the axis of the repeats.

    Returns:
        Lower and upper end, by Student's t with ``n - 1`` degrees of freedom.

    Raises:
        ValueError: if ``level`` is not in (0, 1) or there are fewer than 2 repeats.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}.")
    mean, error = mean_and_standard_error(values, axis)
    half = _student_t(level, np.asarray(values).shape[axis] - 1) * error
    return mean - half, mean + half


def _student_t(level: float, degrees: int) -> float:
    """The ``t`` with ``P(|T| <= t) = level``, by bisection on the angle.

    With ``theta = atan(t / sqrt(degrees))`` that probability is a finite sum
    (Abramowitz and Stegun 26.7.3 and 26.7.4).
    """
    odd = degrees % 2
    j = np.arange(1, (degrees - 1) // 2 + (1 - odd)) if degrees > 2 else np.arange(0)
    ratios = 2 * j / (2 * j + 1) if odd else (2 * j - 1) / (2 * j)
    low, high = 0.0, 0.5 * math.pi
    for _ in range(100):
        theta = 0.5 * (low + high)
        sine, cosine = math.sin(theta), math.cos(theta)
        series = 1.0 + np.cumprod(ratios * cosine**2).sum()
        if odd:
            tail = sine * cosine * series if degrees > 1 else 0.0
            probability = (theta + tail) * 2 / math.pi
        else:
            probability = sine * series
        low, high = (theta, high) if probability < level else (low, theta)
    return math.sqrt(degrees) * math.tan(0.5 * (low + high))
