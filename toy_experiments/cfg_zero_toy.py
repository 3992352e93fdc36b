"""CFG-Zero* against CFG over the length of training, on a two-dimensional mixture.

Fig. 3 of Fan et al. 2025 (arXiv 2503.18886) shows, for a mixture of Gaussians in the
plane, the Jensen-Shannon divergence of the samples against training, and the error of
the guided velocity at the first step beside the norm of the true one: as long as the
error is the larger, a zero velocity is the better prediction. Neither the mixture nor
the network is published. Here: four unit Gaussians, the snapshots of one run per seed,
and the rule's two parts apart, the optimised scale and the zero first step.

Levels and solver are those of a rectified flow (even times, Euler). The network is
trained with EDM's loss at levels whose logarithm is normal with the standard deviation
of a logistic variable, the law of ``ln sigma`` for even times.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gmm_guidance as gg
from gmm_guidance.guidance.updates import ZeroVelocity, velocity_of
from toy_experiments.common.experiment import (
    Experiment,
    Metrics,
    over_seeds,
    plus_minus,
)
from toy_experiments.common.laboratory import balanced_labels, make_mixture, train_on
from toy_experiments.common.style import COLOURS, PAGE_WIDTH, TRUTH
from toy_experiments.common.workspace import Arrays, Workspace

RULES = ("unguided", "cfg", "optimised", "zero", "both")
_TITLES = {
    "unguided": "no guidance",
    "cfg": "CFG",
    "optimised": "optimised scale alone",
    "zero": "zero first step alone",
    "both": "CFG-Zero*",
}
_COLOURS = {
    "unguided": COLOURS["unguided"],
    "cfg": COLOURS["cfg"],
    "optimised": COLOURS["naive_s2"],
    "zero": COLOURS["autoguidance"],
    "both": COLOURS["s2"],
}
_BINS = np.linspace(-10.0, 10.0, 41)  # for the Jensen-Shannon divergence
_LOGISTIC_STD = math.pi / math.sqrt(3.0)


@dataclasses.dataclass(frozen=True)
class CFGZeroToyConfig:
    """Configuration.

    Attributes:
        seeds: training seeds, at least 2.
        steps: training lengths, ascending.
        num_samples: samples of each rule and seed, at least 64.
        num_steps: Euler steps.
        t_max: first time of the flow, in (0, 1).
        scales: total CFG scales; 1 = off. The figure shows the first two.
        zero_steps: first steps of zero velocity (their code has 1).
        std: of each mode; the modes lie at (+-4, +-4), a class each.
        width: features of the network.
        num_blocks: residual blocks.
        batch_size: samples in a training step.
    """

    seeds: int = 5
    steps: tuple[int, ...] = (10, 50, 100, 200, 500, 1000, 3000)
    num_samples: int = 2048
    num_steps: int = 50
    t_max: float = 0.999
    scales: tuple[float, ...] = (2.0, 4.0)
    zero_steps: int = 1
    std: float = 1.0
    width: int = 32
    num_blocks: int = 8
    batch_size: int = 256

    def __post_init__(self):
        if self.seeds < 2:
            raise ValueError(
                f"seeds must be at least 2, since standard errors are over seeds, got "
                f"{self.seeds}."
            )
        if self.num_samples < 64:
            raise ValueError(
                f"num_samples must be at least 64, got {self.num_samples}."
            )
        if not self.std > 0:
            raise ValueError(f"std must be > 0, got {self.std}.")
        if not self.scales or 1.0 in self.scales:
            raise ValueError(
                f"scales must be at least one and none of them 1, got {self.scales}."
            )
        if not 1 <= self.zero_steps < self.num_steps:
            raise ValueError(
                f"zero_steps must be at least 1 and below num_steps={self.num_steps}, "
                f"got {self.zero_steps}."
            )
        self.schedule()
        self.training(1.0)

    @classmethod
    def quick(cls) -> CFGZeroToyConfig:
        """Two seeds, four training lengths, one scale."""
        return cls(seeds=2, steps=(10, 50, 200, 500), num_samples=1024, scales=(2.0,))

    def schedule(self) -> gg.FlowSteps:
        """Even times of the flow."""
        return gg.FlowSteps(self.num_steps, self.t_max)

    def training(self, data_scale: float) -> gg.TrainingConfig:
        """One run that contains all lengths; levels spread as for even times."""
        return gg.TrainingConfig(
            snapshots=self.steps,
            batch_size=self.batch_size,
            width=self.width,
            num_blocks=self.num_blocks,
            log_sigma_offset=-math.log(data_scale),
            log_sigma_std=_LOGISTIC_STD,
        )

    def rule(self, name: str, scale: float) -> gg.GuidanceRule:
        """The rule of a name; ``zero`` is CFG after as many steps of zero velocity."""
        if name == "unguided":
            return gg.Unguided()
        if name == "cfg":
            return gg.CFG(scale)
        if name == "zero":
            return ZeroFirst(gg.CFG(scale), self.zero_steps)
        return gg.CFGZeroStar(scale, 0 if name == "optimised" else self.zero_steps)


@gg.guidance_rule
class ZeroFirst(gg.RuleWrapper):
    """A rule after first steps of zero velocity, without CFG-Zero*'s other part."""

    rule: gg.GuidanceRule
    zero_steps: int = gg.static_field(default=1)

    def at(self, position: Any) -> gg.GuidanceRule:
        """Zero velocity in the first steps, then the rule."""
        if position.step < self.zero_steps:
            return ZeroVelocity()
        return self.rule.at(position)


def compute(config: CFGZeroToyConfig, workspace: Workspace) -> tuple[Metrics, Arrays]:
    """Distances and first velocities of each rule, length and scale."""
    mixture = make_mixture(2, config.std)
    run = train_on(
        workspace,
        mixture,
        config.training(float(mixture.scale)),
        config.seeds,
        identity={"dim": 2, "std": config.std},
        title="four corners",
    )
    metrics: Metrics = {"steps": list(config.steps), "scales": {}}
    metrics["floor"] = _floor(config, mixture)
    data: Arrays = {"steps": np.array(config.steps)}
    rows = [("exact", 0), *((str(step), step) for step in config.steps)]
    total = len(rows) * len(config.scales)
    with workspace.reporter.task("cfg_zero_toy", total) as task:
        for scale in config.scales:
            result: Metrics = {}
            for row, step in rows:
                per_rule: Metrics = {}
                for name in RULES:
                    values = [
                        _distances(
                            config, workspace, mixture, run, step, k, name, scale
                        )
                        for k in range(config.seeds)
                    ]
                    per_rule[name] = over_seeds(values)
                per_rule["first_velocity"] = over_seeds(
                    [
                        _first_velocity(config, mixture, run, step, k, scale)
                        for k in range(config.seeds)
                    ]
                )
                result[row] = per_rule
                task.advance(detail=f"scale {scale:g}, {row} steps")
            result["paired"] = _paired(config, result)
            metrics["scales"][f"{scale:g}"] = result
            for name in RULES:
                data[f"{scale:g}/{name}"] = np.array(
                    [result[str(s)][name]["sliced_w2"]["seeds"] for s in config.steps]
                )
            for name in ("error", "norm", "class_error"):
                data[f"{scale:g}/velocity_{name}"] = np.array(
                    [
                        result[str(s)]["first_velocity"][name]["seeds"]
                        for s in config.steps
                    ]
                )
    return metrics, data


def _floor(config: CFGZeroToyConfig, mixture: gg.GaussianMixture) -> Metrics:
    """The same numbers of true samples."""
    labels = balanced_labels(mixture, config.num_samples)
    values = []
    for key in jax.random.split(jax.random.key(70), config.seeds):
        x, _ = mixture.sample(key, config.num_samples, labels)
        values.append(_measure(np.asarray(x), labels, mixture))
    return over_seeds(values)


def _paired(config: CFGZeroToyConfig, result: Metrics) -> Metrics:
    """Change of the distance by each rule against CFG, same network and noise."""
    paired: Metrics = {}
    for step in config.steps:
        row = result[str(step)]
        base = np.array(row["cfg"]["sliced_w2"]["seeds"])
        for name in ("optimised", "zero", "both"):
            change = np.array(row[name]["sliced_w2"]["seeds"]) - base
            entry = over_seeds([{"change": float(c)} for c in change])
            paired[f"{step}/{name}"] = entry["change"]
    return paired


def _distances(
    config, workspace, mixture, run, step: int, seed: int, name: str, scale: float
) -> dict[str, float]:
    rule = config.rule(name, scale)
    schedule = config.schedule()
    labels = balanced_labels(mixture, config.num_samples)

    def compute() -> Arrays:
        samples = gg.guided_sample(
            jax.random.key(6000 + seed),
            _denoiser(mixture, run, step, seed),
            labels,
            num_samples=config.num_samples,
            guidance=rule,
            schedule=schedule,
            solver="euler",
            initial=_start(config, mixture, seed),
        )
        found = _measure(np.asarray(samples), labels, mixture)
        return {key: np.array(value) for key, value in found.items()}

    description = {
        "std": config.std,
        "training": repr(run.config) if step else "exact",
        "seeds": run.num_seeds if step else 0,
        "step": step,
        "seed": seed,
        "rule": repr(rule),
        "num_samples": config.num_samples,
        "schedule": repr(schedule),
    }
    cell = workspace.cell("flow-distances", description, compute)
    return {key: float(value) for key, value in cell.items()}


def _measure(
    samples: np.ndarray, labels: np.ndarray, mixture: gg.GaussianMixture
) -> dict[str, float]:
    """Sliced W2 to each class, averaged; and the divergence of histograms of all."""
    sliced = [
        gg.metrics.sliced_wasserstein(samples[labels == k], mixture, k)
        for k in range(mixture.num_labels)
    ]
    return {
        "sliced_w2": float(np.mean(sliced)),
        "jensen_shannon": jensen_shannon(samples, mixture),
    }


def jensen_shannon(samples: np.ndarray, mixture: gg.GaussianMixture) -> float:
    """Jensen-Shannon divergence in nats, over cells of 0.5, to the mixture's density.

    Samples outside of [-10, 10] fall into one more cell. Positive for true samples, by
    about the number of occupied cells over 8 n.
    """
    x, y = np.asarray(samples, np.float64).T
    counts = np.histogram2d(x, y, bins=[_BINS, _BINS])[0].reshape(-1)
    found = np.append(counts, len(samples) - counts.sum()) / len(samples)
    middles = 0.5 * (_BINS[1:] + _BINS[:-1])
    grid = np.stack(np.meshgrid(middles, middles, indexing="ij"), -1).astype(np.float32)
    cell = (_BINS[1] - _BINS[0]) ** 2
    true = np.exp(np.asarray(mixture.log_prob(grid), np.float64)).reshape(-1) * cell
    true = np.append(true / max(true.sum(), 1.0), max(0.0, 1.0 - true.sum()))
    middle = 0.5 * (found + true)

    def divergence(p: np.ndarray) -> float:
        inside = p > 0
        return float(np.sum(p[inside] * np.log(p[inside] / middle[inside])))

    return 0.5 * (divergence(found) + divergence(true))


def _denoiser(mixture: gg.GaussianMixture, run: Any, step: int, seed: int) -> Any:
    # The bare network: one compilation for all training lengths.
    return run.denoiser(seed, step).network if step else gg.ExactDenoiser(mixture)


def _start(config: CFGZeroToyConfig, mixture, seed: int) -> jax.Array:
    noise = jax.random.normal(
        jax.random.key(6500 + seed), (config.num_samples, mixture.dim)
    )
    return float(config.schedule().sigmas()[0]) * noise


def _first_velocity(
    config, mixture, run, step: int, seed: int, scale: float
) -> dict[str, float]:
    """Root mean square error of the first guided velocity, beside its true norm."""
    x = _start(config, mixture, seed)
    sigma = jnp.asarray(config.schedule().sigmas()[0], x.dtype)
    labels = jnp.asarray(balanced_labels(mixture, config.num_samples))
    process = gg.RectifiedFlow()

    def velocities(denoiser):
        class_, none = (
            velocity_of(process, denoiser(x, sigma, label), x, sigma)
            for label in (labels, jnp.full_like(labels, mixture.num_labels))
        )
        return np.asarray(class_), np.asarray(none + scale * (class_ - none))

    def rms(v):
        return float(np.sqrt(np.mean(np.sum(v.astype(np.float64) ** 2, axis=1))))

    true_class, true_guided = velocities(gg.ExactDenoiser(mixture))
    class_, guided = velocities(_denoiser(mixture, run, step, seed))
    return {
        "error": rms(guided - true_guided),
        "norm": rms(true_guided),
        "class_error": rms(class_ - true_class),
    }


# -- figure ----------------------------------------------------------------------------


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """A row for each scale: distance, its change, and the first velocity."""
    scales = list(metrics["scales"])[:2]
    figure, axes = plt.subplots(
        len(scales),
        3,
        figsize=(PAGE_WIDTH, 0.55 + 2.25 * len(scales)),
        sharex=True,
        squeeze=False,
    )
    for row, scale in zip(axes, scales, strict=True):
        _draw_distance(row[0], scale, metrics, data)
        _draw_change(row[1], scale, metrics)
        _draw_velocity(row[2], scale, data)
        for ax in row:
            ax.set_xscale("log")
    for ax in axes[-1]:
        ax.set_xlabel("training steps")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    figure.supxlabel(
        f"± standard error over {metrics['seeds']} training seeds; dashed: the same "
        "rule with exact denoisers; grey in the first column: as many true samples",
        fontsize=6.2,
    )
    return {"figure": figure}


def _line(ax: Axes, x: Any, values: np.ndarray, **style: Any) -> None:
    """Mean and standard error over seeds of ``[steps, seeds]``."""
    error = values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    ax.errorbar(x, values.mean(axis=1), error, marker="o", ms=2.5, lw=1.0, **style)


def _draw_distance(ax: Axes, scale: str, metrics: Metrics, data: Arrays) -> None:
    result = metrics["scales"][scale]
    for name in RULES:
        colour = _COLOURS[name]
        values = data[f"{scale}/{name}"]
        _line(ax, data["steps"], values, color=colour, label=_TITLES[name])
        exact = result["exact"][name]["sliced_w2"]["mean"]
        ax.axhline(exact, color=colour, lw=0.6, ls="--")
    ax.axhline(metrics["floor"]["sliced_w2"]["mean"], color=TRUTH, lw=1.5)
    ax.set_yscale("log")
    ax.set(ylabel=f"scale {scale}\nsliced W2 to p(x | label)", title="distance")


def _draw_change(ax: Axes, scale: str, metrics: Metrics) -> None:
    paired = metrics["scales"][scale]["paired"]
    exact = metrics["scales"][scale]["exact"]
    steps = metrics["steps"]
    ax.axhline(0.0, color="black", lw=0.6)
    for name in ("optimised", "zero", "both"):
        values = np.array([paired[f"{s}/{name}"]["seeds"] for s in steps])
        _line(ax, steps, values, color=_COLOURS[name])
        change = exact[name]["sliced_w2"]["mean"] - exact["cfg"]["sliced_w2"]["mean"]
        ax.axhline(change, color=_COLOURS[name], lw=0.6, ls="--")
    ax.set(ylabel="change of sliced W2 by the rule", title="against CFG, paired")


def _draw_velocity(ax: Axes, scale: str, data: Arrays) -> None:
    _line(
        ax,
        data["steps"],
        data[f"{scale}/velocity_error"],
        color=COLOURS["cfg"],
        label="error under CFG",
    )
    _line(
        ax,
        data["steps"],
        data[f"{scale}/velocity_class_error"],
        color="black",
        label="error without guidance",
    )
    norm = data[f"{scale}/velocity_norm"].mean()
    ax.axhline(norm, color=TRUTH, lw=1.5, label="norm of the truth under CFG")
    ax.set_ylim(0.0, 1.6 * ax.get_ylim()[1])
    ax.set(ylabel="root mean square", title="velocity at the first step")
    ax.legend(loc="upper right", fontsize=6.2)


def summarise(metrics: Metrics) -> list[str]:
    """Paired changes, first velocities, exact rows."""
    lines = [
        f"true samples: sliced W2 {plus_minus(metrics['floor']['sliced_w2'])}, "
        f"Jensen-Shannon {plus_minus(metrics['floor']['jensen_shannon'])}"
    ]
    for scale, result in metrics["scales"].items():
        exact = ", ".join(
            f"{_TITLES[n]} {result['exact'][n]['sliced_w2']['mean']:.3f}" for n in RULES
        )
        lines.append(f"scale {scale}, exact: sliced W2 {exact}")
        for step in metrics["steps"]:
            row = result[str(step)]
            velocity = row["first_velocity"]
            changes = ", ".join(
                f"{_TITLES[n]} {plus_minus(result['paired'][f'{step}/{n}'])}"
                for n in ("optimised", "zero", "both")
            )
            distance = plus_minus(row["cfg"]["sliced_w2"])
            lines.append(
                f"scale {scale}, {step} steps: CFG {distance}; change by {changes}; "
                f"first velocity off by {velocity['error']['mean']:.2f} of "
                f"{velocity['norm']['mean']:.2f}"
            )
    return lines


EXPERIMENT = Experiment(
    "cfg_zero_toy",
    "CFG-Zero* against CFG over the length of training, on a rectified flow",
    CFGZeroToyConfig,
    compute,
    draw,
    summarise,
)
