"""One-dimensional sample paths of each rule: the exact denoiser and trained ones.

All panels start from the same noise, so paths can be compared one by one. The state is
drawn in units that keep its spread constant, ``x * s / sqrt(sigma^2 + s^2)`` with ``s``
the scale of the data; at the end (noise level 0) it is the sample itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment
from toy_experiments.common.mixtures import balanced_labels
from toy_experiments.common.paper import (
    NETWORK_TITLES,
    NETWORKS,
    REGIMES,
    PaperConfig,
    Setting,
)
from toy_experiments.common.records import (
    Metrics,
    Tables,
    over_seeds,
    plus_minus,
    single,
)
from toy_experiments.common.rules import METHODS, RULE_TITLES
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.style import COLORS, PAGE_WIDTH, TRUTH

_DRAWN = 40  # paths drawn in a panel, the first of the first seed


@dataclasses.dataclass(frozen=True)
class TrajectoriesConfig(PaperConfig):
    """Configuration of ``trajectories``; ``num_samples`` is the number of paths."""

    num_samples: int = 512

    QUICK = PaperConfig.QUICK | {"num_samples": 512}


def compute(config: TrajectoriesConfig, store: Store) -> tuple[Tables, Arrays]:
    """Paths of each rule and denoiser, and how far they end from the exact ones."""
    setting = config.setting(store, "two_modes")
    sigmas = config.schedule().sigmas()
    scale = float(setting.mixture.scale)
    shrink = (scale / np.sqrt(sigmas**2 + scale**2))[:, None]
    data: Arrays = {"sigmas": sigmas}
    tables: Tables = {"paths": []}
    panels = [(method, network) for method in METHODS for network in NETWORKS]
    exact: list[np.ndarray] = []
    with store.reporter.task("trajectories", len(panels)) as task:
        for method, network in panels:
            paths = [
                _paths(store, setting, network, method, seed)
                for seed in range(config.seeds)
            ]
            if network == "exact":
                exact = paths
            values = [
                _numbers(p, e, setting.mixture)
                for p, e in zip(paths, exact, strict=True)
            ]
            place = {"network": network, "rule": method}
            tables["paths"].append(place | over_seeds(values))
            data[f"{network}/{method}"] = (paths[0] * shrink)[:, :_DRAWN]
            task.advance(detail=f"{network}, {RULE_TITLES[method]}")
    return tables, data


def _paths(
    store: Store, setting: Setting, network: str, method: str, seed: int
) -> np.ndarray:
    """States at all noise levels, ``[steps + 1, paths]``."""
    return store.cell(
        draw_paths,
        setting.denoiser(network, seed),
        setting.rule(network, method, seed),
        setting.config.schedule(),
        setting.config.num_samples,
        seed,
    )["path"]


def draw_paths(
    context: Context,
    denoiser: Any,
    rule: gg.GuidanceRule,
    schedule: gg.Karras,
    num_samples: int,
    seed: int,
) -> Arrays:
    """Sample both classes in turn, keeping all states."""
    noise_key, mask_key = jax.random.split(jax.random.key(2000 + seed))
    noise = jax.random.normal(noise_key, (num_samples, 1))
    _, path = gg.guided_sample(
        mask_key,
        denoiser,
        np.arange(num_samples) % 2,
        num_samples=num_samples,
        guidance=rule,
        schedule=schedule,
        initial=schedule.sigma_max * noise,
        trajectory=True,
    )
    return {"path": np.asarray(path)[..., 0]}


def _numbers(paths: np.ndarray, exact: np.ndarray, mixture) -> dict[str, float]:
    labels = balanced_labels(mixture, paths.shape[1])
    classes = gg.metrics.class_statistics(paths[-1][:, None], labels, mixture)
    return {
        "shift": float(np.mean(classes.outward_shift)),
        "width_ratio": float(np.mean(classes.width_ratio)),
        "path_error": float(np.sqrt(np.mean((paths[-1] - exact[-1]) ** 2))),
    }


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Paths by rule (columns) and denoiser (rows)."""
    figure, axes = plt.subplots(
        len(NETWORKS), len(METHODS), figsize=(PAGE_WIDTH, 5.3), sharex=True, sharey=True
    )
    steps = np.arange(len(data["sigmas"]))
    std = metrics["config"]["std"]
    for row, network in enumerate(NETWORKS):
        for column, method in enumerate(METHODS):
            ax = axes[row, column]
            for mean in (-4.0, 4.0):
                ax.axvspan(mean - std, mean + std, color=TRUTH, alpha=0.4, lw=0)
                ax.axvline(mean, color=TRUTH, lw=0.8)
            paths = data[f"{network}/{method}"]
            ax.plot(paths, steps, color=COLORS[method], lw=0.45, alpha=0.65)
            record = single(metrics, "paths", network=network, rule=method)
            text = f"shift {plus_minus(record['shift'], 2)}"
            if network != "exact":
                text += f"\npath error {plus_minus(record['path_error'], 2)}"
            ax.set_xlabel(text, fontsize=6.2)
            if row == 0:
                ax.set_title(RULE_TITLES[method], color=COLORS[method])
        axes[row, 0].set_ylabel(f"{NETWORK_TITLES[network]}\nstep")
    axes[0, 0].set(xlim=(-10.5, 10.5), ylim=(steps[-1], 0))
    axes[0, 0].set_xticks([-8, -4, 0, 4, 8])
    figure.supxlabel(
        "state, scaled to constant spread; gray: modes of the truth ± 1 standard "
        "deviation; shift of the ends outwards in mode standard deviations;\n"
        "path error: root mean square distance of the ends from the exact rule's, from "
        f"the same noise; ± standard error over {metrics['seeds']} seeds",
        fontsize=6.2,
    )
    return {"figure": figure}


def summarize(metrics: Metrics) -> list[str]:
    """How far each rule's trained paths end from its exact ones."""
    lines = []
    for network in REGIMES:
        found = [single(metrics, "paths", network=network, rule=m) for m in METHODS]
        values = ", ".join(
            f"{RULE_TITLES[r['rule']]} {r['path_error']['mean']:.3f}" for r in found
        )
        lines.append(
            f"{NETWORK_TITLES[network]}: rms distance to exact paths: {values}"
        )
    return lines


EXPERIMENT = Experiment(
    "trajectories",
    "paper",
    "sample paths over time in 1-D, exact and trained, for each rule",
    TrajectoriesConfig,
    compute,
    draw,
    summarize,
)
