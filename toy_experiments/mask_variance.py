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
from toy_experiments.common.experiment import Experiment, check_among, check_at_least
from toy_experiments.common.mixtures import (
    MIXTURE_TITLES,
    MixtureName,
    balanced_start,
    make_mixture,
    relative_schedule,
)
from toy_experiments.common.records import (
    Metrics,
    Tables,
    measurement,
    over_seeds,
    single,
)
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.style import COLORS, PAGE_WIDTH, draw_band, shades
from toy_experiments.common.sweep import (
    DISTANCE,
    AnalysisConfig,
    draw_samples_of,
    measure,
)

#: How masks are drawn: options of S2Guidance by title.
DRAWS: dict[str, dict[str, Any]] = {
    "shared, fresh, N = 1": {},
    "shared, fresh, N = 2": {"num_masks": 2},
    "shared, fresh, N = 4": {"num_masks": 4},
    "shared, frozen": {"redraw": "run"},
    "per sample, fresh": {"per_sample": True},
    "per sample, frozen": {"per_sample": True, "redraw": "run"},
    "exact expectation": {"num_masks": "all"},
}
_EXPECTATION = "exact expectation"
_NUMBERS = (
    "distance",
    "std_of_distance_over_masks",
    "movement_of_sample",
    "movement_of_class_mean",
    "change_against_expectation",
)


@dataclasses.dataclass(frozen=True)
class MaskVarianceConfig(AnalysisConfig):
    """Configuration of ``mask_variance``.

    Attributes:
        shown: the training lengths examined.
        scale: total CFG scale.
        s2_scale: the paper's omega.
        mask_seeds: independent draws of all masks for the same noise, at least 2.
        mixtures: the mixtures.
    """

    shown: tuple[int, ...] = (300, 3000)
    scale: float = 2.0
    s2_scale: float = 0.25
    mask_seeds: int = 8
    mixtures: tuple[MixtureName, ...] = ("two_modes", "four_corners")

    QUICK = AnalysisConfig.QUICK | {
        "shown": (300,),
        "mask_seeds": 3,
        "mixtures": ("two_modes",),
    }

    def __post_init__(self):
        super().__post_init__()
        check_at_least(2, mask_seeds=self.mask_seeds)
        check_among(self.budgets.steps, "budgets.steps", shown=self.shown)


def compute(config: MaskVarianceConfig, store: Store) -> tuple[Tables, Arrays]:
    """Variance at each level, and of the samples."""
    tables: Tables = {"draws": [], "variance": []}
    data: Arrays = {}
    seeds = range(config.seeds)
    for name in config.mixtures:
        run = config.networks(store, name)

        def one(step, seed, name=name, run=run) -> tuple[Arrays, Arrays]:
            network = run.denoiser(seed, step).network
            spread = store.cell(
                mask_spread,
                network, name, config.scale, config.s2_scale, config.mask_seeds,
                config.num_samples, config.num_steps, seed,
            )  # fmt: skip
            levels = store.cell(
                correction_variance, network, name, config.num_steps, seed
            )
            return spread, levels

        items = [(step, seed) for step in config.shown for seed in seeds]
        found = store.map(f"mask variance, {name}", one, items)
        for step in config.shown:
            spreads, levels = zip(*(found[step, seed] for seed in seeds), strict=True)
            place = {"mixture": name, "steps": step}
            for k, draws in enumerate(DRAWS):
                rows = [
                    dict(zip(_NUMBERS, s["numbers"][k], strict=True)) for s in spreads
                ]
                tables["draws"].append(place | {"masks": draws} | over_seeds(rows))
            fraction = np.array([v["variance"] / v["square"] for v in levels])
            data[f"{name}/{step}/fraction"] = fraction
            data[f"{name}/sigmas"] = levels[0]["sigmas"]
            # Of the squared correction; median over noise levels.
            median = measurement(np.median(fraction, axis=1))
            tables["variance"].append(place | {"variance_fraction": median})
    return tables, data


def mask_spread(
    context: Context,
    network: Any,
    name: MixtureName,
    scale: float,
    s2_scale: float,
    mask_seeds: int,
    num_samples: int,
    num_steps: int,
    seed: int,
) -> Arrays:
    """``_NUMBERS`` of each way of drawing masks, ``[draws, number]``."""
    schedule = relative_schedule(name, num_steps)
    labels, start = balanced_start(make_mixture(name), schedule, num_samples, seed)
    draws = {}
    for title, options in DRAWS.items():
        rule = gg.S2Guidance(scale, s2_scale, **options)
        keys = [jax.random.key(7000 + 100 * seed + k) for k in range(mask_seeds)]
        draws[title] = np.stack(
            [
                draw_samples_of(network, rule, schedule, k, labels, start, context.mesh)
                for k in (keys[:1] if title == _EXPECTATION else keys)
            ]
        )
    expected = draws[_EXPECTATION][0]
    rows = [_spread(name, labels, x, expected) for x in draws.values()]
    return {"numbers": np.array(rows)}


def _spread(
    name: MixtureName, labels: np.ndarray, samples: np.ndarray, expected: np.ndarray
) -> list[float]:
    """``_NUMBERS`` of samples ``[masks, n, d]`` from the same noise."""
    distances = np.array([measure(name, x, labels)[DISTANCE] for x in samples])
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


def correction_variance(
    context: Context, network: Any, name: MixtureName, num_steps: int, seed: int
) -> Arrays:
    """Mean square of one block's correction and its variance over blocks, exact."""
    budget = gg.error_budget(
        jax.random.key(300 + seed),
        network,
        gg.CFG(1.0),
        make_mixture(name),
        0,
        schedule=relative_schedule(name, num_steps),
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
    return {
        "figure": _draw_samples(metrics),
        "figure_levels": _draw_levels(metrics, data),
    }


def _draw_samples(metrics: Metrics) -> Figure:
    config = metrics["config"]
    cases = [(name, step) for name in config["mixtures"] for step in config["shown"]]
    panels = (
        ("movement_of_sample", "movement of a\nsample"),
        ("movement_of_class_mean", "movement of a\nclass mean"),
        ("std_of_distance_over_masks", "std of W2\nover masks"),
        ("distance", "W2 to\np(x | label)"),
    )
    figure, axes = plt.subplots(
        len(cases),
        len(panels),
        figsize=(PAGE_WIDTH, 1.6 * len(cases) + 0.5),
        sharey=True,
        squeeze=False,
    )
    y = np.arange(len(DRAWS))[::-1]
    for row, (name, step) in enumerate(cases):
        records = [
            single(metrics, "draws", mixture=name, steps=step, masks=draws)
            for draws in DRAWS
        ]
        for column, (key, title) in enumerate(panels):
            ax = axes[row, column]
            for place, record in zip(y, records, strict=True):
                ax.errorbar(
                    record[key]["mean"],
                    place,
                    xerr=record[key]["standard_error"],
                    fmt="o",
                    color=_color(record["masks"]),
                    markersize=3,
                    capsize=1.5,
                )
            if column < 3:
                ax.set_xlim(left=-0.02 * max(r[key]["mean"] for r in records))
            if row == 0:
                ax.set_title(title)
        axes[row, 0].set_yticks(y, list(DRAWS))
        axes[row, 0].set_ylabel(f"{MIXTURE_TITLES[name]}\n{step} training steps")
        axes[row, 0].set_ylim(-0.6, len(DRAWS) - 0.4)
    return figure


def _color(draws: str) -> str:
    masks = DRAWS[draws].get("num_masks", 1)
    return "#000000" if masks == "all" else COLORS["naive_s2" if masks > 1 else "s2"]


def _draw_levels(metrics: Metrics, data: Arrays) -> Figure:
    figure, ax = plt.subplots(figsize=(PAGE_WIDTH / 2, 2.4))
    records = metrics["tables"]["variance"]
    for record, color in zip(records, shades(len(records)), strict=True):
        name, step = record["mixture"], record["steps"]
        scale = float(make_mixture(name).scale)
        draw_band(
            ax,
            data[f"{name}/sigmas"] / scale,
            data[f"{name}/{step}/fraction"],
            color=color,
            label=f"{MIXTURE_TITLES[name]}, {step} steps",
        )
    ax.set(xscale="log", ylim=(0, 1.02), xlabel="σ / data standard deviation")
    ax.set_ylabel("variance over masks,\nfraction of the squared correction")
    ax.legend(fontsize=6, loc="lower left")
    return figure


def summarize(metrics: Metrics) -> list[str]:
    """Movement and distance for each way of drawing masks."""
    return [
        f"{MIXTURE_TITLES[r['mixture']]}, {r['steps']} steps, {r['masks']}: W2 "
        f"{r['distance']['mean']:.4f}, std over masks "
        f"{r['std_of_distance_over_masks']['mean']:.4f}, a sample moves "
        f"{r['movement_of_sample']['mean']:.4f}"
        for r in metrics["tables"]["draws"]
    ]


EXPERIMENT = Experiment(
    "mask_variance",
    "analysis",
    "what random masks add: against N, frozen or fresh, per sample or shared",
    MaskVarianceConfig,
    compute,
    draw,
    summarize,
)
