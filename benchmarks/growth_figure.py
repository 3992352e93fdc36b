"""Small multiples of growth: one panel for each axis, relative to its first point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from gmm_guidance._runtime.figure_style import (
    COLORS,
    COLUMN_WIDTH,
    TRUTH,
    figure_style,
)

# Key of the values in an entry: label, color, marker.
_QUANTITIES = {
    "time_seconds": ("time", COLORS["unguided"], "o"),
    "operations": ("operations of a device", COLORS["naive_s2"], "o"),
    "memory_mib": ("temporary memory", COLORS["autoguidance"], "s"),
    "compile_seconds": ("compilation", COLORS["cfg"], "^"),
    "process_at_once_mib": ("process, at once", COLORS["naive_s2"], "D"),
    "process_in_batches_mib": ("process, in batches", COLORS["s2"], "v"),
}
_COLUMNS = 2
_LEAST_SPAN = 4.0  # of the vertical axis, so that flat curves look flat


def growth_figure(entries: list[dict[str, Any]], out: Path) -> None:
    """Draw the entries of growth."""
    rows = -(-len(entries) // _COLUMNS)
    with figure_style():
        size = (COLUMN_WIDTH, rows * 1.35 + 0.5)
        figure, axes = plt.subplots(rows, _COLUMNS, figsize=size, squeeze=False)
        for ax, entry in zip(axes.flat, entries, strict=False):
            _panel(ax, entry)
        for ax in axes.flat[len(entries) :]:
            ax.set_axis_off()
        handles = [
            Line2D([], [], color=color, marker=marker, ms=2.5, label=label)
            for key, (label, color, marker) in _QUANTITIES.items()
            if any(key in entry for entry in entries)
        ]
        for style, label in (("--", "slope 1, or arithmetic"), (":", "flat")):
            handles.append(Line2D([], [], color=TRUTH, ls=style, lw=0.8, label=label))
        figure.supylabel("relative to the first point", fontsize=7.5)
        figure.legend(
            handles=handles, loc="outside lower center", ncols=_COLUMNS, fontsize=6.5
        )
        figure.savefig(out)


def _panel(ax: Axes, entry: dict[str, Any]) -> None:
    values = np.asarray(entry["values"], float)
    drawn = values > 0  # zero is the run that others are divided by
    x = values[drawn]
    passes = entry.get("expected_passes")
    reference = x / x[0] if passes is None else np.array(passes)[drawn] / passes[0]
    ax.plot(x, np.ones_like(x), ":", color=TRUTH, lw=0.8, zorder=0)
    ax.plot(x, reference, "--", color=TRUTH, lw=0.8, zorder=0)
    low = high = 1.0
    for key, (_, color, marker) in _QUANTITIES.items():
        if key in entry:
            y = (np.asarray(entry[key], float) / entry[key][0])[drawn]
            # Operations coincide with memory: drawn wider, behind it.
            size, width = (4.5, 2.4) if key == "operations" else (2.2, None)
            ax.plot(x, y, color=color, marker=marker, ms=size, lw=width)
            low, high = min(low, y.min()), max(high, y.max())
    ax.set_title(entry["axis"] + (", over CFG" if passes else ""), fontsize=7)
    margin = max(1.25, np.sqrt(_LEAST_SPAN / (high / low)))
    ax.set(xscale="log", yscale="log", xlim=(x[0] / 1.25, x[-1] * 1.25))
    ax.set_ylim(low / margin, high * margin)
    ax.set_xticks(x[:: max(1, -(-len(x) // 4))])
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda v, _: f"{v / 1024:g}k" if v >= 1024 else f"{v:g}")
    )
    ax.xaxis.set_minor_locator(NullLocator())
    steps = (1.0, 2.0, 5.0) if high / low * margin**2 < 20 else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(subs=steps))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
