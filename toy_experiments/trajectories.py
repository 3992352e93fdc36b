"""One-dimensional sample paths of each rule: the exact denoiser beside trained ones.

All panels start from the same noise, so paths can be compared one by one. The state is
drawn in units that keep its spread constant, ``x * s / sqrt(sigma^2 + s^2)`` with ``s``
the scale of the data; at the end (noise level 0) it is the sample itself.
"""

from __future__ import annotations

import dataclasses

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Config, Experiment, Metrics, over_seeds
from toy_experiments.common.laboratory import (
    METHODS,
    REGIME_TITLES,
    REGIMES,
    TITLES,
    balanced_labels,
    make_mixture,
    trained,
)
from toy_experiments.common.style import COLOURS, PAGE_WIDTH, TRUTH
from toy_experiments.common.workspace import Arrays, Workspace

ROWS = ("exact", *REGIMES)
_DRAWN = 40  # paths drawn in a panel, the first of the first seed


@dataclasses.dataclass(frozen=True)
class TrajectoriesConfig(Config):
    """Configuration of ``trajectories``; ``num_samples`` is the number of paths."""

    num_samples: int = 512


def compute(config: Config, workspace: Workspace) -> tuple[Metrics, Arrays]:
    """Paths of each rule and row, and how far they end from the exact ones."""
    mixture = make_mixture(1, config.std)
    run = trained(workspace, 1, config.std, config.networks, config.seeds)
    sigmas = config.schedule().sigmas()
    scale = float(mixture.scale)
    shrink = scale / np.sqrt(sigmas**2 + scale**2)
    data: Arrays = {"sigmas": sigmas}
    metrics: Metrics = {"panels": {}}
    total = len(METHODS) * config.seeds * len(ROWS)
    with workspace.reporter.task("trajectories", total) as task:
        for method in METHODS:
            exact = []
            for seed in range(config.seeds):
                rule = config.guidance.exact_rule(method)
                exact.append(
                    _paths(
                        config,
                        workspace,
                        gg.ExactDenoiser(mixture),
                        rule,
                        {"exact": repr(rule)},
                        seed,
                    )
                )
                task.advance(detail=f"exact, {TITLES[method]}")
            metrics["panels"][f"exact/{method}"] = over_seeds(
                [_numbers(p, p, mixture) for p in exact]
            )
            data[f"exact/{method}"] = (exact[0] * shrink[:, None])[:, :_DRAWN]
            for regime in REGIMES:
                steps, weak_steps = config.networks.steps(regime)
                paths = []
                for seed in range(config.seeds):
                    rule = config.guidance.rule(method, run.denoiser(seed, weak_steps))
                    shown = config.guidance.rule(method, f"{weak_steps} steps")
                    identity = {
                        "training": repr(run.config),
                        "steps": steps,
                        "seeds": run.num_seeds,
                        "rule": repr(shown),
                    }
                    denoiser = run.denoiser(seed, steps)
                    paths.append(
                        _paths(config, workspace, denoiser, rule, identity, seed)
                    )
                    task.advance(detail=f"{regime}, {TITLES[method]}")
                metrics["panels"][f"{regime}/{method}"] = over_seeds(
                    [_numbers(p, e, mixture) for p, e in zip(paths, exact, strict=True)]
                )
                data[f"{regime}/{method}"] = (paths[0] * shrink[:, None])[:, :_DRAWN]
    return metrics, data


def _paths(config, workspace, denoiser, rule, identity, seed) -> np.ndarray:
    """States at all noise levels, ``[steps + 1, paths]``."""
    labels = np.arange(config.num_samples) % 2
    schedule = config.schedule()
    noise_key, mask_key = jax.random.split(jax.random.key(2000 + seed))

    def compute() -> Arrays:
        noise = jax.random.normal(noise_key, (config.num_samples, 1))
        _, path = gg.guided_sample(
            mask_key,
            denoiser,
            labels,
            num_samples=config.num_samples,
            guidance=rule,
            schedule=schedule,
            initial=schedule.sigma_max * noise,
            trajectory=True,
        )
        return {"path": np.asarray(path)[..., 0]}

    description = {
        **identity,
        "std": config.std,
        "seed": seed,
        "num_samples": config.num_samples,
        "schedule": repr(schedule),
    }
    return workspace.cell("paths", description, compute)["path"]


def _numbers(paths: np.ndarray, exact: np.ndarray, mixture) -> dict[str, float]:
    labels = balanced_labels(mixture, paths.shape[1])
    classes = gg.metrics.class_statistics(paths[-1][:, None], labels, mixture)
    return {
        "shift": float(np.mean(classes.outward_shift)),
        "width_ratio": float(np.mean(classes.width_ratio)),
        "distance_to_exact_path_end": float(
            np.sqrt(np.mean((paths[-1] - exact[-1]) ** 2))
        ),
    }


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Paths by rule (columns) and denoiser (rows)."""
    figure, axes = plt.subplots(
        len(ROWS), len(METHODS), figsize=(PAGE_WIDTH, 5.3), sharex=True, sharey=True
    )
    steps = np.arange(len(data["sigmas"]))
    std = metrics["std"]
    for row, regime in enumerate(ROWS):
        for column, method in enumerate(METHODS):
            ax = axes[row, column]
            for mean in (-4.0, 4.0):
                ax.axvspan(mean - std, mean + std, color=TRUTH, alpha=0.4, lw=0)
                ax.axvline(mean, color=TRUTH, lw=0.8)
            paths = data[f"{regime}/{method}"]
            ax.plot(paths, steps, color=COLOURS[method], lw=0.45, alpha=0.65)
            panel = metrics["panels"][f"{regime}/{method}"]
            text = (
                f"shift {panel['shift']['mean']:.2f} ± "
                f"{panel['shift']['standard_error']:.2f}"
            )
            if regime != "exact":
                entry = panel["distance_to_exact_path_end"]
                text += (
                    f"\npath error {entry['mean']:.2f} ± {entry['standard_error']:.2f}"
                )
            ax.set_xlabel(text, fontsize=6.2)
            if row == 0:
                ax.set_title(TITLES[method], color=COLOURS[method])
        axes[row, 0].set_ylabel(f"{REGIME_TITLES[regime]}\nstep")
    axes[0, 0].set(xlim=(-10.5, 10.5), ylim=(steps[-1], 0))
    axes[0, 0].set_xticks([-8, -4, 0, 4, 8])
    figure.supxlabel(
        "state, scaled to constant spread; grey: modes of the truth ± 1 standard "
        "deviation; shift of the ends outwards in mode standard deviations;\n"
        "path error: root mean square distance of the ends from the exact rule's, from "
        f"the same noise; ± standard error over {metrics['seeds']} seeds",
        fontsize=6.2,
    )
    return {"figure": figure}


def summarise(metrics: Metrics) -> list[str]:
    """How far each rule's trained paths end from its exact ones."""
    lines = []
    for regime in REGIMES:
        values = ", ".join(
            f"{TITLES[m]} "
            f"{metrics['panels'][f'{regime}/{m}']['distance_to_exact_path_end']['mean']:.3f}"
            for m in METHODS
        )
        lines.append(f"{REGIME_TITLES[regime]}: rms distance to exact paths: {values}")
    return lines


EXPERIMENT = Experiment(
    "trajectories",
    "sample paths over time in 1-D, exact beside trained, for each rule",
    TrajectoriesConfig,
    compute,
    draw,
    summarise,
)
