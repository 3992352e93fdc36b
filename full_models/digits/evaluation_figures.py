"""Figures of an evaluation: over the scale, over the weight of S², and a trade-off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from full_models.digits.rules import (
    AUTOGUIDANCE,
    CFG,
    NAIVE_S2,
    RULES,
    S2,
    SKIP_LAYER,
    UNGUIDED,
    WITH_TERM,
)
from full_models.digits.sheets import draw_sheet, plt
from gmm_guidance._runtime.files import atomic
from gmm_guidance._runtime.palette import COLOURS, FIGURE_SETTINGS, PAGE_WIDTH, TRUTH

Record = dict[str, Any]

_COLOURS = {
    UNGUIDED: COLOURS["unguided"],
    CFG: COLOURS["cfg"],
    AUTOGUIDANCE: COLOURS["autoguidance"],
    SKIP_LAYER: "#56b4e9",
    NAIVE_S2: COLOURS["naive_s2"],
    S2: COLOURS["s2"],
}
_TITLES = {"frechet": "Fréchet distance", "accuracy": "accuracy of the class"}


def write_figures(
    out: Path, record: Record, sheet: dict[str, np.ndarray]
) -> list[Path]:
    """Draw the numbers of ``metrics.json``, as PNG and PDF, and the sheet as PNG."""
    written = []
    with figure_style():
        figures = {
            "figure_scales": draw_scales(record),
            "figure_weights": draw_weights(record),
            "figure_tradeoff": draw_tradeoff(record),
        }
        for name, figure in figures.items():
            for suffix in (".png", ".pdf"):
                # No date inside: the same numbers give the same file.
                metadata = {"CreationDate": None} if suffix == ".pdf" else None
                path = out / f"{name}{suffix}"
                with atomic(path) as temporary:
                    figure.savefig(temporary, metadata=metadata)
                written.append(path)
        config = record["config"]
        figure = draw_sheet(
            sheet,
            f"{record['lengths'][-1]['length']} training steps, "
            f"scale {config['sheet_scale']:g}, weight {config['sheet_weight']:g}",
        )
        with atomic(out / "sheet.png") as temporary:
            figure.savefig(temporary)
    return [*written, out / "sheet.png"]


def draw_scales(record: Record) -> Any:
    """Fréchet distance and accuracy over the scale, a column for each length."""
    weight = record["config"]["sheet_weight"]
    figure, axes = _panels(record)
    for column, entry in enumerate(record["lengths"]):
        for row, name in enumerate(_TITLES):
            ax = axes[row, column]
            _floor(ax, record, name)
            for rule in _rules(entry):
                if rule == UNGUIDED:
                    continue
                _plot(ax, _line(entry, rule, weight), name, rule, rule)
            _mark_unguided(ax, entry, name)
    _finish(figure, axes, record)
    figure.suptitle(
        f"Terms of {', '.join(WITH_TERM[:-1])} and {S2} at weight {weight:g}",
        fontsize=8,
    )
    return figure


def draw_weights(record: Record) -> Any:
    """S² at each weight beside CFG."""
    weights = record["config"]["s2_scales"]
    shades = plt.get_cmap("viridis")(np.linspace(0.1, 0.85, len(weights)))
    figure, axes = _panels(record)
    for column, entry in enumerate(record["lengths"]):
        for row, name in enumerate(_TITLES):
            ax = axes[row, column]
            _floor(ax, record, name)
            _plot(ax, _line(entry, CFG, 0.0), name, CFG, CFG)
            for weight, shade in zip(weights, shades, strict=True):
                line = _line(entry, S2, weight)
                _plot(ax, line, name, S2, f"{S2}, weight {weight:g}", shade)
            _mark_unguided(ax, entry, name)
    _finish(figure, axes, record)
    return figure


def draw_tradeoff(record: Record) -> Any:
    """Accuracy against Fréchet distance along the scales of each rule."""
    weight = record["config"]["sheet_weight"]
    lengths = record["lengths"]
    figure, axes = plt.subplots(
        1, len(lengths), figsize=(_width(record), 2.5), squeeze=False
    )
    for ax, entry in zip(axes[0], lengths, strict=True):
        for rule in _rules(entry):
            line = _line(entry, rule, weight)
            ax.plot(
                [s["frechet"]["mean"] for s in line],
                [s["accuracy"]["mean"] for s in line],
                marker="o",
                markersize=3.0,
                color=_COLOURS[rule],
                linestyle="none" if rule == UNGUIDED else "-",
                zorder=4 if rule == UNGUIDED else 2,
                label=rule,
            )
        ax.plot(
            record["floors"]["frechet"],
            record["floors"]["accuracy"],
            marker="s",
            markersize=4.0,
            linestyle="none",
            color=TRUTH,
            label="held-out images",
        )
        ax.set_xscale("log")
        _plain_ticks(ax.xaxis)
        ax.set_xlabel("Fréchet distance (lower is better)")
        ax.set_title(f"{entry['length']} training steps")
    axes[0, 0].set_ylabel("accuracy of the class")
    _legend(figure, axes[0, -1])
    scales = ", ".join(f"{s:g}" for s in record["config"]["scales"])
    figure.suptitle(
        f"Along the scales {scales}; terms at weight {weight:g}", fontsize=8
    )
    return figure


def _panels(record: Record) -> tuple[Any, Any]:
    columns = len(record["lengths"])
    return plt.subplots(
        len(_TITLES),
        columns,
        figsize=(_width(record), 3.9),
        sharex=True,
        squeeze=False,
    )


def _width(record: Record) -> float:
    return min(PAGE_WIDTH, 1.4 + 2.1 * len(record["lengths"]))


def _rules(entry: Record) -> list[str]:
    return [r for r in RULES if any(s["rule"] == r for s in entry["settings"])]


def _line(entry: Record, rule: str, weight: float) -> list[Record]:
    """The settings of a rule over the scales, at one weight if it has any."""
    wanted = weight if rule in WITH_TERM else 0.0
    return [s for s in entry["settings"] if s["rule"] == rule and s["weight"] == wanted]


def _plot(
    ax: Any, line: list[Record], name: str, rule: str, label: str, colour: Any = None
) -> None:
    errors = [s[name]["standard_error"] for s in line]
    ax.errorbar(
        [s["scale"] for s in line],
        [s[name]["mean"] for s in line],
        yerr=None if None in errors else errors,
        color=_COLOURS[rule] if colour is None else colour,
        marker="o",
        markersize=2.5,
        capsize=1.5,
        elinewidth=0.7,
        label=label,
    )


def _mark_unguided(ax: Any, entry: Record, name: str) -> None:
    (line,) = _line(entry, UNGUIDED, 0.0)
    ax.plot(
        1.0,
        line[name]["mean"],
        marker="D",
        markersize=4.0,
        linestyle="none",
        color=_COLOURS[UNGUIDED],
        zorder=5,
        label=UNGUIDED,
    )


def _floor(ax: Any, record: Record, name: str) -> None:
    ax.axhline(
        record["floors"][name], color=TRUTH, linewidth=0.9, label="held-out images"
    )


def _finish(figure: Any, axes: Any, record: Record) -> None:
    for column, entry in enumerate(record["lengths"]):
        axes[0, column].set_yscale("log")
        _plain_ticks(axes[0, column].yaxis)
        axes[0, column].set_title(f"{entry['length']} training steps")
        axes[-1, column].set_xlabel("scale")
    for row, title in enumerate(_TITLES.values()):
        axes[row, 0].set_ylabel(title)
    _legend(figure, axes[0, -1])


def _legend(figure: Any, ax: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)


def _plain_ticks(axis: Any) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the common style; closes the figures made inside afterwards."""
    with plt.rc_context(FIGURE_SETTINGS):  # type: ignore[arg-type]
        try:
            yield
        finally:
            plt.close("all")
