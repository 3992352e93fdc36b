"""One-dimensional sample paths of each rule: the exact denoiser and trained ones.

All panels start from the same noise, so paths can be compared one by one. The state is
drawn in units that keep its spread constant, ``x * s / sqrt(sigma^2 + s^2)`` with ``s``
the scale of the data; at the end (noise level 0) it is the sample itself.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment
from toy_experiments.common.mixtures import balanced_labels
from toy_experiments.common.paper import NETWORK_TITLES, PaperConfig
from toy_experiments.common.records import (
    Metrics,
    Tables,
    exact_value,
    over_seeds,
    plus_minus,
    select,
    single,
)
from toy_experiments.common.rules import (
    COLUMNS,
    RULE_COLORS,
    RULE_TITLES,
    exact_name,
)
from toy_experiments.common.store import Arrays, Store
from toy_experiments.common.style import PAGE_WIDTH, TRUTH

_DRAWN = 40  # paths drawn in a panel, of the first seed


def compute(config: PaperConfig, store: Store) -> tuple[Tables, Arrays]:
    """Paths of each rule and denoiser, and how far they end from the exact ones.

    They are the paths of the samples of ``distributions``.
    """
    setting = config.setting(store, "two_modes", paper_like=True)
    scale = float(setting.mixture.scale)
    data: Arrays = {}
    tables: Tables = {"paths": []}
    panels = [(row, method) for row in config.rows() for method in COLUMNS]
    with store.reporter.task("trajectories", len(panels)) as task:
        for (network, steps), method in panels:
            schedule: Any = config.schedule()
            exact_rule = setting.rule("exact", method, 0)
            if network == "paper_like":
                schedule = config.paper_like.schedule()
                guidance = config.paper_like.guidance(config.guidance)
                exact_rule = guidance.rule(exact_name(method))
            exact = setting.paths(store, "exact", exact_rule, 0, sampler=network)
            paths = [exact]
            if network != "exact":
                paths = [
                    setting.paths(
                        store,
                        network,
                        setting.rule(network, method, seed, steps),
                        seed,
                        steps=steps,
                    )
                    for seed in range(config.seeds)
                ]
            values = [_numbers(p, exact, setting.mixture) for p in paths]
            place = {"network": network, "steps": steps, "rule": method}
            tables["paths"].append(
                place
                | (
                    {k: exact_value(v) for k, v in values[0].items()}
                    if network == "exact"
                    else over_seeds(values)
                )
            )
            sigmas = schedule.sigmas()
            shrink = (scale / np.sqrt(sigmas**2 + scale**2))[:, None]
            # Starts are quantiles in order: some from all over, of both classes.
            count = paths[0].shape[1]
            shown = np.linspace(0, count // 2 - 1, _DRAWN // 2).astype(int) * 2
            shown = np.concatenate([shown, shown + 1])
            data[f"{network}/{steps}/{method}"] = paths[0][:, shown, 0] * shrink
            task.advance(detail=f"{network}, {RULE_TITLES[method]}")
    return tables, data


def _numbers(paths: np.ndarray, exact: np.ndarray, mixture) -> dict[str, float]:
    labels = balanced_labels(mixture, paths.shape[1])
    classes = gg.metrics.class_statistics(paths[-1], labels, mixture)
    return {
        "shift": float(np.mean(classes.outward_shift)),
        "width_ratio": float(np.mean(classes.width_ratio)),
        "path_error": float(np.sqrt(np.mean((paths[-1] - exact[-1]) ** 2))),
    }


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Paths by rule (columns) and denoiser (rows)."""
    rows = [(r["network"], r["steps"]) for r in select(metrics, "paths", rule="cfg")]
    figure, axes = plt.subplots(
        len(rows),
        len(COLUMNS),
        figsize=(PAGE_WIDTH, 0.5 + 1.6 * len(rows)),
        sharex=True,
        sharey="row",
    )
    config = metrics["config"]
    std = config["std"]
    for row, (network, steps) in enumerate(rows):
        for column, method in enumerate(COLUMNS):
            ax, color = axes[row, column], RULE_COLORS[method]
            for mean in (-4.0, 4.0):
                ax.axvspan(mean - std, mean + std, color=TRUTH, alpha=0.4, lw=0)
                ax.axvline(mean, color=TRUTH, lw=0.8)
            paths = data[f"{network}/{steps}/{method}"]
            ax.plot(paths, np.arange(len(paths)), color=color, lw=0.45, alpha=0.65)
            record = single(metrics, "paths", network=network, steps=steps, rule=method)
            text = f"shift {plus_minus(record['shift'], 2)}"
            if network != "exact":
                text += f"\npath error {plus_minus(record['path_error'], 2)}"
            ax.set_xlabel(text, fontsize=6.0)
            if row == 0:
                strong = config["guidance"]["strong_s2_scale"]
                title = {"s2_strong": f"S², ω = {strong:g}"}
                ax.set_title(title.get(method, RULE_TITLES[method]), color=color)
        axes[row, 0].set_ylim(len(paths) - 1, 0)
        own = config["paper_like" if network == "paper_like" else "guidance"]
        length = f"{steps:,} steps, " if steps else ""
        axes[row, 0].set_ylabel(
            f"{NETWORK_TITLES[network]}\n{length}λ = {own['cfg_scale']:g}; step",
            fontsize=6.5,
        )
    axes[0, 0].set(xlim=(-10.5, 10.5))
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
    for row in select(metrics, "paths", rule="cfg"):
        if row["network"] == "exact":
            continue
        place = {key: row[key] for key in ("network", "steps")}
        found = [single(metrics, "paths", rule=m, **place) for m in COLUMNS]
        values = ", ".join(
            f"{RULE_TITLES[r['rule']]} {r['path_error']['mean']:.3f}" for r in found
        )
        title = f"{NETWORK_TITLES[row['network']]}, {row['steps']} steps"
        lines.append(f"{title}: rms distance to exact paths: {values}")
    return lines


EXPERIMENT = Experiment(
    "trajectories",
    "paper",
    "sample paths over time in 1-D, exact and trained, for each rule",
    PaperConfig,
    compute,
    draw,
    summarize,
)
