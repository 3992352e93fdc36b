"""Where S²-Guidance helps over CFG, where it does nothing, and where it harms.

Training length x CFG scale x omega on three mixtures, paired over training seeds: the
same network, noise and masks with and without the S² term. All lengths of a seed are
snapshots of one training run. On one mixture also the width of the network and the
averaging of its weights vary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment, check_among
from toy_experiments.common.mixtures import (
    MIXTURE_TITLES,
    MIXTURES,
    MixtureName,
    make_mixture,
    relative_schedule,
)
from toy_experiments.common.records import (
    Metrics,
    Record,
    Tables,
    measurement,
    select,
    verdict,
)
from toy_experiments.common.store import Arrays, Store
from toy_experiments.common.style import (
    COLORS,
    DIVERGING,
    PAGE_WIDTH,
    TRUTH,
    draw_measurements,
    legend_below,
    plain_ticks,
    shades,
    step_axis,
)
from toy_experiments.common.sweep import (
    DISTANCE,
    METRIC_TITLES,
    METRICS,
    AnalysisConfig,
    Grid,
    measure_grid,
    measure_rules,
)

# name: (title, changes of the training), on the first mixture only
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "narrow": ("width 16", {"width": 16}),
    "wide": ("width 64", {"width": 64}),
    "no_warmup": ("EMA without warm-up", {"ema_warmup": False}),
    "no_average": ("no EMA", {"ema_decay": 0.0}),
}
#: CFG in more steps, which cost as many passes as S².
EQUAL_COST = "cfg_equal_cost"


@dataclasses.dataclass(frozen=True)
class PhaseDiagramConfig(AnalysisConfig):
    """Configuration of ``phase_diagram``.

    Attributes:
        variant_steps: the longest training length of the variants of the network; 0
            for none.
        variant_s2_scale: their omega.
        grid: scales of the rules.
    """

    num_samples: int = 2048
    variant_steps: int = 1000
    variant_s2_scale: float = 0.25
    grid: Grid = Grid()

    QUICK = AnalysisConfig.QUICK | {
        "num_samples": 512,
        "variant_steps": 0,
        "grid": Grid((1.0, 2.0), (0.0, 0.25)),
    }

    def __post_init__(self):
        super().__post_init__()
        check_among(
            self.grid.s2_scales,
            "grid.s2_scales",
            variant_s2_scale=self.variant_s2_scale,
        )

    def variant_grid(self) -> Grid:
        """CFG and one omega, at all scales."""
        return dataclasses.replace(self.grid, s2_scales=(0.0, self.variant_s2_scale))

    def variant_lengths(self) -> tuple[int, ...]:
        """Training lengths of the variants."""
        return tuple(s for s in self.budgets.steps if s <= self.variant_steps)


def compute(config: PhaseDiagramConfig, store: Store) -> tuple[Tables, Arrays]:
    """Every cell of the diagram and its paired changes."""
    num_steps = equal_cost_steps(config)
    tables: Tables = {
        "cells": [],
        "best": [],
        "exact": [],
        "variants": [],
        "equal_cost": [{"rule": EQUAL_COST, "num_steps": num_steps}],
    }
    data: Arrays = {}
    cfg_grid = Grid(config.grid.scales, (0.0,))
    for name in MIXTURES:
        run = config.networks(store, name)
        values = _sweep(config, store, name, run, config.budgets.steps, config.grid)
        exact = gg.ExactDenoiser(make_mixture(name))
        found = measure_grid(store, name, exact, cfg_grid, config, 0)[:, 0]
        tables["exact"] += [
            {"mixture": name, "rule": "cfg", "scale": scale}
            | dict(zip(METRICS, row.tolist(), strict=True))
            for scale, row in zip(config.grid.scales, found, strict=True)
        ]
        costly = _equal_cost(config, store, name, run, num_steps)
        data[f"{name}/values"] = values
        place: Record = {"mixture": name}
        tables["cells"] += _cells(config.grid, values, config.budgets.steps, place)
        for i, step in enumerate(config.budgets.steps):
            tables["best"] += _best(
                config.grid, values[i], costly[i], place | {"steps": step}
            )
    lengths = config.variant_lengths()
    for variant, (_, changes) in VARIANTS.items() if lengths else ():
        run = config.networks(store, MIXTURES[0], snapshots=lengths, **changes)
        grid = config.variant_grid()
        values = _sweep(config, store, MIXTURES[0], run, lengths, grid)
        data[f"variant/{variant}"] = values
        place = {"mixture": MIXTURES[0], "variant": variant}
        tables["variants"] += _cells(grid, values, lengths, place)
    return tables, data


def _sweep(
    config: PhaseDiagramConfig,
    store: Store,
    name: MixtureName,
    run: gg.TrainingRun,
    lengths: tuple[int, ...],
    grid: Grid,
) -> np.ndarray:
    """``[steps, seeds, scales, s2_scales, metric]``."""

    def one(step: int, seed: int) -> np.ndarray:
        network = run.denoiser(seed, step).network
        return measure_grid(store, name, network, grid, config, seed)

    return _by_step_and_seed(config, store, f"sweep, {name}", one, lengths)


def _equal_cost(
    config: PhaseDiagramConfig,
    store: Store,
    name: MixtureName,
    run: gg.TrainingRun,
    num_steps: int,
) -> np.ndarray:
    """CFG with more steps, ``[steps, seeds, scales, metric]``."""
    rules = [gg.CFG(scale) for scale in config.grid.scales]

    def one(step: int, seed: int) -> np.ndarray:
        network = run.denoiser(seed, step).network
        return measure_rules(
            store, name, network, rules, config.num_samples, num_steps, seed
        )

    title = f"equal cost, {name}"
    return _by_step_and_seed(config, store, title, one, config.budgets.steps)


def _by_step_and_seed(config, store, title, one, lengths) -> np.ndarray:
    items = [(step, seed) for step in lengths for seed in range(config.seeds)]
    values = np.stack(list(store.map(title, one, items).values()))
    return values.reshape(len(lengths), config.seeds, *values.shape[1:])


def equal_cost_steps(config: PhaseDiagramConfig) -> int:
    """Steps of CFG that cost as many passes as S² in the steps of the sweep."""
    schedule = relative_schedule("two_modes", config.num_steps)
    cost = gg.expected_cost(
        gg.S2Guidance(2.0), schedule, config.budgets.num_blocks, solver="dpmpp_2m"
    )
    return round(cost.shared / 2.0)


def _cells(
    grid: Grid, values: np.ndarray, lengths: tuple[int, ...], place: Record
) -> list[Record]:
    """S² against CFG at the same scale: a record for each length, scale and omega.

    Each metric of CFG (``cfg_distance``, ...) and its change by S²
    (``change_of_distance``, ...), which is S² minus CFG seed by seed.
    """
    result = []
    for i, step in enumerate(lengths):
        for a, scale in enumerate(grid.scales):
            cfg = values[i, :, a, grid.zero]
            for omega in grid.omegas:
                b = grid.s2_scales.index(omega)
                change = dict(zip(METRICS, (values[i, :, a, b] - cfg).T, strict=True))
                result.append(
                    place
                    | {"steps": step, "scale": scale, "s2_scale": omega}
                    | {"verdict": verdict(measurement(change["distance"]))}
                    | {f"change_of_{m}": measurement(v) for m, v in change.items()}
                    | {
                        f"cfg_{m}": measurement(v)
                        for m, v in zip(METRICS, cfg.T, strict=True)
                    }
                )
    return result


def _best(
    grid: Grid, values: np.ndarray, costly: np.ndarray, place: Record
) -> list[Record]:
    """Each rule at the scale that is best on average over seeds."""
    distance = values[..., DISTANCE]  # [seeds, scales, s2_scales]
    columns = {("cfg", 0.0): distance[..., grid.zero]}
    columns[EQUAL_COST, 0.0] = costly[..., DISTANCE]
    for omega in grid.omegas:
        columns["s2", omega] = distance[..., grid.s2_scales.index(omega)]
    result, found = [], {}
    for (rule, omega), column in columns.items():
        at = int(column.mean(0).argmin())
        found[rule] = best = column[:, at]
        entry = {"rule": rule, "s2_scale": omega, "scale": grid.scales[at]}
        entry["distance"] = measurement(best)
        if rule == "s2":
            for reference in ("cfg", EQUAL_COST):
                change = measurement(best - found[reference])
                entry[f"minus_{reference}"] = change
                entry[f"verdict_against_{reference}"] = verdict(change)
        result.append(place | entry)
    return result


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Phases, rules at their best scale, other metrics, variants of the network."""
    figures = {
        "figure_phases": _draw_phases(metrics, data),
        "figure_best": _draw_best(metrics),
        "figure_metrics": _draw_metrics(metrics, data),
    }
    if metrics["tables"]["variants"]:
        figures["figure_variants"] = _draw_variants(metrics, data)
    return figures


def _draw_phases(metrics: Metrics, data: Arrays) -> Figure:
    grid = Grid(**metrics["config"]["grid"])
    omegas = grid.omegas
    figure, axes = plt.subplots(
        len(MIXTURES),
        len(omegas),
        figsize=(PAGE_WIDTH, 1.85 * len(MIXTURES) + 0.6),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, name in enumerate(MIXTURES):
        for column, omega in enumerate(omegas):
            image = _heat(
                axes[row, column],
                data[f"{name}/values"],
                grid,
                omega,
                metrics["config"]["budgets"]["steps"],
            )
            if row == 0:
                axes[0, column].set_title(f"ω = {omega:g}")
        axes[row, 0].set_ylabel(f"{MIXTURE_TITLES[name]}\nCFG scale λ")
    figure.supxlabel(
        "training steps.  ● 95 % interval over seeds on this side of zero, ○ not; "
        "color: log₂ of W2(S²) / W2(CFG) at the same λ",
        fontsize=7,
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01)
    bar.set_label("S² helps  ←  0  →  S² harms")
    return figure


def _heat(
    ax: Axes, values: np.ndarray, grid: Grid, omega: float, steps: list[int]
) -> Any:
    pair = values[..., DISTANCE]  # [steps, seeds, scales, s2_scales]
    s2, cfg = pair[..., grid.s2_scales.index(omega)], pair[..., grid.zero]
    ratio = np.log2(s2.mean(1) / cfg.mean(1)).T
    image = ax.imshow(
        ratio, origin="lower", cmap=DIVERGING, vmin=-0.6, vmax=0.6, aspect="auto"
    )
    low, high = gg.metrics.confidence_interval(s2 - cfg, axis=1)
    decided = ((low > 0) | (high < 0)).T
    for (y, x), filled in np.ndenumerate(decided):
        ax.plot(
            x,
            y,
            "o",
            markersize=3.2,
            markerfacecolor="black" if filled else "none",
            markeredgecolor="black",
            markeredgewidth=0.5,
        )
    if ratio.shape[0] > 1 and ratio.shape[1] > 1 and ratio.min() < 0 < ratio.max():
        ax.contour(ratio, levels=[0.0], colors="black", linewidths=0.9)
    ax.set_xticks(range(len(steps)), [f"{s}" for s in steps])
    ax.set_yticks(range(len(grid.scales)), [f"{s:g}" for s in grid.scales])
    ax.spines[:].set_visible(False)
    return image


def _draw_best(metrics: Metrics) -> Figure:
    steps = metrics["config"]["budgets"]["steps"]
    omegas = Grid(**metrics["config"]["grid"]).omegas
    lines = [("cfg", 0.0, "CFG", COLORS["cfg"], "-")]
    lines += [(EQUAL_COST, 0.0, "CFG at equal cost", "#8c3f00", ":")]
    lines += [
        ("s2", omega, f"S², ω = {omega:g}", color, "-")
        for omega, color in zip(omegas, shades(len(omegas), 0.15), strict=True)
    ]
    figure, axes = plt.subplots(1, len(MIXTURES), figsize=(PAGE_WIDTH, 2.5))
    for ax, name in zip(axes, MIXTURES, strict=True):
        for rule, omega, label, color, style in lines:
            found = select(metrics, "best", mixture=name, rule=rule, s2_scale=omega)
            distances = [r["distance"] for r in found]
            draw_measurements(
                ax, steps, distances, color=color, linestyle=style, label=label
            )
        floor = min(r["distance"] for r in select(metrics, "exact", mixture=name))
        ax.axhline(floor, color=TRUTH, linewidth=0.8, label="exact denoiser")
        step_axis(ax, steps)
        ax.set(yscale="log", xlabel="training steps")
        plain_ticks(ax.yaxis)
        ax.set_title(MIXTURE_TITLES[name])
    axes[0].set_ylabel("W2 at the best λ of each rule")
    legend_below(axes[0], 4)
    return figure


def _draw_metrics(metrics: Metrics, data: Arrays) -> Figure:
    """Change of each metric at omega 0.25 (or the middle one), over training."""
    grid = Grid(**metrics["config"]["grid"])
    omega = 0.25 if 0.25 in grid.s2_scales else max(grid.s2_scales)
    b, zero = grid.s2_scales.index(omega), grid.zero
    names = [n for n in METRICS if n != "nll_p99"]
    figure, axes = plt.subplots(
        len(MIXTURES),
        len(names),
        figsize=(PAGE_WIDTH, 1.45 * len(MIXTURES) + 0.5),
        sharex=True,
    )
    steps = metrics["config"]["budgets"]["steps"]
    colors = shades(len(grid.scales), high=0.9)
    for row, mixture in enumerate(MIXTURES):
        values = data[f"{mixture}/values"]
        change = values[..., b, :] - values[..., zero, :]
        for column, name in enumerate(names):
            ax = axes[row, column]
            ax.axhline(0.0, color="black", linewidth=0.6)
            for a, scale in enumerate(grid.scales):
                own = change[:, :, a, METRICS.index(name)]
                low, high = gg.metrics.confidence_interval(own, axis=1)
                ax.plot(steps, own.mean(1), color=colors[a], label=f"λ = {scale:g}")
                ax.fill_between(steps, low, high, color=colors[a], alpha=0.15, lw=0)
            step_axis(ax, steps)
            ax.tick_params(labelsize=5.5)
            if name.startswith("nll"):
                ax.set_yscale("symlog", linthresh=0.1)
            if row == 0:
                ax.set_title(METRIC_TITLES[name])
        axes[row, 0].set_ylabel(MIXTURE_TITLES[mixture])
    for ax in axes[-1]:
        ax.set_xlabel("training steps")
    figure.suptitle(
        f"Change that S² (ω = {omega:g}) makes over CFG at the same λ, "
        f"95 % intervals over seeds",
        fontsize=8,
    )
    legend_below(axes[0, 0], len(grid.scales))
    return figure


def _draw_variants(metrics: Metrics, data: Arrays) -> Figure:
    grid = Grid(**metrics["config"]["grid"])
    omega = metrics["config"]["variant_s2_scale"]
    two = Grid(grid.scales, (0.0, omega))
    count = data["variant/narrow"].shape[0]
    steps = metrics["config"]["budgets"]["steps"][:count]
    both = [grid.zero, grid.s2_scales.index(omega)]
    panels = [("width 32", data[f"{MIXTURES[0]}/values"][:count, :, :, both])]
    panels += [(title, data[f"variant/{v}"]) for v, (title, _) in VARIANTS.items()]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(PAGE_WIDTH, 2.0), sharey=True, squeeze=False
    )
    for ax, (title, values) in zip(axes[0], panels, strict=True):
        image = _heat(ax, values, two, omega, steps)
        ax.set_title(title)
    axes[0, 0].set_ylabel("CFG scale λ")
    figure.supxlabel(
        f"training steps, {MIXTURE_TITLES[MIXTURES[0]]}, ω = {omega:g}", fontsize=7
    )
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("log₂ W2 ratio")
    return figure


def summarize(metrics: Metrics) -> list[str]:
    """How many cells help and harm, and the best rule at each training length."""
    lines = []
    for name in MIXTURES:
        verdicts = [r["verdict"] for r in select(metrics, "cells", mixture=name)]
        lines.append(
            f"{MIXTURE_TITLES[name]}: S² is closer to the truth than CFG at the same "
            f"scale in {verdicts.count('closer')}, farther in "
            f"{verdicts.count('farther')} of {len(verdicts)} cells, "
            f"{verdicts.count('undecided')} undecided"
        )
        for cfg in select(metrics, "best", mixture=name, rule="cfg"):
            cells = [
                f"ω {r['s2_scale']:g}: {r['minus_cfg']['mean']:+.4f} "
                f"({r['verdict_against_cfg']})"
                for r in select(
                    metrics, "best", mixture=name, rule="s2", steps=cfg["steps"]
                )
            ]
            lines.append(
                f"  {cfg['steps']} steps: best CFG {cfg['distance']['mean']:.4f}; "
                f"S² at its best scale {', '.join(cells)}"
            )
    return lines


EXPERIMENT = Experiment(
    "phase_diagram",
    "analysis",
    "where S² helps, does nothing or harms: training length x CFG scale x omega",
    PhaseDiagramConfig,
    compute,
    draw,
    summarize,
)
