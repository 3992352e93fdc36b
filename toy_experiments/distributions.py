"""The paper's toy figure, with the exact answer beside it and numbers beneath.

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
from toy_experiments.common.experiment import Config, Experiment, Metrics, over_seeds
from toy_experiments.common.laboratory import (
    METHODS,
    REGIME_TITLES,
    REGIMES,
    TITLES,
    balanced_labels,
    make_mixture,
    sample_cell,
    trained,
)
from toy_experiments.common.style import COLOURS, PAGE_WIDTH, TRUTH
from toy_experiments.common.workspace import Arrays, Workspace

ROWS = ("exact", *REGIMES)
_BINS = np.linspace(-9.0, 9.0, 109)
_LIMIT = 8.5  # of the axes in 2-D
_DRAWN = 800  # points drawn in a 2-D panel, all of the first seed


def compute(config: Config, workspace: Workspace) -> tuple[Metrics, Arrays]:
    """Samples and metrics of each rule, row and dimension."""
    metrics: Metrics = {"dimensions": {}}
    data: Arrays = {"bins": _BINS}
    for dim in (1, 2):
        mixture = make_mixture(dim, config.std)
        run = trained(workspace, dim, config.std, config.networks, config.seeds)
        panels = len(METHODS) * (1 + len(REGIMES) * config.seeds)
        with workspace.reporter.task(f"distributions {dim}-D", panels) as task:
            result: Metrics = {"floor": _floor(config, mixture)}
            for method in METHODS:
                result[f"exact/{method}"], samples = _exact(
                    config, workspace, mixture, method
                )
                task.advance(detail=f"exact, {TITLES[method]}")
                _keep(data, f"{dim}d/exact/{method}", [samples], dim)
                for regime in REGIMES:
                    per_seed, drawn = [], []
                    for seed in range(config.seeds):
                        samples = _trained(
                            config, workspace, mixture, run, method, regime, seed
                        )
                        labels = balanced_labels(mixture, len(samples))
                        per_seed.append(gg.metrics.summarise(samples, labels, mixture))
                        drawn.append(samples)
                        task.advance(detail=f"{regime}, {TITLES[method]}")
                    result[f"{regime}/{method}"] = over_seeds(per_seed)
                    _keep(data, f"{dim}d/{regime}/{method}", drawn, dim)
            metrics["dimensions"][str(dim)] = result
    return metrics, data


def _floor(config: Config, mixture: gg.GaussianMixture) -> Metrics:
    labels = balanced_labels(mixture, config.num_samples)
    return gg.metrics.truth_floor(jax.random.key(7), mixture, labels)


def _exact(config, workspace, mixture, method) -> tuple[Metrics, np.ndarray]:
    """The rule with exact denoisers: on a line without sampling noise."""
    rule = config.guidance.exact_rule(method)
    denoiser = gg.ExactDenoiser(mixture)
    schedule = config.schedule()
    if mixture.dim > 1:
        values = []
        for seed in range(config.seeds):
            cell = sample_cell(
                workspace,
                mixture,
                denoiser,
                rule,
                identity={"exact": repr(rule), "dim": mixture.dim, "std": config.std},
                seed=seed,
                num_samples=config.num_samples,
                schedule=schedule,
            )
            labels = balanced_labels(mixture, config.num_samples)
            values.append(gg.metrics.summarise(cell["samples"], labels, mixture))
            if seed == 0:
                drawn = cell["samples"]
        return over_seeds(values), drawn
    quantiles = [
        np.asarray(gg.quantile_map(denoiser, label, guidance=rule, schedule=schedule))[
            :, None
        ]
        for label in range(mixture.num_labels)
    ]
    samples = np.stack(quantiles, axis=1).reshape(-1, 1)  # labels in turn
    labels = balanced_labels(mixture, len(samples))
    summary = gg.metrics.summarise(samples, labels, mixture)
    # The energy distance is against random samples; its noise is not the rule's.
    summary.pop("energy_distance")
    exact = {k: {"mean": v, "standard_error": 0.0} for k, v in summary.items()}
    return exact, samples


def _trained(config, workspace, mixture, run, method, regime, seed) -> np.ndarray:
    steps, weak_steps = config.networks.steps(regime)
    rule = config.guidance.rule(method, run.denoiser(seed, weak_steps))
    shown = config.guidance.rule(method, f"{weak_steps} steps")
    cell = sample_cell(
        workspace,
        mixture,
        run.denoiser(seed, steps),
        rule,
        identity={
            "training": repr(run.config),
            "steps": steps,
            "seeds": run.num_seeds,
            "rule": repr(shown),
            "dim": mixture.dim,
            "std": config.std,
        },
        seed=seed,
        num_samples=config.num_samples,
        schedule=config.schedule(),
    )
    return cell["samples"]


def _keep(data: Arrays, name: str, samples: list[np.ndarray], dim: int) -> None:
    """What the panel shows: densities over the bins, or points of the first seed."""
    if dim == 1:
        data[name] = np.stack(
            [np.histogram(s, bins=_BINS, density=True)[0] for s in samples]
        )
    else:
        data[name] = samples[0][:_DRAWN].astype(np.float32)


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """One figure for each dimension."""
    return {f"figure_{dim}d": _draw(dim, metrics, data) for dim in (1, 2)}


def _draw(dim: int, metrics: Metrics, data: Arrays) -> Figure:
    result = metrics["dimensions"][str(dim)]
    height = 4.9 if dim == 1 else 5.6
    figure, axes = plt.subplots(
        len(ROWS), len(METHODS), figsize=(PAGE_WIDTH, height), sharex=True, sharey=True
    )
    for row, regime in enumerate(ROWS):
        for column, method in enumerate(METHODS):
            ax = axes[row, column]
            panel = data[f"{dim}d/{regime}/{method}"]
            if dim == 1:
                _draw_line(ax, metrics["std"], data["bins"], panel, COLOURS[method])
            else:
                _draw_plane(ax, metrics["std"], panel, COLOURS[method])
            ax.set_xlabel(_numbers(result[f"{regime}/{method}"], dim), fontsize=6.2)
            if row == 0:
                ax.set_title(TITLES[method], color=COLOURS[method])
        axes[row, 0].set_ylabel(REGIME_TITLES[regime])
    floor = result["floor"]["w2" if dim == 1 else "sliced_w2"]["mean"]
    name = "W2" if dim == 1 else "sliced W2"
    figure.supxlabel(
        f"grey: the truth p(x | label); {name} of as many true samples: {floor:.3f}; "
        f"shift outwards in mode standard deviations; ± standard error over "
        f"{metrics['seeds']} training seeds",
        fontsize=6.2,
    )
    return figure


def _draw_line(ax: Axes, std: float, bins: Any, panel: np.ndarray, colour: str) -> None:
    x = np.linspace(bins[0], bins[-1], 400)
    truth = sum(np.exp(-0.5 * ((x - m) / std) ** 2) for m in (-4.0, 4.0))
    truth = truth / (2.0 * std * np.sqrt(2.0 * np.pi))
    ax.fill_between(x, truth, color=TRUTH, alpha=0.55, linewidth=0)
    for density in panel if len(panel) > 1 else ():
        ax.stairs(density, bins, color=colour, alpha=0.25, linewidth=0.5)
    ax.stairs(panel.mean(axis=0), bins, color=colour, linewidth=1.2)
    ax.set_ylim(0.0, 2.2 * truth.max())
    ax.set_xlim(bins[0], bins[-1])
    ax.set_xticks([-8, -4, 0, 4, 8])
    ax.set_yticks([])


def _draw_plane(ax: Axes, std: float, panel: np.ndarray, colour: str) -> None:
    for mean in ((-4, -4), (-4, 4), (4, -4), (4, 4)):
        for radius, alpha in ((3, 0.25), (2, 0.35), (1, 0.5)):
            ax.add_patch(Circle(mean, radius * std, color=TRUTH, alpha=alpha, lw=0))
    ax.plot(*panel.T, ".", color=colour, markersize=1.1, alpha=0.7, rasterized=True)
    ax.set(xlim=(-_LIMIT, _LIMIT), ylim=(-_LIMIT, _LIMIT), aspect="equal")
    ax.set_xticks([-4, 0, 4])
    ax.set_yticks([-4, 0, 4])


def _numbers(panel: Metrics, dim: int) -> str:
    """The lines beneath a panel."""

    def number(name: str, digits: int) -> str:
        entry = panel[name]
        error = entry["standard_error"]
        text = f"{entry['mean']:.{digits}f}"
        return f"{text} ± {error:.{digits}f}" if error else text

    distance = "w2" if dim == 1 else "sliced_w2"
    label = "W2" if dim == 1 else "SW2"
    return (
        f"{label} {number(distance, 3)}\n"
        f"shift {number('mode_shift', 2)}\n"
        f"width × {number('mode_width_ratio', 2)}"
    )


def summarise(metrics: Metrics) -> list[str]:
    """Distance to the truth of each rule."""
    lines = []
    for dim, name in (("1", "w2"), ("2", "sliced_w2")):
        result = metrics["dimensions"][dim]
        for regime in ROWS:
            values = ", ".join(
                f"{TITLES[m]} {result[f'{regime}/{m}'][name]['mean']:.3f}"
                for m in METHODS
            )
            lines.append(f"{dim}-D {REGIME_TITLES[regime]}: {name} {values}")
    return lines


EXPERIMENT = Experiment(
    "distributions",
    "final samples of each rule: exact, under-trained and well-trained, 1-D and 2-D",
    Config,
    compute,
    draw,
    summarise,
)
