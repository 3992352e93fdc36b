"""How all figures look: one color for each method, one size of type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # figures go to files; no display is needed

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from gmm_guidance._runtime.figure_style import (  # noqa: E402
    COLORS,
    COLUMN_WIDTH,
    PAGE_WIDTH,
    TRUTH,
    figure_style,
    plain_ticks,
)
from toy_experiments.common.records import Record  # noqa: E402

__all__ = [
    "COLORS",
    "COLUMN_WIDTH",
    "DIVERGING",
    "NETWORK_COLORS",
    "PAGE_WIDTH",
    "SEQUENTIAL",
    "TRUTH",
    "draw_band",
    "draw_measurements",
    "figure_style",
    "legend_below",
    "plain_ticks",
    "step_axis",
]

COLORS = COLORS
NETWORK_COLORS = {
    "exact": "#000000",
    "under": "#d55e00",
    "well": "#0072b2",
    "paper_like": "#009e73",
}
SEQUENTIAL = "viridis"
DIVERGING = "PuOr_r"  # lower is better: purple below zero, orange above


def shades(count: int, low: float = 0.0, high: float = 0.85) -> np.ndarray:
    """Colors for an ordered series."""
    return plt.get_cmap(SEQUENTIAL)(np.linspace(low, high, count))


def step_axis(ax: Axes, steps: Sequence[int]) -> None:
    """A logarithmic axis of training steps, with a tick at each and no other."""
    ax.set_xscale("log")
    ax.set_xticks(list(steps), [f"{s}" for s in steps])
    ax.minorticks_off()
    ax.set_xlim(0.8 * min(steps), 1.25 * max(steps))


def draw_measurements(
    ax: Axes, x: Sequence[float] | np.ndarray, entries: Sequence[Record], **style: Any
) -> None:
    """Measurements over seeds as a line with standard errors."""
    ax.errorbar(
        x,
        [entry["mean"] for entry in entries],
        yerr=[entry["standard_error"] for entry in entries],
        **{"capsize": 1.5} | style,
    )


def draw_band(
    ax: Axes, x: np.ndarray, values: np.ndarray, line: str = "-", **style: Any
) -> None:
    """The mean over seeds of ``[seeds, x]`` in a band of standard errors."""
    mean = values.mean(0)
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    low = mean - error
    if (mean > 0).all():
        low = np.maximum(low, 0.1 * mean)  # the axis may be logarithmic
    ax.plot(x, mean, line, **style)
    ax.fill_between(x, low, mean + error, color=style["color"], alpha=0.2, lw=0)


def legend_below(ax: Axes, columns: int) -> None:
    """One legend for a whole figure, from the entries of one of its axes."""
    figure = ax.get_figure()
    figure.legend(  # type: ignore[union-attr]
        *ax.get_legend_handles_labels(), loc="outside lower center", ncols=columns
    )
