"""CFG-Zero* against CFG over the length of training, on a two-dimensional mixture.

Fig. 3 of Fan et al. 2025 (arXiv 2503.18886) shows, for a mixture of Gaussians in the
plane, the Jensen-Shannon divergence of the samples against training, and the error of
the guided velocity at the first step and the norm of the true one: as long as the
error is the larger, a zero velocity is the better prediction. Neither the mixture nor
the network is published. Here: four unit Gaussians, the snapshots of one run per seed,
and the rule's two parts apart, the optimized scale and the zero first step.

Levels and solver are those of a rectified flow (even times, Euler). The network is
trained with EDM's loss at levels whose logarithm is normal with the standard deviation
of a logistic variable, the distribution of ``ln sigma`` for even times.
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
from scipy.spatial.distance import jensenshannon

import gmm_guidance as gg
from gmm_guidance.guidance.updates import velocity_of
from toy_experiments.common.experiment import Config, Experiment, check_at_least
from toy_experiments.common.mixtures import balanced_labels, make_mixture
from toy_experiments.common.networks import trained
from toy_experiments.common.records import (
    Metrics,
    Record,
    Tables,
    over_seeds,
    paired_change,
    plus_minus,
    select,
    single,
)
from toy_experiments.common.rules import RULE_COLORS, RULE_TITLES, make_rule
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.style import COLORS, PAGE_WIDTH, TRUTH, draw_measurements

RULES = ("unguided", "cfg", "optimized", "zero", "cfg_zero")
_VARIANTS = ("optimized", "zero", "cfg_zero")  # compared with CFG
_BINS = np.linspace(-10.0, 10.0, 41)  # for the Jensen-Shannon divergence
_LOGISTIC_STD = math.pi / math.sqrt(3.0)


@dataclasses.dataclass(frozen=True)
class CFGZeroToyConfig(Config):
    """Configuration of ``cfg_zero_toy``.

    Attributes:
        num_steps: Euler steps.
        steps: training lengths, ascending.
        t_max: first time of the flow, in (0, 1).
        scales: total CFG scales; 1 = off. The figure shows the first two.
        zero_steps: first steps of zero velocity (their code has 1).
        std: standard deviation of each mode; the modes lie at (+-4, +-4), a class each.
        width: features of the network.
        num_blocks: residual blocks.
        batch_size: samples in a training step.
    """

    num_samples: int = 2048
    num_steps: int = 50
    steps: tuple[int, ...] = (10, 50, 100, 200, 500, 1000, 3000)
    t_max: float = 0.999
    scales: tuple[float, ...] = (2.0, 4.0)
    zero_steps: int = 1
    std: float = 1.0
    width: int = 32
    num_blocks: int = 8
    batch_size: int = 256

    QUICK = Config.QUICK | {
        "steps": (10, 50, 200, 500),
        "num_samples": 1024,
        "scales": (2.0,),
    }

    def __post_init__(self):
        super().__post_init__()
        if not self.std > 0:
            raise ValueError(f"std must be > 0, got {self.std}.")
        if not self.scales or 1.0 in self.scales:
            raise ValueError(
                f"scales must be at least one and none of them 1, got {self.scales}."
            )
        check_at_least(1, zero_steps=self.zero_steps)
        if self.zero_steps >= self.num_steps:
            raise ValueError(
                f"zero_steps must be below num_steps={self.num_steps}, got "
                f"{self.zero_steps}."
            )
        self.schedule()
        self.training(1.0)

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
        """The rule of a name."""
        return make_rule(name, scale, zero_steps=self.zero_steps)


def compute(config: CFGZeroToyConfig, store: Store) -> tuple[Tables, Arrays]:
    """Distances and first velocities of each rule, length and scale.

    Exact denoisers have the training length ``None``.
    """
    mixture = make_mixture("four_corners", config.std)
    training = config.training(float(mixture.scale))
    run = trained(store, mixture, training, config.seeds)
    tables: Tables = {"samples": [], "velocity": [], "floor": [_floor(config, mixture)]}
    cases = [(s, steps) for s in config.scales for steps in (None, *config.steps)]
    with store.reporter.task("cfg_zero_toy", len(cases)) as task:
        for scale, steps in cases:
            place = {"scale": scale, "steps": steps}
            # The bare network: one compilation for all training lengths.
            models = [
                gg.ExactDenoiser(mixture)
                if steps is None
                else run.denoiser(seed, steps).network
                for seed in range(config.seeds)
            ]
            found: dict[str, Record] = {}
            for rule in RULES:
                distances = [
                    store.cell(
                        flow_distances,
                        mixture,
                        model,
                        config.rule(rule, scale),
                        config.schedule(),
                        config.num_samples,
                        seed,
                    )
                    for seed, model in enumerate(models)
                ]
                found[rule] = place | {"rule": rule} | over_seeds(distances)
                if rule in _VARIANTS:
                    # Of sliced W2, with the same network and noise.
                    change = paired_change(found[rule], found["cfg"], "sliced_w2")
                    found[rule]["minus_cfg"] = change
                tables["samples"].append(found[rule])
            velocities = [
                _first_velocity(config, mixture, model, seed, scale)
                for seed, model in enumerate(models)
            ]
            tables["velocity"].append(place | over_seeds(velocities))
            task.advance(detail=f"scale {scale:g}, {_title(steps)}")
    return tables, {}


def _title(steps: int | None) -> str:
    return "exact" if steps is None else f"{steps} steps"


def _floor(config: CFGZeroToyConfig, mixture: gg.GaussianMixture) -> Record:
    """The same numbers of true samples."""
    labels = balanced_labels(mixture, config.num_samples)
    values = []
    for key in jax.random.split(jax.random.key(70), config.seeds):
        x, _ = mixture.sample(key, config.num_samples, labels)
        values.append(_measure(np.asarray(x), labels, mixture))
    return over_seeds(values)


def flow_distances(
    context: Context,
    mixture: gg.GaussianMixture,
    denoiser: Any,
    rule: gg.GuidanceRule,
    schedule: gg.FlowSteps,
    num_samples: int,
    seed: int,
) -> dict[str, Any]:
    """Sample all classes in turn and measure."""
    labels = balanced_labels(mixture, num_samples)
    samples = gg.guided_sample(
        jax.random.key(6000 + seed),
        denoiser,
        labels,
        num_samples=num_samples,
        guidance=rule,
        schedule=schedule,
        solver="euler",
        initial=_start(mixture, schedule, num_samples, seed),
    )
    return _measure(np.asarray(samples), labels, mixture)


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
    return float(jensenshannon(found, true) ** 2)


def _start(
    mixture: gg.GaussianMixture, schedule: gg.FlowSteps, num_samples: int, seed: int
) -> jax.Array:
    noise = jax.random.normal(jax.random.key(6500 + seed), (num_samples, mixture.dim))
    return float(schedule.sigmas()[0]) * noise


def _first_velocity(
    config: CFGZeroToyConfig,
    mixture: gg.GaussianMixture,
    denoiser: Any,
    seed: int,
    scale: float,
) -> dict[str, float]:
    """Root mean square error of the first guided velocity, and its true norm."""
    x = _start(mixture, config.schedule(), config.num_samples, seed)
    sigma = jnp.asarray(config.schedule().sigmas()[0], x.dtype)
    labels = jnp.asarray(balanced_labels(mixture, config.num_samples))
    process = gg.RectifiedFlow()

    def velocities(model):
        class_, none = (
            velocity_of(process, model(x, sigma, label), x, sigma)
            for label in (labels, jnp.full_like(labels, mixture.num_labels))
        )
        return np.asarray(class_), np.asarray(none + scale * (class_ - none))

    def rms(v):
        return float(np.sqrt(np.mean(np.sum(v.astype(np.float64) ** 2, axis=1))))

    true_class, true_guided = velocities(gg.ExactDenoiser(mixture))
    class_, guided = velocities(denoiser)
    return {
        "error": rms(guided - true_guided),
        "norm": rms(true_guided),
        "class_error": rms(class_ - true_class),
    }


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """A row for each scale: distance, its change, and the first velocity."""
    scales = metrics["config"]["scales"][:2]
    steps = metrics["config"]["steps"]
    figure, axes = plt.subplots(
        len(scales),
        3,
        figsize=(PAGE_WIDTH, 0.55 + 2.25 * len(scales)),
        sharex=True,
        squeeze=False,
    )
    floor = metrics["tables"]["floor"][0]["sliced_w2"]["mean"]
    for row, scale in zip(axes, scales, strict=True):
        row[1].axhline(0.0, color="black", lw=0.6)
        for rule in RULES:
            exact, *records = select(metrics, "samples", scale=scale, rule=rule)
            for ax, field in ((row[0], "sliced_w2"), (row[1], "minus_cfg")):
                if field in exact:
                    entries = [r[field] for r in records]
                    _line(ax, steps, entries, RULE_COLORS[rule], RULE_TITLES[rule])
                    mean = exact[field]["mean"]
                    ax.axhline(mean, color=RULE_COLORS[rule], lw=0.6, ls="--")
        row[0].axhline(floor, color=TRUTH, lw=1.5)
        row[0].set_yscale("log")
        row[0].set(ylabel=f"scale {scale:g}\nsliced W2 to p(x | label)")
        row[0].set_title("distance")
        row[1].set(ylabel="change of sliced W2 by the rule")
        row[1].set_title("against CFG, paired")
        _draw_velocity(row[2], steps, select(metrics, "velocity", scale=scale)[1:])
        for ax in row:
            ax.set_xscale("log")
    for ax in axes[-1]:
        ax.set_xlabel("training steps")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    figure.supxlabel(
        f"± standard error over {metrics['seeds']} training seeds; dashed: the same "
        "rule with exact denoisers; gray in the first column: as many true samples",
        fontsize=6.2,
    )
    return {"figure": figure}


def _line(
    ax: Axes, steps: list[int], entries: list[Record], color: str, label: str
) -> None:
    style = {"color": color, "label": label, "marker": "o", "ms": 2.5, "lw": 1.0}
    draw_measurements(ax, steps, entries, **style)


def _draw_velocity(ax: Axes, steps: list[int], records: list[Record]) -> None:
    _line(ax, steps, [r["error"] for r in records], COLORS["cfg"], "error under CFG")
    errors = [r["class_error"] for r in records]
    _line(ax, steps, errors, "black", "error without guidance")
    norm = float(np.mean([r["norm"]["mean"] for r in records]))
    ax.axhline(norm, color=TRUTH, lw=1.5, label="norm of the truth under CFG")
    ax.set_ylim(0.0, 1.6 * ax.get_ylim()[1])
    ax.set(ylabel="root mean square", title="velocity at the first step")
    ax.legend(loc="upper right", fontsize=6.2)


def summarize(metrics: Metrics) -> list[str]:
    """Paired changes, first velocities, exact rows."""
    floor = metrics["tables"]["floor"][0]
    lines = [
        f"true samples: sliced W2 {plus_minus(floor['sliced_w2'])}, "
        f"Jensen-Shannon {plus_minus(floor['jensen_shannon'])}"
    ]
    for velocity in metrics["tables"]["velocity"]:
        place = {"scale": velocity["scale"], "steps": velocity["steps"]}
        found = {rule: single(metrics, "samples", rule=rule, **place) for rule in RULES}
        name = f"scale {place['scale']:g}, {_title(place['steps'])}"
        if place["steps"] is None:
            exact = ", ".join(
                f"{RULE_TITLES[n]} {found[n]['sliced_w2']['mean']:.3f}" for n in RULES
            )
            lines.append(f"{name}: sliced W2 {exact}")
            continue
        changes = ", ".join(
            f"{RULE_TITLES[n]} {plus_minus(found[n]['minus_cfg'])}" for n in _VARIANTS
        )
        lines.append(
            f"{name}: CFG {plus_minus(found['cfg']['sliced_w2'])}; change by "
            f"{changes}; first velocity off by {velocity['error']['mean']:.2f} of "
            f"{velocity['norm']['mean']:.2f}"
        )
    return lines


EXPERIMENT = Experiment(
    "cfg_zero_toy",
    "related",
    "CFG-Zero* against CFG over the length of training, on a rectified flow",
    CFGZeroToyConfig,
    compute,
    draw,
    summarize,
)
