"""The branching mixture of AutoGuidance, with numbers: what rules gain and lose.

The toy of Karras et al. 2024 (arXiv 2406.02507), whose figure has no numbers: class A
of two tree-like mixtures, networks trained on exact denoisers, CFG at 4 and
AutoGuidance at 3. S² is added, and CFG with exact denoisers, which
separates the effect of the rule from that of the network.

Set-up as theirs, but for the network (a class-conditional ``BlockMLP`` with label
dropout in place of one network for each set of classes, so that CFG's unconditional
network is the same one) and the length of training (batch 512 in place of 4,096, and
fewer steps). Their depth, components, noise levels in training, sampler and scales.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.spatial import cKDTree

import gmm_guidance as gg
from toy_experiments.common.experiment import Config, Experiment
from toy_experiments.common.networks import trained
from toy_experiments.common.records import (
    Metrics,
    Record,
    Tables,
    over_seeds,
    plus_minus,
    single,
)
from toy_experiments.common.rules import RULE_COLORS, RULE_TITLES, make_rule
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.style import PAGE_WIDTH, TRUTH

TRAINED_RULES = ("unguided", "cfg", "autoguidance", "s2_alone", "s2")
#: Panels of the figure: denoiser and rule. As many true samples are the floor.
PANELS = (
    ("truth", "truth"),
    ("exact", "unguided"),
    ("exact", "cfg"),
    *(("trained", rule) for rule in TRAINED_RULES),
)
_LABEL = 0  # class A
_PER_BRANCH = 8
_LOG_SIGMA = (-2.3, 1.5)  # of their training: mean and standard deviation
_PATHS = 40  # drawn


@dataclasses.dataclass(frozen=True)
class AutoguidanceToyConfig(Config):
    """Configuration of ``autoguidance_toy``.

    Attributes:
        num_steps: steps of the sampler (Heun).
        depth: levels of branching of each tree (7 in the publication).
        sigma_min: lowest noise level.
        sigma_max: highest noise level, at which true samples are noised to start.
        train_steps: training steps of the network.
        weak_steps: training steps of AutoGuidance's weak model (an eighth, as
            published).
        width: features of the network.
        weak_width: features of the weak model (half, as published).
        num_blocks: residual blocks of the network.
        weak_blocks: residual blocks of the weak model.
        batch_size: samples in a training step.
        cfg_scale: total CFG scale; 1 = off.
        autoguidance_scale: total scale; 1 = off.
        s2_scale: the paper's omega; 0 = off.
    """

    seeds: int = 3
    num_samples: int = 2000
    depth: int = 7
    sigma_min: float = 0.002
    sigma_max: float = 5.0
    train_steps: int = 2400
    weak_steps: int = 300
    width: int = 64
    weak_width: int = 32
    num_blocks: int = 8
    weak_blocks: int = 4
    batch_size: int = 512
    cfg_scale: float = 4.0
    autoguidance_scale: float = 3.0
    s2_scale: float = 0.25

    QUICK = Config.QUICK | {
        "depth": 4,
        "num_samples": 500,
        "num_steps": 16,
        "train_steps": 250,
        "weak_steps": 30,
        "width": 32,
        "weak_width": 16,
        "batch_size": 256,
    }

    def __post_init__(self):
        super().__post_init__()
        self.schedule()

    def schedule(self) -> gg.Karras:
        """The noise levels."""
        return gg.Karras(self.num_steps, self.sigma_min, self.sigma_max)

    def mixture(self) -> gg.GaussianMixture:
        """Both trees."""
        return gg.presets.tree(self.depth, _PER_BRANCH)

    def training(self, weak: bool) -> gg.TrainingConfig:
        """The network, or the weak one: on exact denoisers, at their noise levels."""
        scale = float(self.mixture().scale)
        return gg.TrainingConfig(
            snapshots=(self.weak_steps if weak else self.train_steps,),
            batch_size=self.batch_size,
            width=self.weak_width if weak else self.width,
            num_blocks=self.weak_blocks if weak else self.num_blocks,
            target="exact",
            log_sigma_offset=_LOG_SIGMA[0] - float(np.log(scale)),
            log_sigma_std=_LOG_SIGMA[1],
        )

    def rule(self, name: str, weak_model: Any = None) -> gg.GuidanceRule:
        """The rule of a name; the weak model is AutoGuidance's."""
        is_auto = name == "autoguidance"
        scale = self.autoguidance_scale if is_auto else self.cfg_scale
        return make_rule(name, scale, self.s2_scale, weak_model=weak_model)


def compute(config: AutoguidanceToyConfig, store: Store) -> tuple[Tables, Arrays]:
    """Samples and numbers of each rule, with exact denoisers and with networks."""
    mixture = config.mixture()
    main, weak = (
        trained(store, mixture, config.training(is_weak), config.seeds)
        for is_weak in (False, True)
    )
    judge = _Judge(config, mixture)
    tables: Tables = {"samples": []}
    data: Arrays = {}
    with store.reporter.task("autoguidance_toy", len(PANELS)) as task:
        for network, name in PANELS:
            values = []
            for seed in range(config.seeds):
                if network == "truth":  # against others: of a perfect sampler
                    cell = {"samples": judge.truth(100 + seed)}
                else:
                    is_exact = network == "exact"
                    cell = store.cell(
                        draw_samples,
                        mixture,
                        gg.ExactDenoiser(mixture) if is_exact else main.denoiser(seed),
                        config.rule(name, None if is_exact else weak.denoiser(seed)),
                        config.schedule(),
                        config.num_samples,
                        seed,
                    )
                values.append(judge(cell["samples"], seed))
                if seed == 0:
                    for key, array in cell.items():
                        data[f"{network}/{name}/{key}"] = array.astype(np.float32)
            place = {"network": network, "rule": name}
            tables["samples"].append(place | over_seeds(values))
            task.advance(detail=f"{network}, {name}")
    data["truth"] = judge.truth(0).astype(np.float32)
    return tables, data


class _Judge:
    """Measures samples of class A against fresh true ones."""

    def __init__(self, config: AutoguidanceToyConfig, mixture: gg.GaussianMixture):
        self._count = config.num_samples
        self._mixture = mixture
        weights = np.asarray(mixture.condition(_LABEL).weights, np.float64)
        self._masses = weights.reshape(-1, _PER_BRANCH).sum(1)
        x, _ = mixture.sample(jax.random.key(50), 20_000, _LABEL)
        self._threshold = float(np.quantile(self._log_density(x), 0.01))

    def truth(self, number: int) -> np.ndarray:
        """True samples, independent for each number."""
        key = jax.random.key(4000 + number)
        return np.asarray(self._mixture.sample(key, self._count, _LABEL)[0])

    def __call__(self, samples: np.ndarray, seed: int) -> dict[str, float]:
        log_density = self._log_density(samples)
        part = self._mixture.condition(_LABEL)
        fractions = np.asarray(part.responsibilities(samples), np.float64).mean(0)
        fractions = fractions.reshape(-1, _PER_BRANCH).sum(1)
        return {
            **_distances(samples, self.truth(seed)),
            "nll_median": float(-np.median(log_density)),
            "nll_p99": float(-np.quantile(log_density, 0.01)),
            "outside": float(np.mean(log_density < self._threshold)),
            "branch_variation": float(0.5 * np.abs(fractions - self._masses).sum()),
        }

    def _log_density(self, x: Any) -> np.ndarray:
        return np.asarray(self._mixture.log_prob(x, label=_LABEL), np.float64)


def _distances(samples: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Distances between samples and as many true ones."""
    nearest, _ = cKDTree(samples).query(truth)
    return {
        "w2": gg.metrics.wasserstein_2(samples, truth),
        "sliced_w2": gg.metrics.sliced_wasserstein(samples, truth),
        "energy_distance": gg.metrics.energy_distance(samples, truth),
        # From a true sample to the nearest one: large if samples miss a branch.
        "coverage_distance": float(np.mean(nearest)),
    }


def draw_samples(
    context: Context,
    mixture: gg.GaussianMixture,
    denoiser: Any,
    rule: gg.GuidanceRule,
    schedule: gg.Karras,
    num_samples: int,
    seed: int,
) -> Arrays:
    """Samples of a rule, ``[n, 2]``, and the first paths, ``[steps + 1, paths, 2]``."""
    data_key, noise_key, mask_key = jax.random.split(jax.random.key(5000 + seed), 3)
    clean, _ = mixture.sample(data_key, num_samples, _LABEL)
    noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
    samples, path = gg.guided_sample(
        mask_key,
        denoiser,
        _LABEL,
        num_samples=num_samples,
        guidance=rule,
        schedule=schedule,
        initial=clean + schedule.sigma_max * noise,
        trajectory=True,
    )
    return {"samples": np.asarray(samples), "path": np.asarray(path)[:, :_PATHS]}


def _look(network: str, rule: str) -> tuple[str, str]:
    """Title and color of a panel."""
    if network == "truth":
        return "truth", TRUTH
    title = {"s2": "S² on CFG"}.get(rule, RULE_TITLES[rule])
    return ("exact, " if network == "exact" else "") + title, RULE_COLORS[rule]


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Samples of each rule over the truth; and paths of the networks' rules."""
    return {"figure": _draw_samples(metrics, data), "figure_paths": _draw_paths(data)}


def _draw_samples(metrics: Metrics, data: Arrays) -> Figure:
    figure, axes = plt.subplots(
        2, 4, figsize=(PAGE_WIDTH, 5.4), sharex=True, sharey=True
    )
    for ax, (network, rule) in zip(axes.flat, PANELS, strict=True):
        title, color = _look(network, rule)
        _frame(ax, data, title, color)
        if network != "truth":
            samples = data[f"{network}/{rule}/samples"]
            ax.plot(*samples.T, ".", color=color, ms=1.5, alpha=0.9, mew=0)
        record = single(metrics, "samples", network=network, rule=rule)
        ax.set_xlabel(
            f"sliced W2 {plus_minus(record['sliced_w2'])}\n"
            f"outside {plus_minus(record['outside'])}\n"
            f"branch mass {plus_minus(record['branch_variation'], 2)}",
            fontsize=6.2,
        )
    figure.supxlabel(
        "gray: true samples of class A. Outside: fraction below the density that 1 % "
        "of true samples fall below; branch mass: total variation over branches;\n"
        f"± standard error over {metrics['seeds']} training seeds. Upper left: as many "
        "true samples, the floor",
        fontsize=6.2,
    )
    return figure


def _draw_paths(data: Arrays) -> Figure:
    figure, axes = plt.subplots(
        1, len(TRAINED_RULES), figsize=(PAGE_WIDTH, 1.75), sharex=True, sharey=True
    )
    for ax, rule in zip(axes.flat, TRAINED_RULES, strict=True):
        title, color = _look("trained", rule)
        _frame(ax, data, title, color)
        path = data[f"trained/{rule}/path"]
        ax.plot(path[..., 0], path[..., 1], color=color, lw=0.35, alpha=0.8)
        ax.plot(*path[-1].T, ".", color=color, ms=2.5, mew=0)
    return figure


def _frame(ax: Axes, data: Arrays, title: str, color: str) -> None:
    truth = data["truth"]
    # Dark and large enough to show around and beneath the samples.
    ax.plot(*truth.T, ".", color="#808080", ms=3.2, mew=0, rasterized=True)
    ax.set_title(title, color=color if color != TRUTH else "black")
    low, high = np.quantile(truth, [0.0, 1.0])
    margin = 0.08 * (high - low)
    limits = (low - margin, high + margin)
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    ax.set_xticks([0.0, 0.5, 1.0])
    ax.set_yticks([0.0, 0.5, 1.0])


def summarize(metrics: Metrics) -> list[str]:
    """Every number of each panel."""

    def line(record: Record) -> str:
        title, _ = _look(record["network"], record["rule"])
        if record["network"] == "truth":
            title = "true samples (floor)"
        return (
            f"{title}: sliced W2 {plus_minus(record['sliced_w2'])}, W2 "
            f"{plus_minus(record['w2'])}, energy distance "
            f"{plus_minus(record['energy_distance'], 4)}, branch mass "
            f"{plus_minus(record['branch_variation'])}, outside "
            f"{plus_minus(record['outside'])}, NLL median "
            f"{plus_minus(record['nll_median'], 2)} and 99 % "
            f"{plus_minus(record['nll_p99'], 1)}, coverage "
            f"{plus_minus(record['coverage_distance'], 4)}"
        )

    return [line(record) for record in metrics["tables"]["samples"]]


EXPERIMENT = Experiment(
    "autoguidance_toy",
    "related",
    "the tree of AutoGuidance with numbers: CFG, AutoGuidance, S² and exact CFG",
    AutoguidanceToyConfig,
    compute,
    draw,
    summarize,
)
