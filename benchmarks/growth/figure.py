"""Small multiples of growth: one panel for each axis, relative to its first point."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from toy_experiments.common.style import COLOURS, COLUMN_WIDTH, TRUTH, figure_style


class _Look(NamedTuple):
    key: str  # of the values in an entry
    label: str
    colour: str
    marker: str


_QUANTITIES = (
    _Look("time_seconds", "time", COLOURS["unguided"], "o"),
    _Look("operations", "operations of a device", COLOURS["naive_s2"], "o"),
    _Look("memory_mib", "temporary memory", COLOURS["autoguidance"], "s"),
    _Look("compile_seconds", "compilation", COLOURS["cfg"], "^"),
    _Look("process_at_once_mib", "process, at once", COLOURS["naive_s2"], "D"),
    _Look("process_in_batches_mib", "process, in batches", COLOURS["s2"], "v"),
)
_COLUMNS = 2
_PANEL_HEIGHT = 1.35  # inches
_LEGEND_HEIGHT = 0.5
_LEAST_SPAN = 4.0  # of the vertical axis, so that what is flat looks flat


def growth_figure(results: dict[str, Any], out: Path) -> None:
    """Draw the entries of growth among ``results``."""
    entries = [e for title, e in results.items() if title.startswith("growth with ")]
    rows = -(-len(entries) // _COLUMNS)
    with figure_style():
        size = (COLUMN_WIDTH, rows * _PANEL_HEIGHT + _LEGEND_HEIGHT)
        figure, axes = plt.subplots(rows, _COLUMNS, figsize=size, squeeze=False)
        for ax, entry in zip(axes.flat, entries, strict=False):
            _panel(ax, entry)
        for ax in axes.flat[len(entries) :]:
            ax.set_axis_off()
        figure.supylabel("relative to the first point", fontsize=7.5)
        figure.legend(
            handles=_handles(entries),
            loc="outside lower center",
            ncols=_COLUMNS,
            fontsize=6.5,
        )
        figure.savefig(out)


def _panel(ax: Axes, entry: dict[str, Any]) -> None:
    shown = []
    values = np.asarray(entry["values"], float)
    drawn = values > 0  # zero, the run without weak passes, is what others are over
    x = values[drawn]
    for look in _QUANTITIES:
        if look.key not in entry:
            continue
        y = np.asarray(entry[look.key], float) / entry[look.key][0]
        # Counted operations lie where memory lies: seen behind it.
        size, width = (4.5, 2.4) if look.key == "operations" else (2.2, None)
        ax.plot(x, y[drawn], color=look.colour, marker=look.marker, ms=size, lw=width)
        shown.append(y[drawn])
    _references(ax, entry, x)
    suffix = ", over CFG" if "expected_passes" in entry else ""
    ax.set_title(entry["axis"] + suffix, fontsize=7)
    ax.set(xscale="log", yscale="log", xlim=(x[0] / 1.25, x[-1] * 1.25))
    _limit(ax, np.concatenate(shown))
    _ticks(ax, x)


def _references(ax: Axes, entry: dict[str, Any], x: np.ndarray) -> None:
    """Flat, and slope 1 or where there is one the arithmetic."""
    style = {"color": TRUTH, "lw": 0.8, "zorder": 0}
    ax.plot(x, np.ones_like(x), ":", **style)
    if "expected_passes" not in entry:
        ax.plot(x, x / x[0], "--", **style)
        return
    passes = np.asarray(entry["expected_passes"])
    ax.plot(x, passes[1:] / passes[0], "--", **style)


def _limit(ax: Axes, values: np.ndarray) -> None:
    low, high = min(values.min(), 1.0), max(values.max(), 1.0)
    margin = max(1.25, np.sqrt(_LEAST_SPAN / (high / low)))
    ax.set_ylim(low / margin, high * margin)


def _ticks(ax: Axes, x: np.ndarray) -> None:
    """Few ticks, written out: a panel is an inch and a half wide."""
    ax.set_xticks(x[:: max(1, -(-len(x) // 4))])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    low, high = ax.get_ylim()
    steps = (1.0, 2.0, 5.0) if high / low < 20 else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(subs=steps))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _short(value: float) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _handles(entries: list[dict[str, Any]]) -> list[Line2D]:
    lines = [
        Line2D([], [], color=q.colour, marker=q.marker, ms=2.5, label=q.label)
        for q in _QUANTITIES
        if any(q.key in entry for entry in entries)
    ]
    return [
        *lines,
        Line2D([], [], color=TRUTH, ls="--", lw=0.8, label="slope 1, or arithmetic"),
        Line2D([], [], color=TRUTH, ls=":", lw=0.8, label="flat"),
    ]
