"""How fast a cost grows, and whether that is as expected: by rule, from numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

#: Slopes on log-log axes that count as each kind of growth.
RULES = {
    "linear": (0.8, 1.2),
    "flat": (-0.1, 0.1),
    "at most linear": (-np.inf, 1.2),
    # Against the expected number of passes, over all points.
    "arithmetic": (0.8, 1.2),
}
#: Largest relative deviation from the arithmetic, the first point (CFG) agreeing.
TOLERANCE = 0.1
_LEAST_POINTS = 3  # two would always lie on a line


class Slope(NamedTuple):
    """A slope on log-log axes.

    Attributes:
        value: of least squares.
        interval: 95 %, from the residuals (Student's t).
        points: how many were fitted.
    """

    value: float
    interval: tuple[float, float]
    points: int


def fit_slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Least squares of ``log y`` over ``log x``."""
    log_x, log_y = (np.log(np.asarray(v, float)) for v in (x, y))
    offset = log_x - log_x.mean()
    value = float(offset @ log_y / (offset @ offset))
    residual = log_y - log_y.mean() - value * offset
    freedom = len(log_x) - 2
    error = np.sqrt(residual @ residual / freedom / (offset @ offset))
    half = float(stats.t.ppf(0.975, freedom) * error)
    return Slope(value, (value - half, value + half), len(log_x))


def upper_half(x: Sequence[float]) -> np.ndarray:
    """Which points lie in the upper half of the logarithmic range, at least three.

    Below it fixed costs (a call, an embedding) hide how the rest grows.
    """
    log_x = np.log(np.asarray(x, float))
    middle = 0.5 * (log_x.min() + log_x.max())
    chosen = log_x >= middle - 1e-9
    chosen[np.argsort(log_x)[-_LEAST_POINTS:]] = True
    return chosen


def judge(
    x: Sequence[float],
    y: Sequence[float],
    expected: str,
    passes: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Slope, interval and verdict of one quantity.

    Args:
        x: what grows. Zero, a run without the thing counted, is not on a log axis and
            so left out, except from the arithmetic.
        y: the cost, > 0.
        expected: one of ``RULES``.
        passes: expected passes at each point, for ``"arithmetic"``.
    """
    horizontal, vertical = np.asarray(x, float), np.asarray(y, float)
    deviation: dict[str, float] = {}
    if expected == "arithmetic":
        share = np.asarray(passes, float)
        slope = fit_slope(share, vertical)
        # Few and near numbers of passes fix a slope badly: each must agree as well.
        ratio = (vertical / vertical[0]) / (share / share[0])
        deviation["largest_deviation"] = float(np.abs(ratio - 1.0).max())
    else:
        positive = horizontal > 0
        horizontal, vertical = horizontal[positive], vertical[positive]
        chosen = upper_half(horizontal)
        slope = fit_slope(horizontal[chosen], vertical[chosen])
    low, high = RULES[expected]
    holds = low <= slope.value <= high and all(
        d <= TOLERANCE for d in deviation.values()
    )
    return {
        "expected": expected,
        "slope": slope.value,
        "interval": list(slope.interval),
        "points_fitted": slope.points,
        **deviation,
        "verdict": "as expected" if holds else "not as expected",
    }
