"""Exact Wasserstein distance between two sets of points, in any dimension."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.metrics._checks import check_samples
from gmm_guidance.metrics.wasserstein import wasserstein_1d

MAX_POINTS = 10_000
_MAX_PIVOTS = 1_000_000_000  # of POT's network simplex: it ends when it is optimal


def wasserstein_2(samples: ArrayLike, others: ArrayLike) -> float:
    """Exact W2 between two sets of equally weighted points: the best assignment.

    By the package POT if it is installed (``pip install "gmm-guidance[transport]"``),
    else by SciPy's assignment, which is several times slower and needs sets of equal
    size; the number is the same. On a line it is ``wasserstein_1d``, without a limit.

    **Biased upwards**, strongly in more than one dimension: where the true W2 of two
    distributions in the plane is 0.548, sets of n samples each give 0.676 (n = 500),
    0.586 (n = 2,000) and 0.565 (n = 5,000). Compare sets of equal size only, and report
    the value for two sets of true samples next to it.

    Args:
        samples: array of shape ``[n, d]`` or ``[n]``.
        others: array of shape ``[m, d]`` or ``[m]``.

    Returns:
        The distance, >= 0, in units of the data: the root of the smallest mean squared
        distance over all plans of transport. Computed in float64.

    Raises:
        ValueError: above a line for more than 10,000 points in a set, and for sets of
            unequal size without POT.
    """
    x = check_samples(samples)
    y = check_samples(others, x.shape[1])
    if x.shape[1] == 1:
        return wasserstein_1d(x, y)
    _check_size(len(x), len(y))
    if importlib.util.find_spec("ot") is not None:
        return _by_simplex(x, y)
    if len(x) != len(y):
        raise ValueError(
            f"sets of unequal size ({len(x)} and {len(y)}) need the package POT: "
            f'pip install "gmm-guidance[transport]". Or take {min(len(x), len(y))} of '
            f"each."
        )
    return _by_assignment(x, y)


def _check_size(n: int, m: int) -> None:
    if max(n, m) > MAX_POINTS:
        raise ValueError(
            f"exact W2 is limited to {MAX_POINTS} points in a set, got {n} and {m}: "
            f"their squared distances alone would take {8e-9 * n * m:.1g} GB. Take "
            f"fewer, or sliced_wasserstein."
        )


def _costs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist  # SciPy comes with JAX

    return cdist(x, y, "sqeuclidean")


def _by_simplex(x: np.ndarray, y: np.ndarray) -> float:
    """POT's network simplex; any sizes."""
    import ot

    cost = ot.emd2([], [], _costs(x, y), numItermax=_MAX_PIVOTS)
    return float(np.sqrt(max(float(cost), 0.0)))


def _by_assignment(x: np.ndarray, y: np.ndarray) -> float:
    """SciPy's assignment; equal sizes."""
    from scipy.optimize import linear_sum_assignment

    costs = _costs(x, y)
    return float(np.sqrt(costs[linear_sum_assignment(costs)].mean()))
