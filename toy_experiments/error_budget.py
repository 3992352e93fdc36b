"""Where guidance errs: the rule's bias and the learned error at each noise level.

The guided denoiser's distance to ``E[x0 | x, label]`` is split into what the rule does
with exact denoisers, which no sub-network can mend, and what the network got wrong,
amplified by the rule; and it is shown what the S² term makes of each.
"""

from __future__ import annotations

import dataclasses

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment, Metrics, over_seeds
from toy_experiments.common.style import COLOURS, DIVERGING, PAGE_WIDTH, TRUTH
from toy_experiments.common.sweeps import over_two_threads
from toy_experiments.common.toys import (
    TOY_TITLES,
    Budgets,
    ToyName,
    make_toy,
    toy_schedule,
    train_toy,
)
from toy_experiments.common.workspace import Arrays, Workspace

LABEL = 0
POINTS = ("noised", "trajectory")
_TOYS: tuple[ToyName, ...] = ("four_corners", "tree")
_PARTS = ("bias", "learning", "without_weak", "total", "weak")
_RATIOS = (
    "cosine with minus learning error",
    "cosine with minus bias",
    "share of learning error removed",
    "share of bias removed",
    "share of total removed",
)


@dataclasses.dataclass(frozen=True)
class ErrorBudgetConfig:
    """Configuration.

    Attributes:
        seeds: training seeds, at least 2.
        budgets: training lengths and network; the networks of the phase diagram.
        shown: the training lengths of which budgets are made.
        scale: total CFG scale.
        s2_scale: the paper's omega. The term is its expectation over masks, and acts at
            every level.
        num_samples: points at each level.
        num_steps: noise levels.
    """

    seeds: int = 5
    budgets: Budgets = Budgets()
    shown: tuple[int, ...] = (300, 3000)
    scale: float = 4.0
    s2_scale: float = 0.25
    num_samples: int = 1024
    num_steps: int = 24

    def __post_init__(self):
        if self.seeds < 2:
            raise ValueError(
                f"seeds must be at least 2, since intervals are over seeds, got "
                f"{self.seeds}."
            )
        missing = set(self.shown) - set(self.budgets.steps)
        if missing:
            raise ValueError(
                f"shown must be among budgets.steps {self.budgets.steps}, got "
                f"{sorted(missing)}."
            )

    @classmethod
    def quick(cls) -> ErrorBudgetConfig:
        """Two seeds, shorter training, fewer levels."""
        return cls(
            seeds=2,
            budgets=Budgets(steps=(50, 300), batch_size=256),
            shown=(50, 300),
            num_samples=256,
            num_steps=12,
        )

    def rule(self) -> gg.S2Guidance:
        """S² in expectation over its masks, at all levels."""
        return gg.S2Guidance(self.scale, self.s2_scale, num_masks="all", window=None)


def compute(config: ErrorBudgetConfig, workspace: Workspace) -> tuple[Metrics, Arrays]:
    """Budgets of each toy, training length, seed and kind of points."""
    metrics: Metrics = {
        "scale": config.scale,
        "s2_scale": config.s2_scale,
        "shown": list(config.shown),
        "toys": {},
    }
    data: Arrays = {}
    for toy in _TOYS:
        run = train_toy(workspace, toy, config.budgets.training(), config.seeds)
        items = [
            (points, steps, seed)
            for points in POINTS
            for steps in config.shown
            for seed in range(config.seeds)
        ]
        with workspace.reporter.task(f"error budget, {toy}", len(items)) as task:

            def one(item, toy=toy, run=run, task=task):
                found = _cell(config, workspace, toy, run, *item)
                task.advance(detail=f"{item[0]}, {item[1]} steps, seed {item[2]}")
                return found

            first = one(items[0])
            found = [first, *over_two_threads(one, items[1:])]
        result: Metrics = {}
        for points in POINTS:
            for steps in config.shown:
                own = [
                    f
                    for f, item in zip(found, items, strict=True)
                    if item[:2] == (points, steps)
                ]
                key = f"{points}, {steps} steps"
                values, ratios, blocks = _curves(own)
                data[f"{toy}/{key}/rms"] = values
                data[f"{toy}/{key}/ratios"] = ratios
                data[f"{toy}/{key}/blocks"] = blocks
                data[f"{toy}/sigmas"] = own[0].sigmas
                result[key] = _numbers(own, values, ratios)
        metrics["toys"][toy] = result
    return metrics, data


def _cell(config, workspace, toy, run, points, steps, seed) -> gg.ErrorBudget:
    """One budget, stored."""
    schedule = toy_schedule(toy, config.num_steps)

    def compute() -> Arrays:
        budget = gg.error_budget(
            jax.random.key(500 + seed),
            run.denoiser(seed, steps).network,
            config.rule(),
            make_toy(toy),
            LABEL,
            schedule=schedule,
            num_samples=config.num_samples,
            points=points,
            blocks=True,
        )
        return {
            "sigmas": budget.sigmas,
            "blocks": np.array(budget.blocks),
            "products": budget.products,
            "defect": budget.defect,
        }

    description = {
        "toy": toy,
        "training": repr(run.config),
        "seeds": run.num_seeds,
        "steps": steps,
        "seed": seed,
        "points": points,
        "rule": repr(config.rule()),
        "schedule": repr(schedule),
        "num_samples": config.num_samples,
    }
    found = workspace.cell("error-budget", description, compute)
    return gg.ErrorBudget(
        found["sigmas"],
        tuple(int(b) for b in found["blocks"]),
        found["products"],
        found["defect"],
    )


def _curves(budgets: list[gg.ErrorBudget]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``[seeds, part, S]``, ``[seeds, ratio, S]``, ``[seeds, block, S]``."""
    rms = np.array([[b.rms(part) for part in _PARTS] for b in budgets])
    ratios = np.array(
        [
            [
                b.cosine("weak", "learning"),
                b.cosine("weak", "bias"),
                b.share_removed("learning"),
                b.share_removed("bias"),
                b.share_removed("without_weak"),
            ]
            for b in budgets
        ]
    )
    blocks = np.array(
        [[b.cosine(b.block(k), "learning") for k in b.blocks] for b in budgets]
    )
    return rms, ratios, blocks


def _numbers(budgets, rms: np.ndarray, ratios: np.ndarray) -> Metrics:
    """By noise level, and where the learned error overtakes the bias."""
    sigmas = budgets[0].sigmas
    result: Metrics = {"levels": {}}
    for k, sigma in enumerate(sigmas):
        rows = [
            dict(zip(_PARTS, rms[s, :, k].tolist(), strict=True))
            | dict(zip(_RATIOS, ratios[s, :, k].tolist(), strict=True))
            for s in range(len(budgets))
        ]
        result["levels"][f"{sigma:.4g}"] = over_seeds(rows)
    crossings = [_crossing(sigmas, rms[s, 0], rms[s, 1]) for s in range(len(budgets))]
    result["learned error exceeds the bias below sigma"] = over_seeds(
        [{"sigma": c} for c in crossings]
    )["sigma"]
    result["largest deviation of the sum of the parts"] = float(
        max(b.defect.max() for b in budgets)
    )
    return result


def _crossing(sigmas: np.ndarray, bias: np.ndarray, learned: np.ndarray) -> float:
    """Highest level of the low-noise range in which the learned error dominates."""
    above = np.flatnonzero(bias >= learned)  # levels descend
    if len(above) == 0:
        return float(sigmas[0])
    last = above[-1]
    if last + 1 == len(sigmas):
        return float(sigmas[-1])
    # Where the two lines cross between neighbouring levels, in logarithms.
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
    """A panel for each toy (rows) and training length (columns)."""
    shown = metrics["shown"]
    figure, axes = plt.subplots(
        len(_TOYS),
        len(shown),
        figsize=(PAGE_WIDTH, height),
        sharex="row",
        squeeze=False,
        **options,
    )
    for ax, steps in zip(axes[0], shown, strict=True):
        ax.set_title(f"{steps} training steps")
    for ax, toy in zip(axes[:, 0], _TOYS, strict=True):
        ax.set_ylabel(TOY_TITLES[toy])
    for ax in axes.flat:
        ax.set_xscale("log")
    for ax in axes[-1]:
        ax.set_xlabel("noise level σ")
    return figure, axes


def _draw_budget(metrics: Metrics, data: Arrays, points: str) -> Figure:
    scale = metrics["scale"]
    styles = (
        ("bias", "bias of CFG, exact denoisers", TRUTH, "-"),
        (
            "learning",
            "learned error, as CFG amplifies it",
            COLOURS["autoguidance"],
            "-",
        ),
        ("without_weak", "both: CFG", COLOURS["cfg"], "-"),
        ("total", "both, with S²", COLOURS["s2"], "--"),
        ("weak", "the S² term alone", COLOURS["s2"], ":"),
    )
    figure, axes = _panels(metrics, 4.4, sharey="row")
    for row, toy in enumerate(_TOYS):
        sigmas = data[f"{toy}/sigmas"]
        for column, steps in enumerate(metrics["shown"]):
            ax = axes[row, column]
            rms = data[f"{toy}/{points}, {steps} steps/rms"]
            for name, label, colour, line in styles:
                values = rms[:, _PARTS.index(name)]
                mean = values.mean(0)
                error = values.std(0, ddof=1) / np.sqrt(len(values))
                ax.plot(sigmas, mean, line, color=colour, label=label)
                low = np.maximum(mean - error, 0.1 * mean)  # the axis is logarithmic
                ax.fill_between(
                    sigmas, low, mean + error, color=colour, alpha=0.2, lw=0
                )
            ax.set_yscale("log")
            ax.set_ylim(bottom=1e-4 if toy == "tree" else 1e-3)
    where = "true noised samples" if points == "noised" else "the sampler's own path"
    figure.suptitle(
        f"Error of the guided denoiser against E[x₀ | x, label], rms over {where}, "
        f"λ = {scale:g}, ω = {metrics['s2_scale']:g}",
        fontsize=8,
    )
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3
    )
    return figure


def _draw_effect(metrics: Metrics, data: Arrays) -> Figure:
    figure, axes = _panels(metrics, 4.2, sharey=True)
    styles = (
        (0, "cosine with − learned error", COLOURS["autoguidance"], "-"),
        (1, "cosine with − bias", TRUTH, "-"),
        (2, "share of learned error removed", COLOURS["autoguidance"], "--"),
        (3, "share of bias removed", TRUTH, "--"),
        (4, "share of the whole removed", COLOURS["s2"], "-"),
    )
    for row, toy in enumerate(_TOYS):
        sigmas = data[f"{toy}/sigmas"]
        for column, steps in enumerate(metrics["shown"]):
            ax = axes[row, column]
            ax.axhline(0.0, color="black", linewidth=0.6)
            ratios = data[f"{toy}/noised, {steps} steps/ratios"]
            for index, label, colour, line in styles:
                values = ratios[:, index]
                mean = values.mean(0)
                error = values.std(0, ddof=1) / np.sqrt(len(values))
                ax.plot(sigmas, mean, line, color=colour, label=label)
                ax.fill_between(
                    sigmas, mean - error, mean + error, color=colour, alpha=0.2, lw=0
                )
            ax.set_ylim(-1.05, 1.05)
    figure.suptitle(
        "What the S² term does to each part (1: cancels it, 0: nothing, below: adds)",
        fontsize=8,
    )
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3
    )
    return figure


def _draw_blocks(metrics: Metrics, data: Arrays) -> Figure:
    figure, axes = _panels(metrics, 3.8)
    for row, toy in enumerate(_TOYS):
        sigmas = data[f"{toy}/sigmas"]
        for column, steps in enumerate(metrics["shown"]):
            ax = axes[row, column]
            cosines = data[f"{toy}/noised, {steps} steps/blocks"].mean(0)
            blocks = np.arange(1, cosines.shape[0] + 1)
            image = ax.pcolormesh(
                sigmas, blocks, cosines, cmap=DIVERGING.removesuffix("_r"),
                vmin=-1, vmax=1, shading="nearest",
            )  # fmt: skip
            ax.set_yticks(blocks)
            if column == 0:
                ax.set_ylabel(f"{TOY_TITLES[toy]}\ndropped block")
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.01)
    bar.set_label("cosine of D_c − D_weak with − learned error\n(mean over seeds)")
    return figure


def summarise(metrics: Metrics) -> list[str]:
    """Where bias and learned error cross, and what the S² term removes there."""
    lines = []
    for toy in _TOYS:
        for key, result in metrics["toys"][toy].items():
            crossing = result["learned error exceeds the bias below sigma"]
            share = [
                level["share of learning error removed"]["mean"]
                for level in result["levels"].values()
            ]
            lines.append(
                f"{TOY_TITLES[toy]}, {key}: the bias of CFG dominates above sigma "
                f"{crossing['mean']:.3g}; the S² term removes between "
                f"{min(share):.0%} and {max(share):.0%} of the squared learned error"
            )
    return lines


EXPERIMENT = Experiment(
    "error_budget",
    "error per noise level: the rule's bias, the learned part, and what S² mends",
    ErrorBudgetConfig,
    compute,
    draw,
    summarise,
)
