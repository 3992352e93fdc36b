"""Distribution and quantile function of a mixture on a line."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.metrics._truth import Line, line_moments, line_nodes, line_of
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


def cdf(mixture: GaussianMixture, x: ArrayLike, label: int | None = None) -> np.ndarray:
    """Distribution function of a one-dimensional mixture.

    Args:
        mixture: a mixture of dimension 1.
        x: points of any shape.
        label: restrict to one class; ``None`` or ``num_labels`` for all.

    Returns:
        Probabilities of ``x``'s shape, float64, to an absolute error of 1e-14.

    Raises:
        ValueError: if the mixture is not one-dimensional or the label out of range.
    """
    line = line_of(mixture, label, "cdf")
    x = np.asarray(x, np.float64)
    flat = x.reshape(-1)
    order = np.argsort(flat)
    values = np.empty_like(flat)
    values[order] = line_moments(line, flat[order])[0]
    return values.reshape(x.shape)


def quantile(
    mixture: GaussianMixture, u: ArrayLike, label: int | None = None
) -> np.ndarray:
    """Quantile function of a one-dimensional mixture, the inverse of ``cdf``.

    Args:
        mixture: a mixture of dimension 1.
        u: probabilities in [0, 1], of any shape.
        label: restrict to one class; ``None`` or ``num_labels`` for all.

    Returns:
        Quantiles of ``u``'s shape, float64; ``-inf`` at 0 and ``inf`` at 1. They solve
        ``cdf(q) = u`` to 1e-14, which is an error of about 1e-14 over the density.

    Raises:
        ValueError: if a probability is outside [0, 1], the mixture is not
            one-dimensional or the label out of range.
    """
    line = line_of(mixture, label, "quantile")
    u = np.asarray(u, np.float64)
    good = (u >= 0) & (u <= 1)
    if not good.all():
        raise ValueError(f"u must lie in [0, 1], got {u[~good][:5]}.")
    flat = u.reshape(-1)
    order = np.argsort(flat)
    values = np.empty_like(flat)
    values[order] = _line_quantile(line, flat[order])
    return values.reshape(u.shape)


def _line_quantile(line: Line, u: np.ndarray) -> np.ndarray:
    """By Newton's method, kept inside a bracket by bisection; ``u`` increases."""
    nodes = line_nodes(line, 2048)
    at_nodes = line_moments(line, nodes)[0]
    cell = np.clip(np.searchsorted(at_nodes, u, "right") - 1, 0, len(nodes) - 2)
    low, high = nodes[cell], nodes[cell + 1]
    x = 0.5 * (low + high)
    resolution = 1e-15 * np.abs(nodes[[0, -1]]).max()
    for _ in range(100):
        value, density, _ = line_moments(line, x)
        low, high = np.where(value < u, x, low), np.where(value < u, high, x)
        # Two roundings of a probability: beyond that Newton's method only dithers.
        done = (np.abs(value - u) <= 4e-16) | (high - low <= resolution)
        if done.all():
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            step = x - (value - u) / density
        inside = (step > low) & (step < high)
        new = np.where(inside, step, 0.5 * (low + high))
        # Increasing u gives increasing x, which line_moments needs, up to rounding.
        x = np.maximum.accumulate(np.where(done, x, new))
    return np.where(u <= 0, -np.inf, np.where(u >= 1, np.inf, x))
