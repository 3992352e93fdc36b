"""The common style of figures: one color for each method, one size of type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's palette, told apart by color-blind readers; truth is gray.
TRUTH = "#9a9a9a"
COLORS = {
    "unguided": "#000000",
    "cfg": "#d55e00",
    "autoguidance": "#0072b2",
    "naive_s2": "#cc79a7",
    "s2": "#009e73",
}
COLUMN_WIDTH = 3.4  # inches, of a two-column page
PAGE_WIDTH = 7.0

#: Matplotlib settings.
FIGURE_SETTINGS: dict[str, Any] = {
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


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the common style; figures made inside are closed at the end."""
    with plt.rc_context(FIGURE_SETTINGS):  # type: ignore[arg-type]
        try:
            yield
        finally:
            plt.close("all")


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis at 1, 2 and 5 times powers of ten, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
