"""Wasserstein distances on a line, to the exact mixture or between samples.

With sorted samples ``x_i``, the mixture's distribution function ``F``, its quantile
function ``Q`` and ``L(u) = int_0^u Q``, the part of the mean below quantile ``u``,

    W_2^2 = mean(x^2) - 2 sum_i x_i [L(i/n) - L((i-1)/n)] + E[y^2]               (1)
    W_1   = sum_i |int over u in ((i-1)/n, i/n) of x_i - Q(u), split at F(x_i)|  (2)

``L(F(y))`` is known in closed form at every ``y`` together with its slope, ``Q``. Cubic
interpolation of ``L`` between a few thousand ``y`` is therefore all that these
distances approximate.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.metrics._checks import check_one_label, check_samples
from gmm_guidance.metrics._truth import (
    Line,
    components,
    line_moments,
    line_nodes,
    line_of,
)
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


def wasserstein_1d(
    samples: ArrayLike,
    truth: GaussianMixture | ArrayLike,
    label: int | None = None,
    p: int = 2,
) -> float:
    """Wasserstein distance on a line, to the exact mixture or to other samples.

    Args:
        samples: array of shape ``[n]`` or ``[n, 1]``.
        truth: a mixture of dimension 1, or samples of shape ``[m]`` or ``[m, 1]``.
        label: the mixture's class to compare with; ``None`` or ``num_labels`` for all.
        p: order, 1 or 2.

    Returns:
        ``W_p`` in units of the data. Between samples it is exact. To a mixture it is
        the distance of the empirical distribution to the mixture, without sampling
        noise on the truth's side; the interpolation adds less than 1e-6 of the truth's
        standard deviation.

    Raises:
        ValueError: if ``p`` is not 1 or 2, a label goes with samples as the truth, or
            samples or mixture are not one-dimensional.
    """
    _check_order(p)
    if not isinstance(truth, GaussianMixture):
        _check_no_label(label)
        x = np.sort(check_samples(samples, 1)[:, 0])
        return _sorted_cost(x, np.sort(check_samples(truth, 1)[:, 0]), p) ** (1 / p)
    line = line_of(truth, label, "wasserstein_1d")
    x = np.sort(check_samples(samples, 1)[:, 0])
    return _line_cost(x, line, p, 16384) ** (1 / p)


def sliced_wasserstein(
    samples: ArrayLike,
    truth: GaussianMixture | ArrayLike,
    label: int | None = None,
    num_directions: int = 64,
    p: int = 2,
) -> float:
    """Sliced Wasserstein distance: the mean of ``W_p^p`` over projections, rooted.

    A mixture's projection is a mixture on the line, so the truth has no sampling noise.
    The directions are fixed: in two dimensions equally spaced over the half circle,
    above that the same random ones in every call. On a line it is ``wasserstein_1d``.

    Args:
        samples: array of shape ``[n, d]``.
        truth: a mixture of dimension ``d``, or samples of shape ``[m, d]``.
        label: the mixture's class to compare with; ``None`` or ``num_labels`` for all.
        num_directions: number of projections, at least 1.
        p: order, 1 or 2.

    Returns:
        The distance in units of the data; at most the true Wasserstein distance.

    Raises:
        ValueError: if ``p`` is not 1 or 2, ``num_directions`` is below 1, a label goes
            with samples as the truth, or the dimensions differ.
    """
    _check_order(p)
    if num_directions < 1:
        raise ValueError(f"num_directions must be at least 1, got {num_directions}.")
    x = check_samples(
        samples, truth.dim if isinstance(truth, GaussianMixture) else None
    )
    dim = x.shape[1]
    if dim == 1:
        return wasserstein_1d(x, truth, label, p)
    directions = _directions(num_directions, dim)
    projected = np.sort(directions @ x.T, axis=1)
    if isinstance(truth, GaussianMixture):
        weights, means, covariances = components(truth, check_one_label(label, truth))
        along = directions @ means.T
        turned = np.tensordot(directions, covariances, axes=(1, 1))  # [a, K, d]
        stds = np.sqrt(np.einsum("akj,aj->ak", turned, directions))
        costs = [
            _line_cost(row, Line(weights, m, s), p, 2048)
            for row, m, s in zip(projected, along, stds, strict=True)
        ]
    else:
        _check_no_label(label)
        others = np.sort(directions @ check_samples(truth, dim).T, axis=1)
        costs = [
            _sorted_cost(row, other, p)
            for row, other in zip(projected, others, strict=True)
        ]
    return float(np.mean(costs)) ** (1 / p)


def _directions(count: int, dim: int) -> np.ndarray:
    """Unit vectors ``[count, dim]``, the same in every call."""
    if dim == 2:
        angles = math.pi * np.arange(count) / count
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    normal = np.random.default_rng(0).standard_normal((count, dim))
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)


def _line_cost(x: np.ndarray, line: Line, p: int, count: int) -> float:
    """``W_p^p`` of sorted samples to a mixture on the line: Eq. 1 and 2."""
    # Differences of large numbers lose digits: measure from the mixture's mean.
    center = line.weights @ line.means
    line = Line(line.weights, line.means - center, line.stds)
    x = x - center
    n = len(x)
    nodes = line_nodes(line, count)
    lower, _, partial = line_moments(line, nodes)
    edges = np.arange(n + 1) / n
    at_edges = _interpolate(edges, lower, partial, nodes)
    at_edges[0], at_edges[-1] = 0.0, 0.0
    if p == 2:
        second = line.weights @ (line.means**2 + line.stds**2)
        cost = np.mean(x**2) - 2 * x @ np.diff(at_edges) + second
    else:
        split = np.clip(line_moments(line, x)[0], edges[:-1], edges[1:])
        at_split = _interpolate(split, lower, partial, nodes)
        below = x * (split - edges[:-1]) - (at_split - at_edges[:-1])
        above = (at_edges[1:] - at_split) - x * (edges[1:] - split)
        cost = np.sum(below + above)
    return max(float(cost), 0.0)


def _interpolate(
    u: np.ndarray, nodes: np.ndarray, values: np.ndarray, slopes: np.ndarray
) -> np.ndarray:
    """Cubic Hermite interpolation; where nodes coincide the last one counts."""
    cell = np.searchsorted(nodes, u, "right") - 1
    last = np.searchsorted(nodes, nodes[-1]) - 1  # last cell of positive width
    cell = np.clip(cell, 0, max(last, 0))
    width = nodes[cell + 1] - nodes[cell]
    t = np.clip((u - nodes[cell]) / width, 0.0, 1.0)
    rise = values[cell + 1] - values[cell]
    left = width * slopes[cell] - rise
    right = rise - width * slopes[cell + 1]
    return values[cell] + t * rise + t * (1 - t) * ((1 - t) * left + t * right)


def _sorted_cost(x: np.ndarray, y: np.ndarray, p: int) -> float:
    """``W_p^p`` between two sorted samples, of any sizes."""
    if len(x) == len(y):
        return float(np.mean(np.abs(x - y) ** p))
    # Integer breakpoints of both quantile functions, in units of 1 / (n m).
    n, m = len(x), len(y)
    edges = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    left = edges[:-1]
    gaps = np.abs(x[left // m] - y[left // n]) ** p
    return float(gaps @ np.diff(edges) / (n * m))


def _check_no_label(label: int | None) -> None:
    if label is not None:
        raise ValueError(
            f"label chooses a class of a mixture; with samples as the truth it must be "
            f"None, got {label}."
        )


def _check_order(p: int) -> None:
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}.")
