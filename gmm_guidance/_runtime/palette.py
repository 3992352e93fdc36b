"""How figures look, as plain values: one colour for each method, one size of type."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's palette, told apart by colour-blind readers; truth is grey.
TRUTH = "#9a9a9a"
COLOURS = {
    "unguided": "#000000",
    "cfg": "#d55e00",
    "autoguidance": "#0072b2",
    "naive_s2": "#cc79a7",
    "s2": "#009e73",
}
COLUMN_WIDTH = 3.4  # inches, of a two-column page
PAGE_WIDTH = 7.0

#: Settings of Matplotlib.
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
