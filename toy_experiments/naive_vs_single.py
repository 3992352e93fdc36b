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
from toy_experiments.common.experiment import Experiment, check_among, check_at_least
from toy_experiments.common.mixtures import MIXTURE_TITLES, MixtureName, balanced_labels
from toy_experiments.common.paper import (
    NETWORK_TITLES,
    PAPER_MIXTURES,
    REGIMES,
    PaperConfig,
    Setting,
)
from toy_experiments.common.records import (
    Metrics,
    Tables,
    distinct,
    over_seeds,
    select,
    single,
)
from toy_experiments.common.store import Arrays, Store
from toy_experiments.common.style import NETWORK_COLORS, PAGE_WIDTH, draw_measurements

ALL = "all"  # the exact expectation over all masks


@dataclasses.dataclass(frozen=True)
class NaiveConfig(PaperConfig):
    """Configuration of ``naive_vs_single``.

    Attributes:
        num_masks: masks per step that are compared; the exact expectation is added.
        mask_seeds: independent draws of all masks, at least 2, for the same noise.
        mixtures: two modes on a line, four corners in the plane.
    """

    num_samples: int = 1024
    num_masks: tuple[int, ...] = (1, 2, 4, 8)
    mask_seeds: int = 3
    mixtures: tuple[MixtureName, ...] = PAPER_MIXTURES

    QUICK = PaperConfig.QUICK | {"num_masks": (1, 2, 4), "mixtures": ("two_modes",)}

    def __post_init__(self):
        super().__post_init__()
        check_at_least(2, mask_seeds=self.mask_seeds)
        if not self.num_masks or min(self.num_masks) < 1:
            raise ValueError(f"num_masks must be positive, got {self.num_masks}.")
        check_among(PAPER_MIXTURES, "the paper's", mixtures=self.mixtures)

    def counts(self) -> tuple[int | str, ...]:
        """Masks per step, the exact expectation last."""
        return (*self.num_masks, ALL)

    def naive_rule(self, count: int | str) -> gg.S2Guidance:
        """S² with so many masks per step."""
        g = self.guidance
        masks: Any = count
        return gg.S2Guidance(g.cfg_scale, g.s2_scale, g.num_dropped, num_masks=masks)


def compute(config: NaiveConfig, store: Store) -> tuple[Tables, Arrays]:
    """Distance and spread against the number of masks."""
    tables: Tables = {"masks": [], "cost": []}
    for count in config.counts():
        cost = gg.expected_cost(
            config.naive_rule(count), config.schedule(), config.networks.num_blocks
        )
        tables["cost"].append(
            {
                "num_masks": count,
                "passes_shared_prefix": cost.shared,
                "passes_separate": cost.separate,
            }
        )
    cases = [
        (name, regime, count)
        for name in config.mixtures
        for regime in REGIMES
        for count in config.counts()
    ]
    settings = {name: config.setting(store, name) for name in config.mixtures}
    with store.reporter.task("naive_vs_single", len(cases)) as task:
        for name, regime, count in cases:
            values = [
                _numbers(config, store, settings[name], regime, count, seed)
                for seed in range(config.seeds)
            ]
            place = {"mixture": name, "network": regime, "num_masks": count}
            tables["masks"].append(place | over_seeds(values))
            task.advance(detail=f"{name}, {regime}, {count} masks")
    return tables, {}


def _numbers(
    config: NaiveConfig,
    store: Store,
    setting: Setting,
    regime: str,
    count: int | str,
    seed: int,
) -> dict[str, float]:
    def samples(count: int | str, mask_seed: int) -> np.ndarray:
        rule = config.naive_rule(count)
        return setting.samples(store, regime, rule, seed, mask_seed)

    draws = range(1 if count == ALL else config.mask_seeds)
    sets = np.stack([samples(count, mask_seed) for mask_seed in draws])
    exact = samples(ALL, 0)
    labels = balanced_labels(setting.mixture, config.num_samples)
    name = "w2" if setting.mixture.dim == 1 else "sliced_w2"
    distances = [gg.metrics.summarize(s, labels, setting.mixture)[name] for s in sets]
    spread = np.sqrt(np.mean(np.var(sets, axis=0, ddof=1))) if len(sets) > 1 else 0.0
    return {
        "distance": float(np.mean(distances)),
        "spread_over_masks": float(spread),
        "distance_to_expectation": float(np.sqrt(np.mean((sets - exact[None]) ** 2))),
    }


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Distance to the truth, and spread over masks, against the number of masks."""
    names = metrics["config"]["mixtures"]
    figure, axes = plt.subplots(
        len(names), 2, figsize=(PAGE_WIDTH, 0.5 + 2.1 * len(names)), squeeze=False
    )
    counts = distinct(metrics["tables"]["masks"], "num_masks")
    place = np.arange(len(counts))
    for row, name in enumerate(names):
        for regime in REGIMES:
            records = select(metrics, "masks", mixture=name, network=regime)
            style = {"color": NETWORK_COLORS[regime], "fmt": "o-", "ms": 3}
            style |= {"capsize": 2, "label": NETWORK_TITLES[regime]}
            distances = [r["distance"] for r in records]
            draw_measurements(axes[row, 0], place, distances, **style)
            spread = [r["spread_over_masks"] for r in records[:-1]]
            draw_measurements(axes[row, 1], place[:-1], spread, **style)
            numbers = np.array(counts[:-1], float)
            expected = spread[0]["mean"] * np.sqrt(numbers[0] / numbers)
            axes[row, 1].plot(
                place[:-1], expected, ":", color=NETWORK_COLORS[regime], lw=0.9
            )
        distance = "W2" if name == "two_modes" else "sliced W2"
        axes[row, 0].set_ylabel(f"{MIXTURE_TITLES[name]}:\n{distance} to the truth")
        axes[row, 1].set_ylabel("rms spread of a sample\nover draws of masks")
        axes[row, 0].set_ylim(bottom=0)
        axes[row, 1].set_yscale("log")
        ticks = ["exact mean" if c == ALL else f"{c}" for c in counts]
        axes[row, 0].set_xticks(place, ticks)
        axes[row, 1].set_xticks(place[:-1], ticks[:-1])
        for ax in axes[row]:
            ax.set_xlabel("masks per step")
    axes[0, 1].legend(title="dotted: 1/√masks", title_fontsize=6.5)
    return {"figure": figure}


def summarize(metrics: Metrics) -> list[str]:
    """Distance at one mask and at the exact expectation."""
    lines = []
    first = metrics["config"]["num_masks"][0]
    for one in select(metrics, "masks", num_masks=first):
        place = {"mixture": one["mixture"], "network": one["network"]}
        exact = single(metrics, "masks", num_masks=ALL, **place)
        lines.append(
            f"{MIXTURE_TITLES[one['mixture']]}, {NETWORK_TITLES[one['network']]}: "
            f"distance {one['distance']['mean']:.3f} with {first} mask, "
            f"{exact['distance']['mean']:.3f} with the exact mean; masks move a sample "
            f"by {one['spread_over_masks']['mean']:.4f}"
        )
    return lines


EXPERIMENT = Experiment(
    "naive_vs_single",
    "paper",
    "Naive S² with several masks, and their exact mean, against one mask",
    NaiveConfig,
    compute,
    draw,
    summarize,
)
