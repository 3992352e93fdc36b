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
from toy_experiments.common.style import (
    NETWORK_COLORS,
    PAGE_WIDTH,
    draw_measurements,
    legend_below,
)

ALL = "all"  # the exact expectation over all masks


@dataclasses.dataclass(frozen=True)
class NaiveConfig(PaperConfig):
    """Configuration of ``naive_vs_single``.

    Attributes:
        num_masks: masks per step that are compared; the exact expectation is added.
        mask_seeds: independent draws of all masks, at least 2, for the same noise.
        mixtures: two modes on a line, four corners in the plane.
    """

    num_masks: tuple[int, ...] = (1, 4)
    mask_seeds: int = 3
    mixtures: tuple[MixtureName, ...] = PAPER_MIXTURES

    QUICK = PaperConfig.QUICK | {"num_masks": (1,), "mixtures": ("two_modes",)}

    def __post_init__(self):
        super().__post_init__()
        check_at_least(2, mask_seeds=self.mask_seeds)
        if not self.num_masks or min(self.num_masks) < 1:
            raise ValueError(f"num_masks must be positive, got {self.num_masks}.")
        check_among(PAPER_MIXTURES, "the paper's", mixtures=self.mixtures)

    def counts(self) -> tuple[int | str, ...]:
        """Masks per step, the exact expectation last."""
        return (*self.num_masks, ALL)

    def naive_rule(self, network: str, count: int | str) -> gg.S2Guidance:
        """S² with so many masks per step."""
        g = self.guidance
        if network == "paper_like":
            g = self.paper_like.guidance(g)
        masks: Any = count
        return gg.S2Guidance(
            g.cfg_scale, g.s2_scale, g.num_dropped, window=g.window, num_masks=masks
        )


def compute(config: NaiveConfig, store: Store) -> tuple[Tables, Arrays]:
    """Distance and spread against the number of masks."""
    tables: Tables = {"masks": [], "cost": []}
    for count in config.counts():
        cost = gg.expected_cost(
            config.naive_rule("well", count),
            config.schedule(),
            config.networks.num_blocks,
        )
        tables["cost"].append(
            {
                "num_masks": count,
                "passes_shared_prefix": cost.shared,
                "passes_separate": cost.separate,
            }
        )
    rows = [row for row in config.rows() if row[0] != "exact"]
    settings = config.settings(store, *config.mixtures, paper_like=True)
    for name, setting in zip(config.mixtures, settings, strict=True):
        sets = [
            (count, m) for count in config.num_masks for m in range(config.mask_seeds)
        ]
        items = [
            (network, steps, count, mask_seed, seed)
            for network, steps in rows
            for count, mask_seed in (*sets, (ALL, 0))
            for seed in range(config.seeds)
        ]
        found = store.map(
            f"naive_vs_single, {name}",
            lambda network, steps, count, mask_seed, seed, setting=setting: (
                setting.samples(
                    store,
                    network,
                    config.naive_rule(network, count),
                    seed,
                    mask_seed,
                    steps,
                )
            ),
            items,
            program=lambda item: (item[0] == "paper_like", item[2]),
        )
        for network, steps in rows:
            for count in config.counts():
                draws = range(1 if count == ALL else config.mask_seeds)
                values = [
                    _numbers(
                        setting,
                        [found[network, steps, count, m, seed] for m in draws],
                        found[network, steps, ALL, 0, seed],
                    )
                    for seed in range(config.seeds)
                ]
                place = {"mixture": name, "network": network, "steps": steps}
                tables["masks"].append(
                    place | {"num_masks": count} | over_seeds(values)
                )
    return tables, {}


def _numbers(
    setting: Setting, draws: list[np.ndarray], exact: np.ndarray
) -> dict[str, float]:
    """Distance and spread of samples, one set for each draw of the masks."""
    sets = np.stack(draws)
    labels = balanced_labels(setting.mixture, len(exact))
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
        for first in select(metrics, "masks", mixture=name, num_masks=counts[0]):
            network, steps = first["network"], first["steps"]
            place_of = {"mixture": name, "network": network, "steps": steps}
            records = select(metrics, "masks", **place_of)
            color = NETWORK_COLORS[network]
            style: dict[str, Any] = {"color": color, "fmt": "o-", "ms": 3, "capsize": 2}
            label = f"{NETWORK_TITLES[network]}, {steps:,} steps"
            if network == "paper_like":
                scale = metrics["config"]["paper_like"]["cfg_scale"]
                label += f", λ = {scale:g}"
                style["alpha"] = 1.0 if steps == max(_paper_steps(metrics)) else 0.5
            style["label"] = label
            distances = [r["distance"] for r in records]
            draw_measurements(axes[row, 0], place, distances, **style)
            spread = [r["spread_over_masks"] for r in records[:-1]]
            draw_measurements(axes[row, 1], place[:-1], spread, **style)
            numbers = np.array(counts[:-1], float)
            expected = spread[0]["mean"] * np.sqrt(numbers[0] / numbers)
            axes[row, 1].plot(place[:-1], expected, ":", color=color, lw=0.9)
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
    legend_below(axes[0, 0], 3)
    figure.suptitle("dotted: 1/√masks", fontsize=7)
    return {"figure": figure}


def _paper_steps(metrics: Metrics) -> list[int]:
    return metrics["config"]["paper_like"]["steps"]


def summarize(metrics: Metrics) -> list[str]:
    """Distance at one mask and at the exact expectation."""
    lines = []
    first = metrics["config"]["num_masks"][0]
    for one in select(metrics, "masks", num_masks=first):
        place = {key: one[key] for key in ("mixture", "network", "steps")}
        exact = single(metrics, "masks", num_masks=ALL, **place)
        lines.append(
            f"{MIXTURE_TITLES[one['mixture']]}, {NETWORK_TITLES[one['network']]}, "
            f"{one['steps']} steps: distance {one['distance']['mean']:.3f} with "
            f"{first} mask, {exact['distance']['mean']:.3f} with the exact mean; masks "
            f"move a sample by {one['spread_over_masks']['mean']:.4f}"
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
