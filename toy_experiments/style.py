"""How all figures look: one colour for each method, one size of type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib

matplotlib.use("Agg")  # figures go to files; no display is needed

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import (  # noqa: E402
    FuncFormatter,
    LogLocator,
    NullLocator,
)

# Okabe and Ito's palette, told apart by colour-blind readers; truth is grey.
TRUTH = "#9a9a9a"
COLOURS = {
    "unguided": "#000000",
    "cfg": "#d55e00",
    "autoguidance": "#0072b2",
    "naive_s2": "#cc79a7",
    "s2": "#009e73",
}
REGIME_COLOURS = {"exact": "#000000", "under": "#d55e00", "well": "#0072b2"}
SEQUENTIAL = "viridis"
DIVERGING = "PuOr_r"  # lower is better: purple below zero, orange above
COLUMN_WIDTH = 3.4  # inches, of a two-column page
PAGE_WIDTH = 7.0

_RC: dict[str, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 220,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.04,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
}


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
    with plt.rc_context(_RC):  # type: ignore[arg-type]
        try:
            yield
        finally:
            plt.close("all")
