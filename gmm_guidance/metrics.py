"""Distances and statistics of samples beside the mixture they should come from.

The truth enters in closed form wherever there is one, so its side has no sampling
noise: Wasserstein distances use the exact distribution function of the (projected)
mixture. What remains is the noise of the samples themselves, which biases distances
upwards: print ``truth_floor`` next to every number.

Samples are arrays of shape ``[n, d]``, or ``[n]`` on a line. Labels are ``[n]``
integers or one integer for all; ``None`` and ``mixture.num_labels`` mean no condition.
The functions run on the host in float64, except for what the mixture computes itself
and ``energy_distance`` above one dimension. All raise ``ValueError`` for samples that
are empty, of the wrong shape or not finite, and for labels out of range.

With sorted samples ``x_i``, the mixture's distribution function ``F``, its quantile
function ``Q`` and ``L(u) = int_0^u Q``, the part of the mean below quantile ``u``,

    W_2^2 = mean(x^2) - 2 sum_i x_i [L(i/n) - L((i-1)/n)] + E[y^2]               (1)
    W_1   = sum_i |int over u in ((i-1)/n, i/n) of x_i - Q(u), split at F(x_i)|  (2)

``L(F(y)) = sum_k w_k [m_k Phi(z_k) - s_k phi(z_k)]``, ``z_k = (y - m_k) / s_k``, is
known at every ``y`` together with its slope, ``Q``. Cubic interpolation of ``L``
between a few thousand ``y`` is therefore all that these distances approximate.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.mixture import GaussianMixture

_TAIL = 8.5  # standard deviations beyond which float64 holds no more of a Gaussian
_MAX_ELEMENTS = 1 << 20  # of an intermediate array: stays in cache, bounds the memory
_TILE = 1024  # rows of a block of pairwise distances: one compilation for every n

# -- the truth on a line -----------------------------------------------------------


class _Line(NamedTuple):
    """Components of a one-dimensional mixture: arrays of shape ``[K]``, float64."""

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray


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
    line = _line(mixture, label, "cdf")
    x = np.asarray(x, np.float64)
    flat = x.reshape(-1)
    order = np.argsort(flat)
    values = np.empty_like(flat)
    values[order] = _line_moments(line, flat[order])[0]
    return values.reshape(x.shape)


def quantile(
    mixture: GaussianMixture, u: ArrayLike, label: int | None = None
) -> np.ndarray:
    """Quantile function of a one-dimensional mixture, the inverse of ``cdf``.

    Newton's method, kept inside a bracket by bisection.

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
    line = _line(mixture, label, "quantile")
    u = np.asarray(u, np.float64)
    if not ((u >= 0) & (u <= 1)).all():
        bad = u[~((u >= 0) & (u <= 1))]
        raise ValueError(f"u must lie in [0, 1], got {bad[:5]}.")
    flat = u.reshape(-1)
    order = np.argsort(flat)
    values = np.empty_like(flat)
    values[order] = _line_quantile(line, flat[order])
    return values.reshape(u.shape)


def _line_quantile(line: _Line, u: np.ndarray) -> np.ndarray:
    nodes = _nodes(line, 2048)
    at_nodes = _line_moments(line, nodes)[0]
    cell = np.clip(np.searchsorted(at_nodes, u, "right") - 1, 0, len(nodes) - 2)
    low, high = nodes[cell], nodes[cell + 1]
    x = 0.5 * (low + high)
    resolution = 1e-15 * np.abs(nodes[[0, -1]]).max()
    for _ in range(100):
        value, density, _ = _line_moments(line, x)
        low, high = np.where(value < u, x, low), np.where(value < u, high, x)
        # Two roundings of a probability: beyond that Newton's method only dithers.
        done = (np.abs(value - u) <= 4e-16) | (high - low <= resolution)
        if done.all():
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            step = x - (value - u) / density
        inside = (step > low) & (step < high)
        new = np.where(inside, step, 0.5 * (low + high))
        # Increasing u gives increasing x, which _line_moments needs, up to rounding.
        x = np.maximum.accumulate(np.where(done, x, new))
    return np.where(u <= 0, -np.inf, np.where(u >= 1, np.inf, x))


def _components(
    mixture: GaussianMixture, label: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights ``[K]`` (normalised), means ``[K, d]``, covariances ``[K, d, d]``."""
    members = np.ones(mixture.num_components, bool)
    if label is not None and label != mixture.num_labels:
        members = mixture.labels == label
    weights = np.asarray(mixture.weights, np.float64)[members]
    means = np.asarray(mixture.means, np.float64)[members]
    covariances = np.asarray(mixture.covariances, np.float64)[members]
    return weights / weights.sum(), means, covariances


def _line(mixture: GaussianMixture, label: int | None, what: str) -> _Line:
    if mixture.dim != 1:
        raise ValueError(
            f"{what} needs a mixture of dimension 1, got dimension {mixture.dim}. Use "
            f"sliced_wasserstein or energy_distance above one dimension."
        )
    weights, means, covariances = _components(mixture, _one_label(label, mixture))
    return _Line(weights, means[:, 0], np.sqrt(covariances[:, 0, 0]))


def _nodes(line: _Line, count: int) -> np.ndarray:
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


def _line_moments(
    line: _Line, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At increasing points: F, its density, and ``int_-inf^y t dF(t)``; each ``[n]``.

    A component is evaluated only at the points within ``_TAIL`` of its standard
    deviations; at those above it has just its whole weight.
    """
    n = len(points)
    results = np.zeros((3, n))
    steps = np.zeros((2, n + 1))
    chunk = max(1, _MAX_ELEMENTS // max(n, 1))
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
        upper, density = _normal((points[index] - m) / s)
        results[0] += np.bincount(index, w * upper, n)
        results[1] += np.bincount(index, w * density / s, n)
        results[2] += np.bincount(index, w * (m * upper - s * density), n)
    results[[0, 2]] += np.cumsum(steps, axis=1)[:, :-1]
    return results[0], results[1], results[2]


@functools.cache
def _normal_table() -> tuple[np.ndarray, np.ndarray]:
    z = np.arange(-9 * 64, 9 * 64 + 1) / 64
    values = [0.5 * math.erfc(-v / math.sqrt(2)) for v in z]
    return np.array(values), np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


def _normal(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normal distribution function and density for ``|z| <= 9``, to 1e-14.

    NumPy has no ``erfc``. A Taylor step from a table of ``math.erfc`` at spacing 1/64
    is exact to rounding: the first term left out is below ``(1/128)^7 / 7! * 230``.
    """
    values, densities = _normal_table()
    index = np.rint(z * 64).astype(np.intp)
    node = index / 64
    index += 9 * 64
    h = z - node
    # Derivatives of the density are He_n(node) * (-1)^n * density.
    n2 = node * node
    d1, d2, d3 = -node, n2 - 1, node * (3 - n2)
    d4, d5 = n2 * (n2 - 6) + 3, node * (n2 * (10 - n2) - 15)
    series = d4 / 120 + h * d5 / 720
    series = h * (1 + h * (d1 / 2 + h * (d2 / 6 + h * (d3 / 24 + h * series))))
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return values[index] + densities[index] * series, density


# -- distances ---------------------------------------------------------------------


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
        that of the empirical law to the law itself, without sampling noise on the
        truth's side; the interpolation adds less than 1e-6 of the truth's standard
        deviation.

    Raises:
        ValueError: if ``p`` is not 1 or 2, a label goes with samples as the truth, or
            samples or mixture are not one-dimensional.
    """
    _check_order(p)
    if not isinstance(truth, GaussianMixture):
        _no_label(label)
        x = np.sort(_check_samples(samples, 1)[:, 0])
        return _sorted_cost(x, np.sort(_check_samples(truth, 1)[:, 0]), p) ** (1 / p)
    line = _line(truth, label, "wasserstein_1d")
    x = np.sort(_check_samples(samples, 1)[:, 0])
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
    x = _check_samples(
        samples, truth.dim if isinstance(truth, GaussianMixture) else None
    )
    dim = x.shape[1]
    if dim == 1:
        return wasserstein_1d(x, truth, label, p)
    directions = _directions(num_directions, dim)
    projected = np.sort(directions @ x.T, axis=1)
    if isinstance(truth, GaussianMixture):
        weights, means, covariances = _components(truth, _one_label(label, truth))
        along = directions @ means.T
        turned = np.tensordot(directions, covariances, axes=(1, 1))  # [a, K, d]
        stds = np.sqrt(np.einsum("akj,aj->ak", turned, directions))
        costs = [
            _line_cost(row, _Line(weights, m, s), p, 2048)
            for row, m, s in zip(projected, along, stds, strict=True)
        ]
    else:
        _no_label(label)
        others = np.sort(directions @ _check_samples(truth, dim).T, axis=1)
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


def _line_cost(x: np.ndarray, line: _Line, p: int, count: int) -> float:
    """``W_p^p`` of sorted samples to a mixture on the line: Eq. 1 and 2."""
    # Differences of large numbers lose digits: measure from the mixture's mean.
    centre = line.weights @ line.means
    line = _Line(line.weights, line.means - centre, line.stds)
    x = x - centre
    n = len(x)
    nodes = _nodes(line, count)
    lower, _, partial = _line_moments(line, nodes)
    edges = np.arange(n + 1) / n
    at_edges = _interpolate(edges, lower, partial, nodes)
    at_edges[0], at_edges[-1] = 0.0, 0.0
    if p == 2:
        second = line.weights @ (line.means**2 + line.stds**2)
        cost = np.mean(x**2) - 2 * x @ np.diff(at_edges) + second
    else:
        split = np.clip(_line_moments(line, x)[0], edges[:-1], edges[1:])
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


def energy_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Squared energy distance ``2 E|X - Y| - E|X - X'| - E|Y - Y'|``, unbiased.

    Pairs of a sample with itself are left out, so the estimate has mean zero when both
    laws agree **and may be negative**: do not take its root. The time is quadratic in
    the number of samples (n log n on a line).

    Args:
        x: samples of shape ``[n, d]`` or ``[n]``, ``n`` at least 2.
        y: samples of shape ``[m, d]`` or ``[m]``, ``m`` at least 2.

    Returns:
        The estimate, in units of the data. Above one dimension the distances are
        float32, summed in float64: the rounding error is about 1e-7 of their mean.

    Raises:
        ValueError: if a sample has fewer than 2 points or the dimensions differ.

    References:
        Szekely and Rizzo, Energy statistics (2013). ``scipy.stats.energy_distance`` is
        the root of the biased version.
    """
    a = _check_samples(x, least=2)
    b = _check_samples(y, a.shape[1], least=2)
    n, m = len(a), len(b)
    if a.shape[1] == 1:
        within_a, within_b = _line_pairs(a), _line_pairs(b)
        across = _line_pairs(np.concatenate([a, b])) - within_a - within_b
    else:
        # The differences matter, not the place: centring keeps float32 exact.
        centre = b.mean(axis=0)
        a, b = a - centre, b - centre
        within_a, within_b = _pair_sum(a, None), _pair_sum(b, None)
        across = _pair_sum(a, b)
    return float(
        2 * across / (n * m)
        - 2 * within_a / (n * (n - 1))
        - 2 * within_b / (m * (m - 1))
    )


def _line_pairs(x: np.ndarray) -> float:
    """Sum of distances over unordered pairs of points ``[n, 1]``."""
    x = np.sort(x[:, 0]) - x.mean()
    n = len(x)
    return float(x @ (2.0 * np.arange(n) - (n - 1)))


def _pair_sum(a: np.ndarray, b: np.ndarray | None) -> float:
    """Sum of distances over all pairs, or over the unordered pairs of ``a`` alone."""
    tiles_a = _tiles(a)
    tiles_b = tiles_a if b is None else _tiles(b)
    sums = []
    for i, (rows, row_weights) in enumerate(tiles_a):
        for columns, weights in tiles_b if b is not None else tiles_b[i:]:
            same = rows is columns
            sums.append((same, row_weights, _tile_row_sums(rows, columns, weights)))
    total = 0.0
    for same, row_weights, row_sums in sums:  # converted after all are under way
        value = np.asarray(row_sums, np.float64) @ row_weights
        total += 0.5 * value if same else value
    return float(total)


def _tiles(x: np.ndarray) -> list[tuple[jax.Array, np.ndarray]]:
    count = -(-len(x) // _TILE)
    padded = np.zeros((count * _TILE, x.shape[1]), np.float32)
    padded[: len(x)] = x
    weights = (np.arange(count * _TILE) < len(x)).astype(np.float32)
    return [
        (jnp.asarray(padded[i : i + _TILE]), weights[i : i + _TILE])
        for i in range(0, count * _TILE, _TILE)
    ]


@jax.jit
def _tile_row_sums(
    rows: jax.Array, columns: jax.Array, weights: jax.Array
) -> jax.Array:
    squares = jnp.zeros((len(rows), len(columns)), rows.dtype)
    for i in range(rows.shape[1]):
        squares += (rows[:, i][:, None] - columns[:, i][None, :]) ** 2
    return jnp.sum(jnp.sqrt(squares) * weights[None, :], axis=1)


# -- statistics of modes and classes -----------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupStatistics:
    """What became of each mode (or class); arrays with one row for each, ``[G]``.

    ``std`` is the truth's root mean square standard deviation over the dimensions.
    Entries without the samples they need are NaN.

    Attributes:
        count: number of samples.
        share: ``count`` over the number of samples.
        expected_share: what ``share`` would be on average for true samples with the
            same labels.
        mean_shift: sample mean minus true mean, ``[G, d]``, in units of the data.
        relative_shift: length of ``mean_shift`` in units of ``std``.
        outward_shift: ``mean_shift`` along the direction from the whole mixture's mean
            to the group's own, in units of ``std``; NaN where the two agree.
        width_ratio: root of the trace of the samples' (unbiased) covariance over that
            of the true one; needs 2 samples. 1 = right, below = too narrow.
    """

    count: np.ndarray
    share: np.ndarray
    expected_share: np.ndarray
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
    x, label = _check_labelled(samples, labels, mixture)
    count = mixture.num_components
    chunk = max(1, 16 * _MAX_ELEMENTS // count)
    assigned = np.concatenate(
        [
            np.argmax(
                mixture.responsibilities(
                    _to_jax(x[i : i + chunk]), label=label[i : i + chunk]
                ),
                axis=1,
            )
            for i in range(0, len(x), chunk)
        ]
    )
    weights, means, covariances = _components(mixture, None)
    expected = np.zeros(count)
    for value, number in zip(*np.unique(label, return_counts=True), strict=True):
        member = _members(mixture, value)
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
        Statistics with a row for each of the mixture's labels. ``share`` equals
        ``expected_share``: the labels were given.

    Raises:
        ValueError: if a label is ``None`` or ``num_labels`` (no class).
    """
    x, label = _check_labelled(samples, labels, mixture, null_allowed=False)
    means = np.zeros((mixture.num_labels, mixture.dim))
    covariances = np.zeros((mixture.num_labels, mixture.dim, mixture.dim))
    for value in range(mixture.num_labels):
        means[value], covariances[value] = _moments(*_components(mixture, value))
    share = np.bincount(label, minlength=mixture.num_labels) / len(x)
    weights, centres, _ = _components(mixture, None)
    return _group_statistics(x, label, means, covariances, share, weights @ centres)


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
    expected_share: np.ndarray,
    centre: np.ndarray,
) -> GroupStatistics:
    groups, dim = means.shape
    count = np.bincount(group, minlength=groups)
    offset = x - means[group]  # from the true mean: no loss of digits in the squares
    total = np.zeros((groups, dim))
    np.add.at(total, group, offset)
    squares = np.bincount(group, np.sum(offset**2, axis=1), groups)
    outward = means - centre[None]
    distance = np.linalg.norm(outward, axis=1)
    trace = np.trace(covariances, axis1=1, axis2=2)
    std = np.sqrt(trace / dim)
    # The centre is a float sum: a mode "at" it is off by rounding only.
    has_outward = distance > 1e-4 * std
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = total / count[:, None]
        direction = np.where(has_outward, distance, np.nan)[:, None]
        variance = (squares - count * np.sum(shift**2, axis=1)) / (count - 1)
        width = np.sqrt(np.maximum(variance, 0.0) / trace)
    return GroupStatistics(
        count=count,
        share=count / len(x),
        expected_share=expected_share,
        mean_shift=shift,
        relative_shift=np.linalg.norm(shift, axis=1) / std,
        outward_shift=np.sum(shift * outward / direction, axis=1) / std,
        width_ratio=np.where(count >= 2, width, np.nan),
    )


# -- single numbers ----------------------------------------------------------------


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
    x, label = _check_labelled(samples, labels, mixture)
    outside = 0
    for value in np.unique(label):
        _, means, covariances = _components(mixture, int(value))
        # |A (x - m)|^2 with A^T A the inverse covariance, as one matrix product.
        whitening = np.linalg.inv(np.linalg.cholesky(covariances))
        count, dim = means.shape
        matrix = whitening.reshape(count * dim, dim).T
        shift = np.einsum("kij,kj->ki", whitening, means).reshape(-1)
        own = x[label == value]
        for rows in np.array_split(own, -(-own.shape[0] * len(shift) // _MAX_ELEMENTS)):
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
    x, label = _check_labelled(samples, labels, mixture, null_allowed=False)
    posterior = np.asarray(mixture.label_posterior(_to_jax(x)))
    return float(np.mean(posterior.argmax(axis=1) != label))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegativeLogLikelihood:
    """Negative log densities of samples, in nats: mean, median and 99th percentile.

    Attributes:
        mean: dominated by a few outliers when there are any.
        median: the typical sample.
        p99: the 99th percentile.
    """

    mean: float
    median: float
    p99: float


def negative_log_likelihood(
    samples: ArrayLike, labels: ArrayLike | None, mixture: GaussianMixture
) -> NegativeLogLikelihood:
    """Negative log likelihood ``-log p(x | label)`` of the samples under the truth.

    Never report it alone: it rewards shrinkage. Samples narrower than the truth score
    *better* than true samples; pair it with a distance and a width.

    Args:
        samples: array of shape ``[n, d]``.
        labels: requested labels, ``[n]`` or one integer; ``None`` for no condition.
        mixture: the truth.

    Returns:
        Mean, median and 99th percentile over the samples, in nats.
    """
    x, label = _check_labelled(samples, labels, mixture)
    values = -np.asarray(mixture.log_prob(_to_jax(x), label=label), np.float64)
    return NegativeLogLikelihood(
        mean=float(values.mean()),
        median=float(np.median(values)),
        p99=float(np.quantile(values, 0.99)),
    )


# -- everything at once ------------------------------------------------------------


def summarise(
    samples: ArrayLike,
    labels: ArrayLike | None,
    mixture: GaussianMixture,
    *,
    key: jax.Array | None = None,
) -> dict[str, float]:
    """Every scalar metric of one set of samples.

    Distances are to ``p(x | label)``, one for each label that occurs, then averaged
    with equal weights. Shifts, in standard deviations, and widths are averaged over
    modes (classes) in proportion to their samples, over those where they are defined;
    NaN where none is (the outward shift of a mixture of a single mode).

    Args:
        samples: array of shape ``[n, d]``, at least 2 for each label that occurs.
        labels: requested labels, ``[n]`` or one integer; ``None`` for no condition.
        mixture: the truth.
        key: JAX random key of the true samples that the energy distance needs (as many
            as there are samples); a fixed one by default.

    Returns:
        ``w2`` (one dimension) or ``sliced_w2``, ``energy_distance``, ``mode_shift``
        (outward), ``mode_width_ratio``, ``mode_share_error`` (total variation between
        shares and their expectation), ``outside_fraction`` (3 standard deviations),
        ``nll_mean``, ``nll_median``, ``nll_p99``; and, if every sample has a class,
        ``class_shift`` (outward), ``class_width_ratio`` and ``wrong_mode_fraction``.

    Raises:
        ValueError: if a label has a single sample.
    """
    x, label = _check_labelled(samples, labels, mixture)
    if key is None:
        # Not one of the keys a user is likely to have drawn the samples with.
        key = jax.random.fold_in(jax.random.key(0), 0x6D65_7472)
    # One draw for all labels: one compilation, whatever the numbers of each.
    true = np.asarray(mixture.sample(key, len(x), label)[0])
    sliced, energy = [], []
    for value, number in zip(*np.unique(label, return_counts=True), strict=True):
        if number < 2:
            raise ValueError(
                f"every label needs at least 2 samples, label {value} has {number}. "
                f"Draw more, or leave that label out."
            )
        own = x[label == value]
        sliced.append(sliced_wasserstein(own, mixture, int(value)))
        energy.append(energy_distance(own, true[label == value]))
    modes = mode_statistics(x, label, mixture)
    nll = negative_log_likelihood(x, label, mixture)
    excess = np.abs(modes.share - modes.expected_share)
    result = {
        "w2" if mixture.dim == 1 else "sliced_w2": float(np.mean(sliced)),
        "energy_distance": float(np.mean(energy)),
        "mode_shift": _weighted_mean(modes.outward_shift, modes.count),
        "mode_width_ratio": _weighted_mean(modes.width_ratio, modes.count),
        "mode_share_error": float(0.5 * excess.sum()),
        "outside_fraction": outside_fraction(x, label, mixture),
        "nll_mean": nll.mean,
        "nll_median": nll.median,
        "nll_p99": nll.p99,
    }
    if (label < mixture.num_labels).all():
        classes = class_statistics(x, label, mixture)
        result |= {
            "class_shift": _weighted_mean(classes.outward_shift, classes.count),
            "class_width_ratio": _weighted_mean(classes.width_ratio, classes.count),
            "wrong_mode_fraction": wrong_mode_fraction(x, label, mixture),
        }
    return result


def truth_floor(
    key: jax.Array,
    mixture: GaussianMixture,
    labels: ArrayLike,
    num_repeats: int = 5,
) -> dict[str, dict[str, float]]:
    """What ``summarise`` says of true samples: the floor of every metric.

    Args:
        key: JAX random key.
        mixture: the truth.
        labels: ``[n]`` integers, the labels of the samples to be judged; as many true
            samples are drawn, with the same labels.
        num_repeats: independent draws, at least 2.

    Returns:
        For each name of ``summarise`` a dictionary of ``mean`` and ``standard_error``
        over the draws.

    Raises:
        ValueError: if ``num_repeats`` is below 2 or ``labels`` not of shape ``[n]``.
    """
    if num_repeats < 2:
        raise ValueError(
            f"num_repeats must be at least 2 for a standard error, got {num_repeats}."
        )
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size:
        raise ValueError(
            f"labels must have shape [n], n at least 1, got {labels.shape}. For n "
            f"samples without a condition use numpy.full(n, mixture.num_labels)."
        )
    label = _check_label_values(labels, mixture)
    rows = []
    for repeat_key in jax.random.split(key, num_repeats):
        sample_key, reference_key = jax.random.split(repeat_key)
        x, _ = mixture.sample(sample_key, len(label), label)
        rows.append(summarise(x, label, mixture, key=reference_key))
    floor = {}
    for name in rows[0]:
        mean, error = mean_and_standard_error([row[name] for row in rows])
        floor[name] = {"mean": float(mean), "standard_error": float(error)}
    return floor


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    defined = np.isfinite(values) & (weights > 0)
    if not defined.any():
        return math.nan
    return float(np.average(values[defined], weights=weights[defined]))


# -- uncertainty of repeated measurements ------------------------------------------


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


# -- checks ------------------------------------------------------------------------


def _check_samples(
    samples: ArrayLike, dim: int | None = None, least: int = 1
) -> np.ndarray:
    """Samples as float64 ``[n, d]``."""
    x = np.asarray(samples, np.float64)
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2 or x.shape[1] == 0 or dim not in (None, x.shape[1]):
        wanted = "d" if dim is None else dim
        raise ValueError(
            f"samples must have shape [n, {wanted}] (or [n] on a line), got "
            f"{np.shape(samples)}."
        )
    if len(x) < least:
        raise ValueError(f"at least {least} samples are needed, got {len(x)}.")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"samples must be finite; {int((~finite).sum())} of {len(x)} hold NaN or "
            f"infinity, the first at index {int(np.argmin(finite))}. Count them as "
            f"failures of the sampler and pass the rest."
        )
    return x


def _check_label_values(
    labels: np.ndarray, mixture: GaussianMixture, null_allowed: bool = True
) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got dtype {labels.dtype}.")
    last = mixture.num_labels - (not null_allowed)
    bad = labels[(labels < 0) | (labels > last)]
    if bad.size:
        null = f", or {last} for no condition" if null_allowed else ""
        raise ValueError(
            f"labels must be in 0..{mixture.num_labels - 1}{null}; got "
            f"{np.unique(bad)[:5].tolist()}."
        )
    return labels.astype(np.int32)


def _check_labelled(
    samples: ArrayLike,
    labels: ArrayLike | None,
    mixture: GaussianMixture,
    null_allowed: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Samples ``[n, d]`` float64 and one label each, ``[n]`` int32."""
    x = _check_samples(samples, mixture.dim)
    label = np.asarray(mixture.num_labels if labels is None else labels)
    if label.shape not in ((), (len(x),)):
        raise ValueError(
            f"labels must be an integer or have shape [{len(x)}], one for each sample, "
            f"got {label.shape}."
        )
    label = _check_label_values(label, mixture, null_allowed)
    return x, np.broadcast_to(label, (len(x),))


def _one_label(label: int | None, mixture: GaussianMixture) -> int | None:
    if label is None:
        return None
    value = np.asarray(label)
    if value.ndim:
        raise ValueError(
            f"label must be None or one integer, got an array of shape {value.shape}. "
            f"Compare the samples of each label with that label's truth."
        )
    return int(_check_label_values(value, mixture))


def _no_label(label: int | None) -> None:
    if label is not None:
        raise ValueError(
            f"label chooses a class of a mixture; with samples as the truth it must be "
            f"None, got {label}."
        )


def _check_order(p: int) -> None:
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}.")


def _members(mixture: GaussianMixture, label: int) -> np.ndarray:
    return (mixture.labels == label) | (label == mixture.num_labels)


def _to_jax(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, jnp.result_type(float))
