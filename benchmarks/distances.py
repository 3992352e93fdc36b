"""Distances between two sets of points in the plane: each against its alternatives.

Exact W2 by POT's network simplex, by SciPy's assignment and, smoothed, by POT's
Sinkhorn iterations; the others against plain NumPy and SciPy on all pairs, and against
POT's sliced distance with the same number of directions. Needs POT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import ot
from scipy.spatial.distance import cdist

import gmm_guidance as gg
from benchmarks.harness import alternating
from gmm_guidance.metrics.optimal_transport import _by_assignment, _by_simplex

_SIZES = (500, 2000, 5000)
_MOST_SINKHORN = 500  # it is the slowest by far
_REGULARIZATION = 0.05  # in units of the squared data


def distances() -> dict[str, Any]:
    """Seconds of each distance, and ratios to the one the library uses."""
    results: dict[str, Any] = {}
    for n in _SIZES:
        x, y = _points(n)
        times = alternating(_programs(x, y), repeats=3 if n <= 2000 else 1)
        medians = {name: float(np.median(t)) for name, t in times.items()}
        entry: dict[str, Any] = {f"{k}_seconds": v for k, v in medians.items()}
        for name, opponents in _OPPONENTS.items():
            for opponent in opponents:
                if opponent in times:
                    ratios = np.array(times[opponent]) / np.array(times[name])
                    entry[f"{opponent}_over_{name}"] = float(np.median(ratios))
        if n <= _MOST_SINKHORN:
            entry["w2"] = _by_simplex(x, y)
            entry["w2_by_sinkhorn"] = _by_sinkhorn(x, y)
        results[f"distances of {n} points in the plane"] = entry
    return results


_OPPONENTS = {
    "w2_pot": ("w2_scipy", "w2_sinkhorn"),
    "sliced_w2": ("sliced_w2_pot",),
    "energy": ("energy_all_pairs",),
}


def _points(n: int) -> tuple[np.ndarray, np.ndarray]:
    """True samples of a class of the tree, and those of CFG with exact denoisers."""
    tree = gg.presets.tree()
    guided = gg.guided_sample(
        jax.random.key(0),
        gg.ExactDenoiser(tree),
        0,
        num_samples=n,
        guidance=gg.CFG(4.0),
        schedule=gg.Karras(16, 0.002, 5.0),
        solver="dpmpp_2m",
    )
    true, _ = tree.sample(jax.random.key(1), n, 0)
    return np.asarray(guided, np.float64), np.asarray(true, np.float64)


def _programs(x: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], float]]:
    """Ours, and in turn with each of them its alternatives."""
    m = gg.metrics
    programs: dict[str, Callable[[], float]] = {
        "w2_pot": lambda: _by_simplex(x, y),
        "w2_scipy": lambda: _by_assignment(x, y),
        "sliced_w2": lambda: m.sliced_wasserstein(x, y),
        "sliced_w2_pot": lambda: ot.sliced_wasserstein_distance(
            x, y, n_projections=64, seed=0
        ),
        "energy": lambda: m.energy_distance(x, y),
        "energy_all_pairs": lambda: _energy_all_pairs(x, y),
    }
    if len(x) <= _MOST_SINKHORN:
        programs["w2_sinkhorn"] = lambda: _by_sinkhorn(x, y)
    return programs


def _by_sinkhorn(x: np.ndarray, y: np.ndarray) -> float:
    """The root of the cost of the entropic plan, stabilized in log space."""
    cost = ot.sinkhorn2(
        [], [], cdist(x, y, "sqeuclidean"), _REGULARIZATION, method="sinkhorn_log"
    )
    return float(np.sqrt(cost))


def _energy_all_pairs(x: np.ndarray, y: np.ndarray) -> float:
    n, m = len(x), len(y)
    return float(
        2 * cdist(x, y).mean()
        - cdist(x, x).sum() / (n * (n - 1))
        - cdist(y, y).sum() / (m * (m - 1))
    )
