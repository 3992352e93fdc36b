"""Uncertainty of the mean of repeated measurements."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit


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
    degrees = np.asarray(values).shape[axis] - 1
    half = stdtrit(degrees, 0.5 + 0.5 * level) * error
    return mean - half, mean + half
