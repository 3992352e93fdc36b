"""Sums over all pairs of points, in blocks of a fixed size."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_TILE = 1024  # rows of a block of pairs: one compilation for every n

RowSums = Callable[[jax.Array, jax.Array, np.ndarray], jax.Array]


def pair_sum(row_sums: RowSums, a: np.ndarray, b: np.ndarray | None) -> float:
    """Sum of a symmetric function over all pairs of points of two sets, or of one.

    Args:
        row_sums: of rows ``[t, d]``, columns ``[t, d]`` and the columns' weights
            ``[t]``, the weighted sums over columns, ``[t]``; compiled.
        a: points of shape ``[n, d]``, float64; handed to ``row_sums`` in float32.
        b: points of shape ``[m, d]``; ``None`` for ``a`` with itself, where each
            unordered pair counts once and a point with itself a half.

    Returns:
        The sum: within blocks in float32, over rows and blocks in float64.
    """
    tiles_a = _tiles(a)
    tiles_b = tiles_a if b is None else _tiles(b)
    sums = []
    for i, (rows, row_weights) in enumerate(tiles_a):
        for columns, weights in tiles_b if b is not None else tiles_b[i:]:
            same = rows is columns
            sums.append((same, row_weights, row_sums(rows, columns, weights)))
    total = 0.0
    for same, row_weights, sums_of_rows in sums:  # read after all are under way
        value = np.asarray(sums_of_rows, np.float64) @ row_weights
        total += 0.5 * value if same else value
    return float(total)


def squared_distances(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Squared distances ``[r, c]`` from differences: none is negative."""
    squares = jnp.zeros((len(rows), len(columns)), rows.dtype)
    for i in range(rows.shape[1]):
        squares += (rows[:, i][:, None] - columns[:, i][None, :]) ** 2
    return squares


def _tiles(x: np.ndarray) -> list[tuple[jax.Array, np.ndarray]]:
    count = -(-len(x) // _TILE)
    padded = np.zeros((count * _TILE, x.shape[1]), np.float32)
    padded[: len(x)] = x
    weights = (np.arange(count * _TILE) < len(x)).astype(np.float32)
    return [
        (jnp.asarray(padded[i : i + _TILE]), weights[i : i + _TILE])
        for i in range(0, count * _TILE, _TILE)
    ]
