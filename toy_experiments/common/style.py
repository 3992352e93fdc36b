"""How all figures look: one colour for each method, one size of type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib

matplotlib.use("Agg")  # figures go to files; no display is needed

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import (  # noqa: E402
    FuncFormatter,
    LogLocator,
    NullLocator,
)

from gmm_guidance._runtime.palette import (  # noqa: E402
    COLOURS,
    COLUMN_WIDTH,
    FIGURE_SETTINGS,
    PAGE_WIDTH,
    TRUTH,
)

__all__ = [
    "COLOURS",
    "COLUMN_WIDTH",
    "DIVERGING",
    "PAGE_WIDTH",
    "REGIME_COLOURS",
    "SEQUENTIAL",
    "TRUTH",
    "figure_style",
    "plain_ticks",
    "step_axis",
]

REGIME_COLOURS = {"exact": "#000000", "under": "#d55e00", "well": "#0072b2"}
SEQUENTIAL = "viridis"
DIVERGING = "PuOr_r"  # lower is better: purple below zero, orange above


def step_axis(ax: Axes, steps: Sequence[int]) -> None:
    """A logarithmic axis of training steps, with a tick at each and no other."""
    ax.set_xscale("log")
    ax.set_xticks(list(steps), [f"{s}" for s in steps])
    ax.minorticks_off()
    ax.set_xlim(0.8 * min(steps), 1.25 * max(steps))


def plain_ticks(ax: Axes) -> None:
    """A logarithmic y axis with ticks at 1, 2 and 5, written out."""
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the common style; closes the figures made inside afterwards."""
    with plt.rc_context(FIGURE_SETTINGS):  # type: ignore[arg-type]
        try:
            yield
        finally:
            plt.close("all")
