"""What the randomness of the mask adds: against N, frozen or fresh, shared or not.

At each noise level the expectation over masks is computed exhaustively, and with it the
variance of one mask's correction. Then samples are drawn from the same noise under
several independent draws of the masks: how far does a sample move, does the whole batch
move with it, and is the expected distance to the truth any different?
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment, Metrics, over_seeds
from toy_experiments.common.style import COLOURS, PAGE_WIDTH
from toy_experiments.common.sweeps import (
    METRICS,
    measure,
    over_two_threads,
    sample_traced,
)
from toy_experiments.common.toys import (
    TOY_TITLES,
    Budgets,
    ToyName,
    make_toy,
    toy_schedule,
    toy_start,
    train_toy,
)
from toy_experiments.common.workspace import Arrays, Workspace

# How masks are drawn: (name, options of S2Guidance).
DRAWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("shared, fresh, N = 1", {}),
    ("shared, fresh, N = 2", {"num_masks": 2}),
    ("shared, fresh, N = 4", {"num_masks": 4}),
    ("shared, frozen", {"redraw": "run"}),
    ("per sample, fresh", {"per_sample": True}),
    ("per sample, frozen", {"per_sample": True, "redraw": "run"}),
    ("exact expectation", {"num_masks": "all"}),
)


@dataclasses.dataclass(frozen=True)
class MaskVarianceConfig:
    """Configuration.

    Attributes:
        seeds: training seeds, at least 2.
        budgets: training lengths and network; the networks of the phase diagram.
        shown: the training lengths examined.
        scale: total CFG scale.
        s2_scale: the paper's omega.
        mask_seeds: independent draws of all masks for the same noise, at least 2.
        num_samples: samples of each draw.
        num_steps: steps of the sampler (DPM-Solver++(2M)).
        toys: the mixtures.
    """

    seeds: int = 5
    budgets: Budgets = Budgets()
    shown: tuple[int, ...] = (300, 3000)
    scale: float = 2.0
    s2_scale: float = 0.25
    mask_seeds: int = 8
    num_samples: int = 1024
    num_steps: int = 24
    toys: tuple[ToyName, ...] = ("two_modes", "four_corners")

    def __post_init__(self):
        if self.seeds < 2 or self.mask_seeds < 2:
            raise ValueError(
                f"seeds and mask_seeds must be at least 2, since intervals are over "
                f"them, got {self.seeds} and {self.mask_seeds}."
            )
        missing = set(self.shown) - set(self.budgets.steps)
        if missing:
            raise ValueError(
                f"shown must be among budgets.steps {self.budgets.steps}, got "
                f"{sorted(missing)}."
            )

    @classmethod
    def quick(cls) -> MaskVarianceConfig:
        """Two seeds, three draws of the masks, shorter training."""
        return cls(
            seeds=2,
            budgets=Budgets(steps=(50, 300), batch_size=256),
            shown=(300,),
            mask_seeds=3,
            num_samples=256,
            num_steps=16,
            toys=("two_modes",),
        )


def compute(config: MaskVarianceConfig, workspace: Workspace) -> tuple[Metrics, Arrays]:
    """Variance at each level, and of the samples."""
    metrics: Metrics = {
        "shown": list(config.shown),
        "draws": [n for n, _ in DRAWS],
        "toys": {},
    }
    data: Arrays = {}
    for toy in config.toys:
        run = train_toy(workspace, toy, config.budgets.training(), config.seeds)
        items = [(step, seed) for step in config.shown for seed in range(config.seeds)]
        with workspace.reporter.task(f"mask variance, {toy}", len(items)) as task:

            def one(item, toy=toy, run=run, task=task):
                found = _cell(config, workspace, toy, run, *item)
                task.advance(detail=f"{item[0]} steps, seed {item[1]}")
                return found

            first = one(items[0])
            found = [first, *over_two_threads(one, items[1:])]
        result: Metrics = {}
        for step in config.shown:
            own = [f for f, item in zip(found, items, strict=True) if item[0] == step]
            rows = {}
            for k, (name, _) in enumerate(DRAWS):
                rows[name] = over_seeds([_named(f["draws"][k]) for f in own])
            share = np.array([f["variance"] / f["square"] for f in own])
            data[f"{toy}/{step}/share"] = share
            data[f"{toy}/sigmas"] = own[0]["sigmas"]
            rows["share of the squared correction that is variance"] = over_seeds(
                [{"median over noise levels": float(np.median(s))} for s in share]
            )
            result[f"{step} steps"] = rows
        metrics["toys"][toy] = result
    return metrics, data


_NUMBERS = (
    "distance",
    "std of the distance over masks",
    "movement of a sample",
    "movement of the batch mean",
    "change against the exact expectation",
)


def _named(row: np.ndarray) -> dict[str, float]:
    return dict(zip(_NUMBERS, row.tolist(), strict=True))


def _cell(config, workspace, toy, run, step, seed) -> Arrays:
    network = run.denoiser(seed, step).network
    schedule = toy_schedule(toy, config.num_steps)

    def compute() -> Arrays:
        labels, start = toy_start(toy, schedule, config.num_samples, seed)
        draws = {}
        for name, options in DRAWS:
            rule = gg.S2Guidance(config.scale, config.s2_scale, **options)
            count = 1 if name == "exact expectation" else config.mask_seeds
            draws[name] = np.stack(
                [
                    sample_traced(
                        network,
                        rule,
                        schedule,
                        jax.random.key(7000 + 100 * seed + k),
                        labels,
                        start,
                        workspace.mesh,
                    )
                    for k in range(count)
                ]
            )
        expected = draws["exact expectation"][0]
        rows = [_spread(toy, labels, x, expected) for x in draws.values()]
        return {"draws": np.array(rows)} | _per_level(toy, network, schedule, seed)

    description = {
        "toy": toy,
        "training": repr(run.config),
        "seeds": run.num_seeds,
        "step": step,
        "seed": seed,
        "config": repr(config),
    }
    return workspace.cell("mask-variance", description, compute)


def _spread(toy, labels, samples: np.ndarray, expected: np.ndarray) -> list[float]:
    """``_NUMBERS`` of samples ``[masks, n, d]`` from the same noise."""
    distances = np.array(
        [measure(toy, x, labels)[METRICS.index("distance")] for x in samples]
    )
    several = len(samples) > 1

    def scatter(values: np.ndarray) -> float:
        """Root mean square over everything but the masks of the deviation."""
        if not several:
            return 0.0
        variance = values.var(axis=0, ddof=1)
        return float(np.sqrt(variance.sum(axis=-1).mean()))

    means = np.stack(
        [samples[:, labels == c].mean(axis=1) for c in np.unique(labels)], axis=1
    )
    change = samples.mean(axis=0) - expected
    return [
        float(distances.mean()),
        float(distances.std(ddof=1)) if several else 0.0,
        scatter(samples),
        scatter(means),
        float(np.sqrt(np.mean(np.sum(change**2, axis=-1)))),
    ]


def _per_level(toy, network, schedule, seed) -> Arrays:
    """Mean square of one block's correction and its variance over blocks, exact."""
    budget = gg.error_budget(
        jax.random.key(300 + seed),
        network,
        gg.CFG(1.0),
        make_toy(toy),
        0,
        schedule=schedule,
        num_samples=512,
        blocks=True,
    )
    own = budget.products[:, -len(budget.blocks) :, -len(budget.blocks) :]
    square = np.diagonal(own, axis1=1, axis2=2).mean(axis=1)
    return {
        "sigmas": budget.sigmas,
        "square": square,
        "variance": square - own.mean(axis=(1, 2)),
    }


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Variance by level, and what each way of drawing masks does to samples."""
    return {"figure": _draw_samples(metrics), "figure_levels": _draw_levels(data)}


def _draw_samples(metrics: Metrics) -> Figure:
    shown, toys = metrics["shown"], list(metrics["toys"])
    panels = (
        ("movement of a sample", "movement of a\nsample"),
        ("movement of the batch mean", "movement of a\nclass mean"),
        ("std of the distance over masks", "std of W2\nover masks"),
        ("distance", "W2 to\np(x | label)"),
    )
    names = metrics["draws"]
    figure, axes = plt.subplots(
        len(toys) * len(shown),
        len(panels),
        figsize=(PAGE_WIDTH, 1.6 * len(toys) * len(shown) + 0.5),
        sharey=True,
        squeeze=False,
    )
    y = np.arange(len(names))[::-1]
    for row, (toy, step) in enumerate((t, s) for t in toys for s in shown):
        result = metrics["toys"][toy][f"{step} steps"]
        for column, (key, title) in enumerate(panels):
            ax = axes[row, column]
            entries = [result[name][key] for name in names]
            colours = [
                COLOURS["naive_s2" if "N = 2" in n or "N = 4" in n else "s2"]
                for n in names[:-1]
            ] + ["#000000"]
            for place, entry, colour in zip(y, entries, colours, strict=True):
                ax.errorbar(
                    entry["mean"], place, xerr=entry["standard_error"], fmt="o",
                    color=colour, markersize=3, capsize=1.5,
                )  # fmt: skip
            if column < 3:
                ax.set_xlim(left=-0.02 * max(e["mean"] for e in entries))
            if row == 0:
                ax.set_title(title)
        axes[row, 0].set_yticks(y, names)
        axes[row, 0].set_ylabel(f"{TOY_TITLES[toy]}\n{step} training steps")
        axes[row, 0].set_ylim(-0.6, len(names) - 0.4)
    return figure


def _draw_levels(data: Arrays) -> Figure:
    figure, ax = plt.subplots(figsize=(PAGE_WIDTH / 2, 2.4))
    colours = iter(plt.get_cmap("viridis")(np.linspace(0.0, 0.85, 4)))
    for key in (k for k in data if k.endswith("/share")):
        toy, step, _ = key.split("/")
        scale = float(make_toy(toy).scale)  # type: ignore[arg-type]
        share = data[key]
        colour = next(colours)
        mean = share.mean(0)
        error = share.std(0, ddof=1) / np.sqrt(len(share))
        sigmas = data[f"{toy}/sigmas"] / scale
        label = f"{TOY_TITLES[toy]}, {step} steps"
        ax.plot(sigmas, mean, color=colour, label=label)
        ax.fill_between(sigmas, mean - error, mean + error, color=colour, alpha=0.2)
    ax.set(xscale="log", ylim=(0, 1.02), xlabel="σ / data standard deviation")
    ax.set_ylabel("variance over masks,\nshare of the squared correction")
    ax.legend(fontsize=6, loc="lower left")
    return figure


def summarise(metrics: Metrics) -> list[str]:
    """Movement and distance for each way of drawing masks."""
    lines = []
    for toy, result in metrics["toys"].items():
        for key, rows in result.items():
            for name in metrics["draws"]:
                row = rows[name]
                lines.append(
                    f"{TOY_TITLES[toy]}, {key}, {name}: W2 "
                    f"{row['distance']['mean']:.4f}, std over masks "
                    f"{row['std of the distance over masks']['mean']:.4f}, a sample "
                    f"moves {row['movement of a sample']['mean']:.4f}"
                )
    return lines


EXPERIMENT = Experiment(
    "mask_variance",
    "what random masks add: against N, frozen or fresh, per sample or shared",
    MaskVarianceConfig,
    compute,
    draw,
    summarise,
)
