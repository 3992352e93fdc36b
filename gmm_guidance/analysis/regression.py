"""Least squares from grouped moments: ridge, gate, standard errors, held-out error.

With features ``u``, the vector ``b = E[u e]`` and the matrix ``A = E[u u^T]``, the
combination ``D_c + sum_k beta_k u_k`` lowers the squared denoising error by

    gain(beta) = 2 b . beta - beta . A beta,                                        (1)

whether ``e`` is the true error ``D* - D_c`` or the residual ``x0 - D_c``: they differ
by noise that is orthogonal to every function of ``x``. Its maximum is the least squares
solution. A quarter of the groups is held out: coefficients, ridge and gate come from
the others, reported gains from these.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from gmm_guidance.metrics.uncertainty import confidence_interval

# In units of each feature's own power.
_RIDGES = np.concatenate([[1e-6], 10.0 ** np.arange(-5.0, 2.01, 0.5)])
_MOST_SUBSETS = 5000  # tried exhaustively


@dataclasses.dataclass(frozen=True)
class Fit:
    """Coefficients at each noise level, and the error that they remove.

    All arrays have a leading axis of noise levels, ``[S]`` or ``[S, k]``.

    Attributes:
        coefficients: the coefficient of each feature; zero where nothing was
            significant.
        standard_error: of each coefficient, by the jackknife over groups.
        half_width: of its 95 % confidence interval.
        ridge: the chosen ridge, in units of each feature's own power.
        active: whether the level passed the gate.
        removed: squared denoising error removed, per element, on held-out groups.
        removed_error: its standard error over held-out groups.
    """

    coefficients: np.ndarray
    standard_error: np.ndarray
    half_width: np.ndarray
    ridge: np.ndarray
    active: np.ndarray
    removed: np.ndarray
    removed_error: np.ndarray


def fit(matrix: np.ndarray, vector: np.ndarray, held_out: int, gate: float) -> Fit:
    """Fit every noise level independently.

    Args:
        matrix: ``A`` of each group, ``[S, G, k, k]``.
        vector: ``b`` of each group, ``[S, G, k]``.
        held_out: number of groups, the last ones, that are held out.
        gate: standard errors by which the cross-validated gain must exceed zero.
    """
    inside = matrix.shape[1] - held_out
    own, own_b = matrix[:, :inside], vector[:, :inside]
    gains, _ = _leave_one_out(own, own_b, _RIDGES)  # [R, S, K]
    choice = _most_shrunk(gains)  # [S]
    levels = np.arange(matrix.shape[0])
    chosen = gains[choice, levels]
    mean, error = chosen.mean(1), chosen.std(1, ddof=1) / np.sqrt(inside)
    active = (mean > gate * error) & (mean > 0)
    ridge = _RIDGES[choice]
    beta = _solve(own.mean(1), own_b.mean(1), ridge[:, None])[:, 0]
    _, left_out = _leave_one_out(own, own_b, ridge[None])  # [1, S, K, k]
    pseudo = inside * beta[:, None] - (inside - 1) * left_out[0]
    low, high = confidence_interval(pseudo, axis=1)
    spread = pseudo.std(1, ddof=1) / np.sqrt(inside)
    beta = np.where(active[:, None], beta, 0.0)
    outside = gain(matrix[:, inside:], vector[:, inside:], beta[:, None])
    return Fit(
        coefficients=beta,
        standard_error=spread,
        half_width=0.5 * (high - low),
        ridge=ridge,
        active=active,
        removed=outside.mean(1),
        removed_error=outside.std(1, ddof=1) / np.sqrt(held_out),
    )


def best_subset(
    matrix: np.ndarray,
    vector: np.ndarray,
    held_out: int,
    weights: np.ndarray,
    smaller: tuple[int, ...],
) -> tuple[int, ...]:
    """The columns, one more than ``smaller``, with the largest cross-validated gain.

    Gains are on the groups that are not held out, one left out at a time, clipped at
    zero at each level and averaged with ``weights`` ``[S]``. All subsets of this size
    are tried if they are few, else those that extend ``smaller`` by one column.
    """
    count, size = matrix.shape[-1], len(smaller) + 1
    subsets: list[tuple[int, ...]]
    if math.comb(count, size) <= _MOST_SUBSETS:
        subsets = list(itertools.combinations(range(count), size))
    else:
        rest = [k for k in range(count) if k not in smaller]
        subsets = [tuple(sorted((*smaller, k))) for k in rest]
    inside = slice(None, matrix.shape[1] - held_out)
    worth = []
    for start in range(0, len(subsets), 256):
        columns = np.array(subsets[start : start + 256])  # [N, size]
        parts = matrix[:, inside, columns[:, :, None], columns[:, None, :]]
        sides = vector[:, inside, columns]
        gains, _ = _leave_one_out(
            np.moveaxis(parts, 2, 0), np.moveaxis(sides, 2, 0), np.array([1e-3])
        )
        worth.append(gains[0].mean(-1).clip(min=0.0) @ weights)
    return subsets[int(np.concatenate(worth).argmax())]


def gain(matrix: np.ndarray, vector: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Eq. 1, over leading axes."""
    quadratic = np.einsum("...i,...ij,...j->...", beta, matrix, beta)
    return 2.0 * np.sum(beta * vector, axis=-1) - quadratic


def _leave_one_out(
    matrix: np.ndarray, vector: np.ndarray, ridges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gain on each group of the solution of the others, for each ridge.

    ``ridges`` is ``[R]`` or ``[R, S]``; gains are ``[R, ..., K]``, solutions
    ``[R, ..., K, k]``.
    """
    count = matrix.shape[-3]
    others = (matrix.sum(-3, keepdims=True) - matrix) / (count - 1)
    others_b = (vector.sum(-2, keepdims=True) - vector) / (count - 1)
    gains, solutions = [], []
    for ridge in ridges:
        each = np.broadcast_to(np.asarray(ridge)[..., None], matrix.shape[:-2])
        beta = _solve(others, others_b, each[..., None])[..., 0, :]
        gains.append(gain(matrix, vector, beta))
        solutions.append(beta)
    return np.stack(gains), np.stack(solutions)


def _solve(matrix: np.ndarray, vector: np.ndarray, ridges: np.ndarray) -> np.ndarray:
    """Ridge solutions ``[..., R, k]`` for ``ridges`` of shape ``[..., R]``."""
    size = matrix.shape[-1]
    power = np.diagonal(matrix, axis1=-2, axis2=-1)
    # A feature that is zero everywhere has no direction: its coefficient is zero.
    floor = np.where(power > 0, power, 1.0)[..., None, :]  # [..., 1, k]
    scaled = (ridges[..., None] * floor)[..., None] * np.eye(size)
    sides = np.broadcast_to(vector[..., None, :, None], (*ridges.shape, size, 1))
    return np.linalg.solve(matrix[..., None, :, :] + scaled, sides)[..., 0]


def _most_shrunk(gains: np.ndarray) -> np.ndarray:
    """Index of the largest ridge within a standard error of the best, per level."""
    best = gains.mean(-1).argmax(0)  # [S]
    top = np.take_along_axis(gains, best[None, :, None], axis=0)
    loss = top - gains
    error = loss.std(-1, ddof=1) / np.sqrt(gains.shape[-1])
    near = loss.mean(-1) <= error
    return gains.shape[0] - 1 - near[::-1].argmax(0)
