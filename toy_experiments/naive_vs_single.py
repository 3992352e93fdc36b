"""Naive S² (several masks per step) against one mask, over seeds.

The paper's Fig. 10 calls the two visually indistinguishable over three seeds. Here the
noise is fixed and only the masks are drawn anew, so that what the masks add can be
measured: the distance to the truth, and how far samples move from one draw of masks to
another, against the number of masks and up to their exact expectation.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Config, Experiment, Metrics, over_seeds
from toy_experiments.common.laboratory import (
    REGIME_TITLES,
    REGIMES,
    balanced_labels,
    make_mixture,
    sample_cell,
    trained,
)
from toy_experiments.common.style import PAGE_WIDTH, REGIME_COLOURS
from toy_experiments.common.workspace import Arrays, Workspace


@dataclasses.dataclass(frozen=True)
class NaiveConfig(Config):
    """Configuration of ``naive_vs_single``.

    Attributes:
        num_masks: masks per step that are compared; the exact expectation is added.
        mask_seeds: independent draws of all masks, at least 2, for the same noise.
        dimensions: mixtures: two modes on a line (1), four corners (2).
    """

    num_samples: int = 1024
    num_masks: tuple[int, ...] = (1, 2, 4, 8)
    mask_seeds: int = 3
    dimensions: tuple[int, ...] = (1, 2)

    def __post_init__(self):
        super().__post_init__()
        if self.mask_seeds < 2:
            raise ValueError(f"mask_seeds must be at least 2, got {self.mask_seeds}.")
        if not self.num_masks or min(self.num_masks) < 1:
            raise ValueError(f"num_masks must be positive, got {self.num_masks}.")
        if not set(self.dimensions) <= {1, 2} or not self.dimensions:
            raise ValueError(f"dimensions must be 1 or 2, got {self.dimensions}.")

    @classmethod
    def quick(cls) -> NaiveConfig:
        """Fewer masks, on the line alone."""
        base = Config.quick()
        fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
        return cls(**fields | {"num_masks": (1, 2, 4), "dimensions": (1,)})


def compute(config: NaiveConfig, workspace: Workspace) -> tuple[Metrics, Arrays]:
    """Distance and spread against the number of masks."""
    counts: tuple[Any, ...] = (*config.num_masks, "all")
    metrics: Metrics = {"counts": [str(c) for c in counts], "curves": {}, "cost": {}}
    for count in counts:
        cost = gg.expected_cost(
            _rule(config, count), config.schedule(), config.networks.num_blocks
        )
        metrics["cost"][str(count)] = {
            "passes_shared_prefix": cost.shared,
            "passes_separate": cost.separate,
        }
    total = len(config.dimensions) * len(REGIMES) * len(counts) * config.seeds
    with workspace.reporter.task("naive_vs_single", total) as task:
        for dim in config.dimensions:
            mixture = make_mixture(dim, config.std)
            run = trained(workspace, dim, config.std, config.networks, config.seeds)
            for regime in REGIMES:
                for count in counts:
                    values = []
                    for seed in range(config.seeds):
                        values.append(
                            _numbers(
                                config, workspace, mixture, run, regime, count, seed
                            )
                        )
                        task.advance(detail=f"{dim}-D, {regime}, {count} masks")
                    metrics["curves"][f"{dim}/{regime}/{count}"] = over_seeds(values)
    return metrics, {"counts": np.array([str(c) for c in counts])}


def _rule(config: NaiveConfig, count: Any) -> gg.S2Guidance:
    g = config.guidance
    return gg.S2Guidance(g.cfg_scale, g.s2_scale, g.num_dropped, num_masks=count)


def _numbers(config, workspace, mixture, run, regime, count, seed) -> dict[str, float]:
    steps, _ = config.networks.steps(regime)
    rule = _rule(config, count)

    def samples(rule, mask_seed):
        return sample_cell(
            workspace,
            mixture,
            run.denoiser(seed, steps),
            rule,
            identity={
                "training": repr(run.config),
                "steps": steps,
                "seeds": run.num_seeds,
                "rule": repr(rule),
                "dim": mixture.dim,
                "std": config.std,
            },
            seed=seed,
            num_samples=config.num_samples,
            schedule=config.schedule(),
            mask_seed=mask_seed,
        )["samples"]

    draws = range(1 if count == "all" else config.mask_seeds)
    sets = np.stack([samples(rule, mask_seed) for mask_seed in draws])
    exact = samples(_rule(config, "all"), 0)
    labels = balanced_labels(mixture, config.num_samples)
    name = "w2" if mixture.dim == 1 else "sliced_w2"
    distances = [gg.metrics.summarise(s, labels, mixture)[name] for s in sets]
    spread = np.sqrt(np.mean(np.var(sets, axis=0, ddof=1))) if len(sets) > 1 else 0.0
    return {
        "distance": float(np.mean(distances)),
        "spread_over_masks": float(spread),
        "distance_to_expectation": float(np.sqrt(np.mean((sets - exact[None]) ** 2))),
    }


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Distance to the truth, and spread over masks, against the number of masks."""
    counts = [str(c) for c in data["counts"]]
    dims = sorted({key.split("/")[0] for key in metrics["curves"]})
    figure, axes = plt.subplots(
        len(dims), 2, figsize=(PAGE_WIDTH, 0.5 + 2.1 * len(dims)), squeeze=False
    )
    place = np.arange(len(counts))
    for row, dim in enumerate(dims):
        for regime in REGIMES:
            curves = [metrics["curves"][f"{dim}/{regime}/{c}"] for c in counts]
            colour = REGIME_COLOURS[regime]
            mean = np.array([c["distance"]["mean"] for c in curves])
            error = np.array([c["distance"]["standard_error"] for c in curves])
            axes[row, 0].errorbar(
                place, mean, error, fmt="o-", ms=3, color=colour, capsize=2
            )
            spread = np.array([c["spread_over_masks"]["mean"] for c in curves[:-1]])
            error = np.array(
                [c["spread_over_masks"]["standard_error"] for c in curves[:-1]]
            )
            label = REGIME_TITLES[regime]
            axes[row, 1].errorbar(
                place[:-1], spread, error, fmt="o-", ms=3, color=colour, capsize=2,
                label=label,
            )  # fmt: skip
            numbers = np.array([float(c) for c in counts[:-1]])
            law = spread[0] * np.sqrt(numbers[0] / numbers)
            axes[row, 1].plot(place[:-1], law, ":", color=colour, lw=0.9)
        distance = "W2" if dim == "1" else "sliced W2"
        axes[row, 0].set_ylabel(f"{dim}-D: {distance} to the truth")
        axes[row, 1].set_ylabel("rms spread of a sample\nover draws of masks")
        axes[row, 0].set_ylim(bottom=0)
        axes[row, 1].set_yscale("log")
        ticks = ["exact mean" if c == "all" else c for c in counts]
        axes[row, 0].set_xticks(place, ticks)
        axes[row, 1].set_xticks(place[:-1], ticks[:-1])
        for ax in axes[row]:
            ax.set_xlabel("masks per step")
    axes[0, 1].legend(title="dotted: 1/√masks", title_fontsize=6.5)
    return {"figure": figure}


def summarise(metrics: Metrics) -> list[str]:
    """Distance at one mask and at the exact expectation."""
    lines = []
    first, last = metrics["counts"][0], metrics["counts"][-1]
    for key in sorted({k.rsplit("/", 1)[0] for k in metrics["curves"]}):
        one, exact = (
            metrics["curves"][f"{key}/{first}"],
            metrics["curves"][f"{key}/{last}"],
        )
        lines.append(
            f"{key.replace('/', '-D ')}: distance {one['distance']['mean']:.3f} with "
            f"{first} mask, {exact['distance']['mean']:.3f} with the exact mean; masks "
            f"move a sample by {one['spread_over_masks']['mean']:.4f}"
        )
    return lines


EXPERIMENT = Experiment(
    "naive_vs_single",
    "Naive S² with several masks, and their exact mean, against one mask",
    NaiveConfig,
    compute,
    draw,
    summarise,
)
