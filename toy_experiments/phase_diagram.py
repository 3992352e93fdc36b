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
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment, Metrics, over_seeds
from toy_experiments.common.style import (
    COLOURS,
    DIVERGING,
    PAGE_WIDTH,
    TRUTH,
    plain_ticks,
    step_axis,
)
from toy_experiments.common.sweeps import (
    METRIC_TITLES,
    METRICS,
    Grid,
    measure_rule,
    over_two_threads,
    sweep_cell,
)
from toy_experiments.common.toys import (
    TOY_TITLES,
    TOYS,
    Budgets,
    ToyName,
    toy_schedule,
    train_toy,
)
from toy_experiments.common.workspace import Arrays, Workspace

_DISTANCE = METRICS.index("distance")
# (name, title, changes of the training), on the first mixture only
VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("narrow", "width 16", {"width": 16}),
    ("wide", "width 64", {"width": 64}),
    ("no_warmup", "EMA without warm-up", {"ema_warmup": False}),
    ("no_average", "no EMA", {"ema_decay": 0.0}),
)


@dataclasses.dataclass(frozen=True)
class PhaseDiagramConfig:
    """Configuration.

    Attributes:
        seeds: training seeds, at least 2.
        budgets: training lengths and network.
        variant_steps: the longest training length of the variants of the network; 0
            for none.
        variant_s2_scale: their omega.
        grid: scales, samples and steps.
    """

    seeds: int = 5
    budgets: Budgets = Budgets()
    variant_steps: int = 1000
    variant_s2_scale: float = 0.25
    grid: Grid = Grid()

    def __post_init__(self):
        if self.seeds < 2:
            raise ValueError(
                f"seeds must be at least 2, since intervals are over seeds, got "
                f"{self.seeds}."
            )
        if self.variant_s2_scale not in self.grid.s2_scales:
            raise ValueError(
                f"variant_s2_scale must be among grid.s2_scales "
                f"{self.grid.s2_scales}, got {self.variant_s2_scale}."
            )

    def variant_grid(self) -> Grid:
        """CFG and one omega, at all scales."""
        return dataclasses.replace(self.grid, s2_scales=(0.0, self.variant_s2_scale))

    @classmethod
    def quick(cls) -> PhaseDiagramConfig:
        """Two seeds, two training lengths, a coarse grid."""
        return cls(
            seeds=2,
            budgets=Budgets(steps=(50, 300), batch_size=256),
            variant_steps=0,
            grid=Grid((1.0, 2.0), (0.0, 0.25), num_samples=512, num_steps=16),
        )


def compute(config: PhaseDiagramConfig, workspace: Workspace) -> tuple[Metrics, Arrays]:
    """Every cell of the diagram and its paired changes."""
    metrics: Metrics = {
        "scales": list(config.grid.scales),
        "s2_scales": list(config.grid.s2_scales),
        "steps": list(config.budgets.steps),
        "toys": {},
        "variants": {},
        "equal_cost_steps": equal_cost_steps(config),
    }
    data: Arrays = {}
    for toy in TOYS:
        run = train_toy(workspace, toy, config.budgets.training(), config.seeds)
        values = _sweep(config, workspace, toy, run, config.budgets.steps, config.grid)
        exact = sweep_cell(workspace, toy, None, 0, 0, config.grid)
        costly = _equal_cost(config, workspace, toy, run)
        data[f"{toy}/values"] = values
        data[f"{toy}/exact"] = exact[:, 0]
        data[f"{toy}/equal_cost"] = costly
        metrics["toys"][toy] = _numbers(config, values, exact[:, 0], costly)
    lengths = tuple(s for s in config.budgets.steps if s <= config.variant_steps)
    for name, _, changes in VARIANTS if lengths else ():
        training = config.budgets.training(snapshots=lengths, **changes)
        run = train_toy(workspace, TOYS[0], training, config.seeds)
        grid = config.variant_grid()
        values = _sweep(config, workspace, TOYS[0], run, lengths, grid)
        data[f"variant/{name}"] = values
        metrics["variants"][name] = _variant_numbers(grid, values, lengths)
    return metrics, data


def _sweep(config, workspace, toy: ToyName, run, lengths, grid: Grid) -> np.ndarray:
    """``[steps, seeds, scales, s2_scales, metric]``."""
    items = [(step, seed) for step in lengths for seed in range(config.seeds)]
    title = f"phase diagram, {TOY_TITLES[toy]}"
    with workspace.reporter.task(title, len(items)) as task:

        def one(item):
            result = sweep_cell(workspace, toy, run, item[0], item[1], grid)
            task.advance(detail=f"{item[0]} steps, seed {item[1]}")
            return result

        first = one(items[0])  # compiles for the others
        cells = [first, *over_two_threads(one, items[1:])]
    return np.stack(cells).reshape(len(lengths), config.seeds, *cells[0].shape)


def equal_cost_steps(config: PhaseDiagramConfig) -> int:
    """Steps of CFG that cost as many passes as S² in the steps of the grid."""
    schedule = toy_schedule("two_modes", config.grid.num_steps)
    cost = gg.expected_cost(
        gg.S2Guidance(2.0), schedule, config.budgets.num_blocks, solver="dpmpp_2m"
    )
    return round(cost.shared / 2.0)


def _equal_cost(config, workspace, toy: ToyName, run) -> np.ndarray:
    """CFG with more steps, ``[steps, seeds, scales, metric]``."""
    num_steps = equal_cost_steps(config)
    items = [(s, k) for s in config.budgets.steps for k in range(config.seeds)]

    def one(item):
        step, seed = item

        def values() -> Arrays:
            network = run.denoiser(seed, step).network
            rows = [
                measure_rule(
                    toy,
                    network,
                    gg.CFG(s),
                    config.grid,
                    seed,
                    num_steps,
                    workspace.mesh,
                )
                for s in config.grid.scales
            ]
            return {"metrics": np.array(rows)}

        description = {
            "toy": toy,
            "training": repr(run.config),
            "seeds": run.num_seeds,
            "step": step,
            "seed": seed,
            "grid": repr(config.grid),
            "steps of CFG": num_steps,
        }
        return workspace.cell("sweep", description, values)["metrics"]

    cells = [one(items[0]), *over_two_threads(one, items[1:])]
    shape = (len(config.budgets.steps), config.seeds, *cells[0].shape)
    return np.stack(cells).reshape(shape)


def _numbers(config, values, exact, costly) -> Metrics:
    """Changes at equal scale, and against CFG at its best scale and at equal cost."""
    result: Metrics = {"exact_cfg": {}, "cells": {}, "best": {}}
    grid: Grid = config.grid
    for a, scale in enumerate(grid.scales):
        named = dict(zip(METRICS, exact[a].tolist(), strict=True))
        result["exact_cfg"][f"{scale:g}"] = named
    for i, step in enumerate(config.budgets.steps):
        for a, scale in enumerate(grid.scales):
            cfg = values[i, :, a, grid.zero]
            for b, omega in enumerate(grid.s2_scales):
                if omega == 0.0:
                    continue
                change = values[i, :, a, b] - cfg
                entry = over_seeds(_rows(change, "change of "))
                entry |= over_seeds(_rows(cfg, "CFG "))
                key = f"steps {step}, scale {scale:g}, omega {omega:g}"
                entry["verdict"] = verdict(entry["change of distance"])
                result["cells"][key] = entry
        result["best"][f"steps {step}"] = _best(grid, values[i], costly[i])
    counts = [c["verdict"] for c in result["cells"].values()]
    result["counts"] = {v: counts.count(v) for v in ("helps", "nothing", "harms")}
    return result


def _rows(values: np.ndarray, prefix: str) -> list[dict[str, float]]:
    return [
        {prefix + name: float(v) for name, v in zip(METRICS, row, strict=True)}
        for row in values
    ]


def verdict(change: Metrics) -> str:
    """What the 95 % interval of a change of distance says."""
    low, high = change["interval_95"]
    return "helps" if high < 0 else "harms" if low > 0 else "nothing"


def _best(grid: Grid, values: np.ndarray, costly: np.ndarray) -> Metrics:
    """Each rule at the scale that is best on average over seeds."""
    distance = values[..., _DISTANCE]  # [seeds, scales, s2_scales]
    means = distance.mean(0)
    cfg_at = int(means[:, grid.zero].argmin())
    cfg = distance[:, cfg_at, grid.zero]
    more = costly[..., _DISTANCE]
    more_at = int(more.mean(0).argmin())
    result: Metrics = {
        "CFG": over_seeds([{"distance": v} for v in cfg]),
        "CFG scale": grid.scales[cfg_at],
        "CFG at equal cost": over_seeds([{"distance": v} for v in more[:, more_at]]),
        "CFG at equal cost scale": grid.scales[more_at],
    }
    for b, omega in enumerate(grid.s2_scales):
        if omega == 0.0:
            continue
        at = int(means[:, b].argmin())
        best = distance[:, at, b]
        entry = over_seeds(
            [
                {"distance": x, "change": x - y, "change at equal cost": x - z}
                for x, y, z in zip(best, cfg, more[:, more_at], strict=True)
            ]
        )
        entry["scale"] = grid.scales[at]
        entry["verdict"] = verdict(entry["change"])
        entry["verdict at equal cost"] = verdict(entry["change at equal cost"])
        result[f"S2 omega {omega:g}"] = entry
    return result


def _variant_numbers(grid: Grid, values, lengths) -> Metrics:
    result: Metrics = {}
    for i, step in enumerate(lengths):
        for a, scale in enumerate(grid.scales):
            for b, omega in enumerate(grid.s2_scales):
                if omega == 0.0:
                    continue
                pair = values[i, :, a, :, _DISTANCE]
                entry = over_seeds(
                    [
                        {"CFG distance": y, "change of distance": x - y}
                        for x, y in zip(pair[:, b], pair[:, grid.zero], strict=True)
                    ]
                )
                entry["verdict"] = verdict(entry["change of distance"])
                result[f"steps {step}, scale {scale:g}, omega {omega:g}"] = entry
    return result


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Phases, rules at their best scale, other metrics, variants of the network."""
    figures = {
        "figure_phases": _draw_phases(metrics, data),
        "figure_best": _draw_best(metrics),
        "figure_metrics": _draw_metrics(metrics, data),
    }
    if metrics["variants"]:
        figures["figure_variants"] = _draw_variants(metrics, data)
    return figures


def _draw_phases(metrics: Metrics, data: Arrays) -> Figure:
    omegas = [w for w in metrics["s2_scales"] if w]
    figure, axes = plt.subplots(
        len(TOYS),
        len(omegas),
        figsize=(PAGE_WIDTH, 1.85 * len(TOYS) + 0.6),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, toy in enumerate(TOYS):
        for column, omega in enumerate(omegas):
            image = _heat(
                axes[row, column], metrics, data[f"{toy}/values"], omega, None
            )
            if row == 0:
                axes[0, column].set_title(f"ω = {omega:g}")
        axes[row, 0].set_ylabel(f"{TOY_TITLES[toy]}\nCFG scale λ")
    figure.supxlabel(
        "training steps.  ● 95 % interval over seeds on this side of zero, ○ not; "
        "colour: log₂ of W2(S²) / W2(CFG) at the same λ",
        fontsize=7,
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01)
    bar.set_label("S² helps  ←  0  →  S² harms")
    return figure


def _heat(ax, metrics, values, omega, steps):
    steps = metrics["steps"] if steps is None else steps
    scales, zero = metrics["scales"], metrics["s2_scales"].index(0.0)
    b = metrics["s2_scales"].index(omega)
    pair = values[..., _DISTANCE]  # [steps, seeds, scales, s2_scales]
    ratio = np.log2(pair[..., b].mean(1) / pair[..., zero].mean(1)).T
    image = ax.imshow(
        ratio, origin="lower", cmap=DIVERGING, vmin=-0.6, vmax=0.6, aspect="auto"
    )
    change = pair[..., b] - pair[..., zero]
    low, high = gg.metrics.confidence_interval(change, axis=1)
    sure = ((low > 0) | (high < 0)).T
    where = np.argwhere(np.ones_like(sure))
    for y, x in where:
        ax.plot(
            x,
            y,
            "o",
            markersize=3.2,
            markerfacecolor="black" if sure[y, x] else "none",
            markeredgecolor="black",
            markeredgewidth=0.5,
        )
    if ratio.shape[0] > 1 and ratio.shape[1] > 1 and ratio.min() < 0 < ratio.max():
        ax.contour(ratio, levels=[0.0], colors="black", linewidths=0.9)
    ax.set_xticks(range(len(steps)), [f"{s}" for s in steps])
    ax.set_yticks(range(len(scales)), [f"{s:g}" for s in scales])
    ax.spines[:].set_visible(False)
    return image


def _draw_best(metrics: Metrics) -> Figure:
    omegas = [w for w in metrics["s2_scales"] if w]
    figure, axes = plt.subplots(1, len(TOYS), figsize=(PAGE_WIDTH, 2.5))
    steps = metrics["steps"]
    shades = plt.get_cmap("viridis")(np.linspace(0.15, 0.85, len(omegas)))
    for ax, toy in zip(axes, TOYS, strict=True):
        best = metrics["toys"][toy]["best"]
        lines = [("CFG", COLOURS["cfg"], "-"), ("CFG at equal cost", "#8c3f00", ":")]
        lines += [
            (f"S2 omega {w:g}", c, "-") for w, c in zip(omegas, shades, strict=True)
        ]
        for name, colour, style in lines:
            entries = [best[f"steps {s}"][name]["distance"] for s in steps]
            ax.errorbar(
                steps,
                [e["mean"] for e in entries],
                yerr=[e["standard_error"] for e in entries],
                color=colour,
                linestyle=style,
                capsize=1.5,
                label=name.replace("S2 omega", "S², ω ="),
            )
        exact = metrics["toys"][toy]["exact_cfg"].values()
        floor = min(entry["distance"] for entry in exact)
        ax.axhline(floor, color=TRUTH, linewidth=0.8, label="exact denoiser")
        step_axis(ax, steps)
        ax.set(yscale="log", xlabel="training steps")
        plain_ticks(ax)
        ax.set_title(TOY_TITLES[toy])
    axes[0].set_ylabel("W2 at the best λ of each rule")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    return figure


def _draw_metrics(metrics: Metrics, data: Arrays) -> Figure:
    """Change of each metric at omega 0.25 (or the middle one), over training."""
    omegas = metrics["s2_scales"]
    omega = 0.25 if 0.25 in omegas else sorted(omegas)[-1]
    b, zero = omegas.index(omega), omegas.index(0.0)
    names = [n for n in METRICS if n != "nll_p99"]
    figure, axes = plt.subplots(
        len(TOYS), len(names), figsize=(PAGE_WIDTH, 1.45 * len(TOYS) + 0.5), sharex=True
    )
    steps = np.array(metrics["steps"])
    shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.9, len(metrics["scales"])))
    for row, toy in enumerate(TOYS):
        change = data[f"{toy}/values"][..., b, :] - data[f"{toy}/values"][..., zero, :]
        for column, name in enumerate(names):
            ax = axes[row, column]
            ax.axhline(0.0, color="black", linewidth=0.6)
            for a, scale in enumerate(metrics["scales"]):
                values = change[:, :, a, METRICS.index(name)]
                low, high = gg.metrics.confidence_interval(values, axis=1)
                ax.plot(steps, values.mean(1), color=shades[a], label=f"λ = {scale:g}")
                ax.fill_between(steps, low, high, color=shades[a], alpha=0.15, lw=0)
            step_axis(ax, metrics["steps"])
            ax.tick_params(labelsize=5.5)
            if name.startswith("nll"):
                ax.set_yscale("symlog", linthresh=0.1)
            if row == 0:
                ax.set_title(METRIC_TITLES[name])
        axes[row, 0].set_ylabel(TOY_TITLES[toy])
    for ax in axes[-1]:
        ax.set_xlabel("training steps")
    figure.suptitle(
        f"Change that S² (ω = {omega:g}) makes over CFG at the same λ, "
        f"95 % intervals over seeds",
        fontsize=8,
    )
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(metrics["scales"]),
    )
    return figure


def _draw_variants(metrics: Metrics, data: Arrays) -> Figure:
    omega = metrics["config"]["variant_s2_scale"]
    omegas = metrics["s2_scales"]
    count = data["variant/narrow"].shape[0]
    steps = metrics["steps"][:count]
    both = [omegas.index(0.0), omegas.index(omega)]
    panels = [("width 32", data[f"{TOYS[0]}/values"][:count, :, :, both])]
    panels += [(title, data[f"variant/{name}"]) for name, title, _ in VARIANTS]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(PAGE_WIDTH, 2.0), sharey=True, squeeze=False
    )
    for ax, (title, values) in zip(axes[0], panels, strict=True):
        two = {"scales": metrics["scales"], "s2_scales": [0.0, omega]}
        image = _heat(ax, two, values, omega, steps)
        ax.set_title(title)
    axes[0, 0].set_ylabel("CFG scale λ")
    figure.supxlabel(
        f"training steps, {TOY_TITLES[TOYS[0]]}, ω = {omega:g}", fontsize=7
    )
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("log₂ W2 ratio")
    return figure


def summarise(metrics: Metrics) -> list[str]:
    """How many cells help and harm, and the best rule at each training length."""
    lines = []
    for toy in TOYS:
        result = metrics["toys"][toy]
        counts = result["counts"]
        lines.append(
            f"{TOY_TITLES[toy]}: S² helps in {counts['helps']}, changes nothing "
            f"significant in {counts['nothing']}, harms in {counts['harms']} cells"
        )
        for name, best in result["best"].items():
            cells = [
                f"ω {key.split()[-1]}: {entry['change']['mean']:+.4f} "
                f"({entry['verdict']})"
                for key, entry in best.items()
                if key.startswith("S2")
            ]
            lines.append(
                f"  {name}: best CFG {best['CFG']['distance']['mean']:.4f}; S² at its "
                f"best scale {', '.join(cells)}"
            )
    return lines


EXPERIMENT = Experiment(
    "phase_diagram",
    "where S² helps, does nothing or harms: training length x CFG scale x omega",
    PhaseDiagramConfig,
    compute,
    draw,
    summarise,
)
