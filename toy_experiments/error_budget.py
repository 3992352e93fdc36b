"""Where guidance errs: the rule's bias and the learned error at each noise level.

The guided denoiser's distance to ``E[x0 | x, label]`` is split into what the rule does
with exact denoisers, which no sub-network can correct, and what the network got wrong,
amplified by the rule; and it is shown what the S² term makes of each.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment, check_among
from toy_experiments.common.mixtures import (
    MIXTURE_TITLES,
    MixtureName,
    make_mixture,
    relative_schedule,
)
from toy_experiments.common.records import (
    Metrics,
    Tables,
    measurement,
    over_seeds,
    select,
)
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.style import (
    COLORS,
    DIVERGING,
    PAGE_WIDTH,
    TRUTH,
    draw_band,
    legend_below,
)
from toy_experiments.common.sweep import AnalysisConfig

LABEL = 0
POINTS = ("noised", "trajectory")
_MIXTURES: tuple[MixtureName, ...] = ("four_corners", "tree")
_PARTS = ("bias", "learning", "without_weak", "total", "weak")
_RATIOS = (
    "cosine_with_minus_learning_error",
    "cosine_with_minus_bias",
    "fraction_of_learning_error_removed",
    "fraction_of_bias_removed",
    "fraction_of_total_removed",
)


@dataclasses.dataclass(frozen=True)
class ErrorBudgetConfig(AnalysisConfig):
    """Configuration of ``error_budget``.

    Attributes:
        num_samples: points at each noise level.
        num_steps: noise levels.
        shown: the training lengths of which budgets are made.
        scale: total CFG scale.
        s2_scale: the paper's omega. The term is its expectation over masks, and acts at
            every level.
    """

    num_samples: int = 1024
    num_steps: int = 24
    shown: tuple[int, ...] = (300, 3000)
    scale: float = 4.0
    s2_scale: float = 0.25

    QUICK = AnalysisConfig.QUICK | {"shown": (50, 300), "num_steps": 12}

    def __post_init__(self):
        super().__post_init__()
        check_among(self.budgets.steps, "budgets.steps", shown=self.shown)

    def rule(self) -> gg.S2Guidance:
        """S² in expectation over its masks, at all levels."""
        return gg.S2Guidance(self.scale, self.s2_scale, num_masks="all", window=None)


def compute(config: ErrorBudgetConfig, store: Store) -> tuple[Tables, Arrays]:
    """Budgets of each mixture, training length, seed and kind of points."""
    tables: Tables = {"levels": [], "budgets": []}
    data: Arrays = {}
    seeds = range(config.seeds)
    for name in _MIXTURES:
        run = config.networks(store, name)

        def one(points, steps, seed, name=name, run=run) -> gg.ErrorBudget:
            network = run.denoiser(seed, steps).network
            num_levels, count = config.num_steps, config.num_samples
            cell = store.cell(
                budget_arrays,
                network, config.rule(), name, num_levels, count, points, seed,
            )  # fmt: skip
            return gg.ErrorBudget(
                cell["sigmas"],
                tuple(int(b) for b in cell["blocks"]),
                cell["products"],
                cell["defect"],
            )

        cases = [(points, steps) for points in POINTS for steps in config.shown]
        items = [(*case, seed) for case in cases for seed in seeds]
        found = store.map(f"error budget, {name}", one, items)
        for points, steps in cases:
            budgets = [found[points, steps, seed] for seed in seeds]
            values, ratios, blocks = _curves(budgets)
            data[f"{name}/{points}/{steps}/rms"] = values
            data[f"{name}/{points}/{steps}/ratios"] = ratios
            data[f"{name}/{points}/{steps}/blocks"] = blocks
            data[f"{name}/sigmas"] = sigmas = budgets[0].sigmas
            place = {"mixture": name, "points": points, "steps": steps}
            for k, sigma in enumerate(sigmas):
                rows = [
                    dict(zip(_PARTS + _RATIOS, [*v[:, k], *r[:, k]], strict=True))
                    for v, r in zip(values, ratios, strict=True)
                ]
                level = {"sigma": float(sigma)}
                tables["levels"].append(place | level | over_seeds(rows))
            crossings = [_crossing(sigmas, v[0], v[1]) for v in values]
            tables["budgets"].append(
                place
                | {
                    # Below this level the learned error exceeds the bias.
                    "crossing_sigma": measurement(crossings),
                    # Of the sum of the parts, which should be the whole.
                    "largest_deviation": max(float(b.defect.max()) for b in budgets),
                }
            )
    return tables, data


def budget_arrays(
    context: Context,
    network: Any,
    rule: gg.GuidanceRule,
    name: MixtureName,
    num_levels: int,
    num_samples: int,
    points: str,
    seed: int,
) -> Arrays:
    """The fields of one error budget."""
    budget = gg.error_budget(
        jax.random.key(500 + seed),
        network,
        rule,
        make_mixture(name),
        LABEL,
        schedule=relative_schedule(name, num_levels),
        num_samples=num_samples,
        points=points,  # type: ignore[arg-type]
        blocks=True,
    )
    return {
        "sigmas": budget.sigmas,
        "blocks": np.array(budget.blocks),
        "products": budget.products,
        "defect": budget.defect,
    }


def _curves(budgets: list[gg.ErrorBudget]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``[seeds, part, S]``, ``[seeds, ratio, S]``, ``[seeds, block, S]``."""
    rms = np.array([[b.rms(part) for part in _PARTS] for b in budgets])
    ratios = np.array(
        [
            [
                b.cosine("weak", "learning"),
                b.cosine("weak", "bias"),
                b.fraction_removed("learning"),
                b.fraction_removed("bias"),
                b.fraction_removed("without_weak"),
            ]
            for b in budgets
        ]
    )
    blocks = np.array(
        [[b.cosine(b.block(k), "learning") for k in b.blocks] for b in budgets]
    )
    return rms, ratios, blocks


def _crossing(sigmas: np.ndarray, bias: np.ndarray, learned: np.ndarray) -> float:
    """Highest level of the low-noise range in which the learned error dominates."""
    above = np.flatnonzero(bias >= learned)  # levels descend
    if len(above) == 0:
        return float(sigmas[0])
    last = above[-1]
    if last + 1 == len(sigmas):
        return float(sigmas[-1])
    # Where the two lines cross between neighboring levels, in logarithms.
    gap = np.log(np.maximum(bias, 1e-30) / np.maximum(learned, 1e-30))
    t = gap[last] / (gap[last] - gap[last + 1])
    return float(np.exp(np.interp(t, [0, 1], np.log(sigmas[last : last + 2]))))


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """The budget, what the S² term does to each part, and each block's direction."""
    return {
        "figure_budget": _draw_budget(metrics, data, "noised"),
        "figure_trajectory": _draw_budget(metrics, data, "trajectory"),
        "figure_effect": _draw_effect(metrics, data),
        "figure_blocks": _draw_blocks(metrics, data),
    }


def _panels(metrics: Metrics, height: float, **options):
    """A panel for each mixture (rows) and training length (columns)."""
    shown = metrics["config"]["shown"]
    figure, axes = plt.subplots(
        len(_MIXTURES),
        len(shown),
        figsize=(PAGE_WIDTH, height),
        sharex="row",
        squeeze=False,
        **options,
    )
    for ax, steps in zip(axes[0], shown, strict=True):
        ax.set_title(f"{steps} training steps")
    for ax, name in zip(axes[:, 0], _MIXTURES, strict=True):
        ax.set_ylabel(MIXTURE_TITLES[name])
    for ax in axes.flat:
        ax.set_xscale("log")
    for ax in axes[-1]:
        ax.set_xlabel("noise level σ")
    return figure, axes


def _draw_budget(metrics: Metrics, data: Arrays, points: str) -> Figure:
    config = metrics["config"]
    styles = (
        ("bias", "bias of CFG, exact denoisers", TRUTH, "-"),
        (
            "learning",
            "learned error, as CFG amplifies it",
            COLORS["autoguidance"],
            "-",
        ),
        ("without_weak", "both: CFG", COLORS["cfg"], "-"),
        ("total", "both, with S²", COLORS["s2"], "--"),
        ("weak", "the S² term alone", COLORS["s2"], ":"),
    )
    figure, axes = _panels(metrics, 4.4, sharey="row")
    for row, name in enumerate(_MIXTURES):
        sigmas = data[f"{name}/sigmas"]
        for column, steps in enumerate(metrics["config"]["shown"]):
            ax = axes[row, column]
            rms = data[f"{name}/{points}/{steps}/rms"]
            for part, label, color, line in styles:
                values = rms[:, _PARTS.index(part)]
                draw_band(ax, sigmas, values, line, color=color, label=label)
            ax.set_yscale("log")
            ax.set_ylim(bottom=1e-4 if name == "tree" else 1e-3)
    where = "true noised samples" if points == "noised" else "the sampler's own path"
    figure.suptitle(
        f"Error of the guided denoiser against E[x₀ | x, label], rms over {where}, "
        f"λ = {config['scale']:g}, ω = {config['s2_scale']:g}",
        fontsize=8,
    )
    legend_below(axes[0, 0], 3)
    return figure


def _draw_effect(metrics: Metrics, data: Arrays) -> Figure:
    figure, axes = _panels(metrics, 4.2, sharey=True)
    styles = (
        (0, "cosine with − learned error", COLORS["autoguidance"], "-"),
        (1, "cosine with − bias", TRUTH, "-"),
        (2, "fraction of learned error removed", COLORS["autoguidance"], "--"),
        (3, "fraction of bias removed", TRUTH, "--"),
        (4, "fraction of the whole removed", COLORS["s2"], "-"),
    )
    for row, name in enumerate(_MIXTURES):
        sigmas = data[f"{name}/sigmas"]
        for column, steps in enumerate(metrics["config"]["shown"]):
            ax = axes[row, column]
            ax.axhline(0.0, color="black", linewidth=0.6)
            ratios = data[f"{name}/noised/{steps}/ratios"]
            for index, label, color, line in styles:
                draw_band(ax, sigmas, ratios[:, index], line, color=color, label=label)
            ax.set_ylim(-1.05, 1.05)
    figure.suptitle(
        "What the S² term does to each part (1: cancels it, 0: nothing, below: adds)",
        fontsize=8,
    )
    legend_below(axes[0, 0], 3)
    return figure


def _draw_blocks(metrics: Metrics, data: Arrays) -> Figure:
    figure, axes = _panels(metrics, 3.8)
    for row, name in enumerate(_MIXTURES):
        sigmas = data[f"{name}/sigmas"]
        for column, steps in enumerate(metrics["config"]["shown"]):
            ax = axes[row, column]
            cosines = data[f"{name}/noised/{steps}/blocks"].mean(0)
            blocks = np.arange(1, cosines.shape[0] + 1)
            image = ax.pcolormesh(
                sigmas, blocks, cosines, cmap=DIVERGING.removesuffix("_r"),
                vmin=-1, vmax=1, shading="nearest",
            )  # fmt: skip
            ax.set_yticks(blocks)
            if column == 0:
                ax.set_ylabel(f"{MIXTURE_TITLES[name]}\ndropped block")
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.01)
    bar.set_label("cosine of D_c − D_weak with − learned error\n(mean over seeds)")
    return figure


def summarize(metrics: Metrics) -> list[str]:
    """Where bias and learned error cross, and what the S² term removes there."""
    lines = []
    for record in metrics["tables"]["budgets"]:
        place = {k: record[k] for k in ("mixture", "points", "steps")}
        removed = [
            level["fraction_of_learning_error_removed"]["mean"]
            for level in select(metrics, "levels", **place)
        ]
        lines.append(
            f"{MIXTURE_TITLES[record['mixture']]}, {record['points']} points, "
            f"{record['steps']} steps: the bias of CFG dominates above sigma "
            f"{record['crossing_sigma']['mean']:.3g}; the S² term removes between "
            f"{min(removed):.0%} and {max(removed):.0%} of the squared learned error"
        )
    return lines


EXPERIMENT = Experiment(
    "error_budget",
    "analysis",
    "error per noise level: the rule's bias, the learned part, and what S² corrects",
    ErrorBudgetConfig,
    compute,
    draw,
    summarize,
)
