"""The paper's toy figure, with the exact answer and with numbers.

Fig. 3 of arXiv 2508.12880 shows final samples of a network under no guidance, CFG,
AutoGuidance, Naive S² and S², without numbers and without saying how long the network
was trained. Here each rule is run with the exact denoiser, with an under-trained and
with a well-trained network, over training seeds.
"""

from __future__ import annotations

from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment
from toy_experiments.common.mixtures import MIXTURE_TITLES, balanced_labels
from toy_experiments.common.paper import (
    NETWORK_TITLES,
    NETWORKS,
    PAPER_MIXTURES,
    PaperConfig,
    Setting,
    line_density,
)
from toy_experiments.common.records import (
    Metrics,
    Record,
    Tables,
    exact_value,
    over_seeds,
    plus_minus,
    single,
)
from toy_experiments.common.rules import METHODS, RULE_TITLES
from toy_experiments.common.store import Arrays, Store
from toy_experiments.common.style import COLORS, PAGE_WIDTH, TRUTH

_BINS = np.linspace(-9.0, 9.0, 109)
_LIMIT = 8.5  # of the axes in 2-D
_DRAWN = 800  # points drawn in a 2-D panel, all of the first seed
_DISTANCES = {"two_modes": ("w2", "W2"), "four_corners": ("sliced_w2", "sliced W2")}


def compute(config: PaperConfig, store: Store) -> tuple[Tables, Arrays]:
    """Samples and metrics of each rule, denoiser and mixture."""
    tables: Tables = {"samples": [], "floor": []}
    data: Arrays = {"bins": _BINS}
    for name in PAPER_MIXTURES:
        setting = config.setting(store, name)
        labels = balanced_labels(setting.mixture, config.num_samples)
        floor = gg.metrics.truth_floor(jax.random.key(7), setting.mixture, labels)
        tables["floor"].append({"mixture": name, **floor})
        panels = [(network, method) for method in METHODS for network in NETWORKS]
        with store.reporter.task(f"distributions, {name}", len(panels)) as task:
            for network, method in panels:
                measured, samples = _panel(store, setting, network, method)
                place = {"mixture": name, "network": network, "rule": method}
                tables["samples"].append(place | measured)
                data[f"{name}/{network}/{method}"] = (
                    np.stack([_density(s) for s in samples])
                    if setting.mixture.dim == 1
                    else samples[0][:_DRAWN].astype(np.float32)
                )
                task.advance(detail=f"{network}, {RULE_TITLES[method]}")
    return tables, data


def _panel(
    store: Store, setting: Setting, network: str, method: str
) -> tuple[Record, list[np.ndarray]]:
    """Metrics over seeds, and the samples of each seed."""
    mixture = setting.mixture
    if network == "exact" and mixture.dim == 1:
        return _without_sampling_noise(setting, method)
    values, drawn = [], []
    for seed in range(setting.config.seeds):
        rule = setting.rule(network, method, seed)
        samples = setting.samples(store, network, rule, seed)
        labels = balanced_labels(mixture, len(samples))
        values.append(gg.metrics.summarize(samples, labels, mixture))
        drawn.append(samples)
    return over_seeds(values), drawn


def _without_sampling_noise(
    setting: Setting, method: str
) -> tuple[Record, list[np.ndarray]]:
    """The rule with exact denoisers on a line: quantiles of its output."""
    mixture = setting.mixture
    quantiles = [
        gg.quantile_map(
            setting.denoiser("exact", 0),
            label,
            guidance=setting.rule("exact", method, 0),
            schedule=setting.config.schedule(),
        )
        for label in range(mixture.num_labels)
    ]
    samples = np.stack([np.asarray(q) for q in quantiles], axis=1).reshape(-1, 1)
    labels = balanced_labels(mixture, len(samples))
    summary = gg.metrics.summarize(samples, labels, mixture)
    # The energy distance is against random samples; its noise is not the rule's.
    summary.pop("energy_distance")
    return {k: exact_value(v) for k, v in summary.items()}, [samples]


def _density(samples: np.ndarray) -> np.ndarray:
    return np.histogram(samples, bins=_BINS, density=True)[0]


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """One figure for each mixture."""
    return {
        f"figure_{dim}d": _draw(dim, name, metrics, data)
        for dim, name in enumerate(PAPER_MIXTURES, start=1)
    }


def _draw(dim: int, name: str, metrics: Metrics, data: Arrays) -> Figure:
    height = 4.9 if dim == 1 else 5.6
    figure, axes = plt.subplots(
        len(NETWORKS),
        len(METHODS),
        figsize=(PAGE_WIDTH, height),
        sharex=True,
        sharey=True,
    )
    std = metrics["config"]["std"]
    for row, network in enumerate(NETWORKS):
        for column, method in enumerate(METHODS):
            ax = axes[row, column]
            panel = data[f"{name}/{network}/{method}"]
            if dim == 1:
                _draw_line(ax, std, data["bins"], panel, COLORS[method])
            else:
                _draw_plane(ax, std, panel, COLORS[method])
            record = single(
                metrics, "samples", mixture=name, network=network, rule=method
            )
            ax.set_xlabel(_numbers(record, dim), fontsize=6.2)
            if row == 0:
                ax.set_title(RULE_TITLES[method], color=COLORS[method])
        axes[row, 0].set_ylabel(NETWORK_TITLES[network])
    field, title = _DISTANCES[name]
    floor = single(metrics, "floor", mixture=name)[field]["mean"]
    figure.supxlabel(
        f"gray: the truth p(x | label); {title} of as many true samples: {floor:.3f}; "
        f"shift outwards in mode standard deviations; ± standard error over "
        f"{metrics['seeds']} training seeds",
        fontsize=6.2,
    )
    return figure


def _draw_line(ax: Axes, std: float, bins: Any, panel: np.ndarray, color: str) -> None:
    x = np.linspace(bins[0], bins[-1], 400)
    truth = line_density(x, std)
    ax.fill_between(x, truth, color=TRUTH, alpha=0.55, linewidth=0)
    for density in panel if len(panel) > 1 else ():
        ax.stairs(density, bins, color=color, alpha=0.25, linewidth=0.5)
    ax.stairs(panel.mean(axis=0), bins, color=color, linewidth=1.2)
    ax.set_ylim(0.0, 2.2 * truth.max())
    ax.set_xlim(bins[0], bins[-1])
    ax.set_xticks([-8, -4, 0, 4, 8])
    ax.set_yticks([])


def _draw_plane(ax: Axes, std: float, panel: np.ndarray, color: str) -> None:
    for mean in ((-4, -4), (-4, 4), (4, -4), (4, 4)):
        for radius, alpha in ((3, 0.25), (2, 0.35), (1, 0.5)):
            ax.add_patch(Circle(mean, radius * std, color=TRUTH, alpha=alpha, lw=0))
    ax.plot(*panel.T, ".", color=color, markersize=1.1, alpha=0.7, rasterized=True)
    ax.set(xlim=(-_LIMIT, _LIMIT), ylim=(-_LIMIT, _LIMIT), aspect="equal")
    ax.set_xticks([-4, 0, 4])
    ax.set_yticks([-4, 0, 4])


def _numbers(record: Record, dim: int) -> str:
    """The lines beneath a panel."""
    distance, label = ("w2", "W2") if dim == 1 else ("sliced_w2", "SW2")
    return (
        f"{label} {plus_minus(record[distance], 3)}\n"
        f"shift {plus_minus(record['mode_shift'], 2)}\n"
        f"width × {plus_minus(record['mode_width_ratio'], 2)}"
    )


def summarize(metrics: Metrics) -> list[str]:
    """Distance to the truth of each rule."""
    lines = []
    for name, (field, title) in _DISTANCES.items():
        for network in NETWORKS:
            place = {"mixture": name, "network": network}
            values = ", ".join(
                f"{RULE_TITLES[m]} "
                f"{single(metrics, 'samples', rule=m, **place)[field]['mean']:.3f}"
                for m in METHODS
            )
            lines.append(
                f"{MIXTURE_TITLES[name]}, {NETWORK_TITLES[network]}: {title} {values}"
            )
    return lines


EXPERIMENT = Experiment(
    "distributions",
    "paper",
    "final samples of each rule: exact, under-trained and well-trained, 1-D and 2-D",
    PaperConfig,
    compute,
    draw,
    summarize,
)
