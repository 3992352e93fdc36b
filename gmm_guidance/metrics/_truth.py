"""The truth on the host, in float64: a mixture's components, and mixtures on a line.

With ``z_k = (y - m_k) / s_k`` a mixture on a line has the distribution function
``F(y) = sum_k w_k Phi(z_k)`` and the partial mean ``int_-inf^y t dF(t) = sum_k w_k
[m_k Phi(z_k) - s_k phi(z_k)]``, both known at every ``y``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from gmm_guidance.metrics._checks import check_one_label
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture

MAX_ELEMENTS = 1 << 20  # of an intermediate array: stays in cache, bounds the memory
_TAIL = 8.5  # standard deviations beyond which float64 holds no more of a Gaussian


def members(mixture: GaussianMixture, label: int | None) -> np.ndarray:
    """Which components a label (or none) admits, booleans ``[K]``."""
    every = label is None or label == mixture.num_labels
    return (mixture.labels == label) | every


def components(
    mixture: GaussianMixture, label: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights ``[K]`` (normalized), means ``[K, d]``, covariances ``[K, d, d]``."""
    own = members(mixture, label)
    weights = np.asarray(mixture.weights, np.float64)[own]
    means = np.asarray(mixture.means, np.float64)[own]
    covariances = np.asarray(mixture.covariances, np.float64)[own]
    return weights / weights.sum(), means, covariances


class Line(NamedTuple):
    """Components of a one-dimensional mixture: arrays of shape ``[K]``, float64."""

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray


def line_of(mixture: GaussianMixture, label: int | None, what: str) -> Line:
    """A mixture of dimension 1, or one class of it; ``what`` asks for it."""
    if mixture.dim != 1:
        raise ValueError(
            f"{what} needs a mixture of dimension 1, got dimension {mixture.dim}. Use "
            f"sliced_wasserstein or energy_distance above one dimension."
        )
    weights, means, covariances = components(mixture, check_one_label(label, mixture))
    return Line(weights, means[:, 0], np.sqrt(covariances[:, 0, 0]))


def line_nodes(line: Line, count: int) -> np.ndarray:
    """Increasing points, dense wherever the mixture has mass, that hold all of it."""
    low = (line.means - _TAIL * line.stds).min()
    high = (line.means + _TAIL * line.stds).max()
    nodes = np.linspace(low, high, count)
    local = 2 * count // len(line.means)
    if local >= 64:  # few components, perhaps narrow ones: resolve each by itself
        offsets = np.linspace(-_TAIL, _TAIL, local)
        own = line.means[:, None] + line.stds[:, None] * offsets[None]
        nodes = np.unique(np.concatenate([nodes, own.reshape(-1)]))
    return nodes


def line_moments(
    line: Line, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At increasing points: F, its density, and ``int_-inf^y t dF(t)``; each ``[n]``.

    A component is evaluated only at the points within ``_TAIL`` of its standard
    deviations; at those above it has just its whole weight.
    """
    n = len(points)
    results = np.zeros((3, n))
    steps = np.zeros((2, n + 1))
    chunk = max(1, MAX_ELEMENTS // max(n, 1))
    for first in range(0, len(line.weights), chunk):
        w, m, s = (a[first : first + chunk] for a in line)
        start = np.searchsorted(points, m - _TAIL * s)
        stop = np.searchsorted(points, m + _TAIL * s, "right")
        steps[0] += np.bincount(stop, w, n + 1)
        steps[1] += np.bincount(stop, w * m, n + 1)
        # All (component, point) pairs within reach, one after another.
        width = stop - start
        component = np.repeat(np.arange(len(w)), width)
        offset = np.repeat(start - (np.cumsum(width) - width), width)
        index = np.arange(len(component)) + offset
        w, m, s = w[component], m[component], s[component]
        z = (points[index] - m) / s
        upper, density = ndtr(z), np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        results[0] += np.bincount(index, w * upper, n)
        results[1] += np.bincount(index, w * density / s, n)
        results[2] += np.bincount(index, w * (m * upper - s * density), n)
    results[[0, 2]] += np.cumsum(steps, axis=1)[:, :-1]
    return results[0], results[1], results[2]
