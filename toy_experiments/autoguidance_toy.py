"""The branching mixture of AutoGuidance, with numbers: what rules gain and lose.

The toy of Karras et al. 2024 (arXiv 2406.02507), whose figure has no numbers: class A
of two tree-like mixtures, networks trained on exact denoisers, CFG at 4 and
AutoGuidance at 3. Here S² stands beside them, and CFG with exact denoisers: what of the
picture is the rule's doing and what the network's.

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

import gmm_guidance as gg
from toy_experiments.common.experiment import (
    Experiment,
    Metrics,
    over_seeds,
    plus_minus,
)
from toy_experiments.common.laboratory import train_on
from toy_experiments.common.style import COLOURS, PAGE_WIDTH, TRUTH
from toy_experiments.common.workspace import Arrays, Workspace

PANELS = (  # name, title, colour
    ("truth", "truth", TRUTH),
    ("exact/unguided", "exact, no guidance", COLOURS["unguided"]),
    ("exact/cfg", "exact, CFG", COLOURS["cfg"]),
    ("unguided", "no guidance", COLOURS["unguided"]),
    ("cfg", "CFG", COLOURS["cfg"]),
    ("autoguidance", "AutoGuidance", COLOURS["autoguidance"]),
    ("s2_alone", "S² alone", COLOURS["naive_s2"]),
    ("s2", "S² on CFG", COLOURS["s2"]),
)
RULES = ("unguided", "cfg", "autoguidance", "s2_alone", "s2")
EXACT_RULES = ("unguided", "cfg")
_LABEL = 0  # class A
_PER_BRANCH = 8
_LOG_SIGMA = (-2.3, 1.5)  # of their training: mean and standard deviation
_PATHS = 40  # drawn


@dataclasses.dataclass(frozen=True)
class AutoguidanceToyConfig:
    """Configuration.

    Attributes:
        seeds: training seeds, at least 2.
        depth: levels of branching of each tree (7 in the publication).
        num_samples: samples of each rule and seed, at least 64.
        num_steps: steps of the sampler (Heun).
        sigma_min: lowest noise level.
        sigma_max: highest noise level, at which true samples are noised to start.
        train_steps: training steps of the network.
        weak_steps: of AutoGuidance's weak one (an eighth, as published).
        width: features of the network.
        weak_width: of the weak one (half, as published).
        num_blocks: residual blocks of the network.
        weak_blocks: of the weak one.
        batch_size: samples in a training step.
        cfg_scale: total CFG scale; 1 = off.
        autoguidance_scale: total scale; 1 = off.
        s2_scale: the paper's omega; 0 = off.
    """

    seeds: int = 3
    depth: int = 7
    num_samples: int = 2000
    num_steps: int = 32
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
        self.schedule()

    @classmethod
    def quick(cls) -> AutoguidanceToyConfig:
        """A smaller tree, two seeds, a short training."""
        return cls(
            seeds=2,
            depth=4,
            num_samples=500,
            num_steps=16,
            train_steps=250,
            weak_steps=30,
            width=32,
            weak_width=16,
            batch_size=256,
        )

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

    def rule(self, name: str, weak_model: Any) -> gg.GuidanceRule:
        """The rule of a name; the weak model is AutoGuidance's."""
        return {
            "unguided": gg.Unguided(),
            "cfg": gg.CFG(self.cfg_scale),
            "autoguidance": gg.AutoGuidance(weak_model, self.autoguidance_scale),
            "s2_alone": gg.S2Guidance(1.0, self.s2_scale),
            "s2": gg.S2Guidance(self.cfg_scale, self.s2_scale),
        }[name]


def compute(
    config: AutoguidanceToyConfig, workspace: Workspace
) -> tuple[Metrics, Arrays]:
    """Samples and numbers of each rule, with exact denoisers and with networks."""
    mixture = config.mixture()
    main, weak = (
        train_on(
            workspace,
            mixture,
            config.training(is_weak),
            config.seeds,
            identity={"tree": config.depth},
            title="the tree" + (", weak" if is_weak else ""),
        )
        for is_weak in (False, True)
    )
    judge = _Judge(config, mixture)
    metrics: Metrics = {"panels": {}}
    data: Arrays = {"truth": judge.truth(0).astype(np.float32)}
    total = (1 + len(RULES) + len(EXACT_RULES)) * config.seeds
    with workspace.reporter.task("autoguidance_toy", total) as task:
        # As many true samples, against others: what a perfect sampler would give.
        floor = []
        for seed in range(config.seeds):
            floor.append(judge(judge.truth(100 + seed), seed))
            task.advance(detail="floor")
        metrics["panels"]["truth"] = over_seeds(floor)
        for name in (*(f"exact/{n}" for n in EXACT_RULES), *RULES):
            values = []
            for seed in range(config.seeds):
                cell = _samples(config, workspace, mixture, main, weak, name, seed)
                values.append(judge(cell["samples"], seed))
                if seed == 0:
                    data[name] = cell["samples"].astype(np.float32)
                    data[f"{name}/path"] = cell["path"].astype(np.float32)
                task.advance(detail=name)
            metrics["panels"][name] = over_seeds(values)
    return metrics, data


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
        distances = gg.metrics.compare_to_samples(samples, self.truth(seed))
        log_density = self._log_density(samples)
        part = self._mixture.condition(_LABEL)
        shares = np.asarray(part.responsibilities(samples), np.float64).mean(0)
        shares = shares.reshape(-1, _PER_BRANCH).sum(1)
        return {
            **distances,
            "nll_median": float(-np.median(log_density)),
            "nll_p99": float(-np.quantile(log_density, 0.01)),
            "outside": float(np.mean(log_density < self._threshold)),
            "branch_variation": float(0.5 * np.abs(shares - self._masses).sum()),
        }

    def _log_density(self, x: Any) -> np.ndarray:
        return np.asarray(self._mixture.log_prob(x, label=_LABEL), np.float64)


def _samples(config, workspace, mixture, main, weak, name: str, seed: int) -> Arrays:
    """Samples of a rule, ``[n, 2]``, and the first paths, ``[steps + 1, paths, 2]``."""
    exact = name.startswith("exact/")
    weak_model = None if exact else weak.denoiser(seed)
    rule = config.rule(name.removeprefix("exact/"), weak_model)
    denoiser = gg.ExactDenoiser(mixture) if exact else main.denoiser(seed)
    data_key, noise_key, mask_key = jax.random.split(jax.random.key(5000 + seed), 3)

    def compute() -> Arrays:
        clean, _ = mixture.sample(data_key, config.num_samples, _LABEL)
        noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
        samples, path = gg.guided_sample(
            mask_key,
            denoiser,
            _LABEL,
            num_samples=config.num_samples,
            guidance=rule,
            schedule=config.schedule(),
            initial=clean + config.sigma_max * noise,
            trajectory=True,
        )
        return {"samples": np.asarray(samples), "path": np.asarray(path)[:, :_PATHS]}

    description = {
        "tree": config.depth,
        "rule": repr(config.rule(name.removeprefix("exact/"), "the weak one")),
        "networks": "exact"
        if exact
        else [repr(main.config), repr(weak.config), main.num_seeds],
        "seed": seed,
        "num_samples": config.num_samples,
        "schedule": repr(config.schedule()),
    }
    return workspace.cell("tree-samples", description, compute)


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Samples of each rule over the truth; and paths of the networks' rules."""
    return {"figure": _draw_samples(metrics, data), "figure_paths": _draw_paths(data)}


def _draw_samples(metrics: Metrics, data: Arrays) -> Figure:
    figure, axes = plt.subplots(
        2, 4, figsize=(PAGE_WIDTH, 5.4), sharex=True, sharey=True
    )
    for ax, (name, title, colour) in zip(axes.flat, PANELS, strict=True):
        _frame(ax, data, title, colour)
        if name != "truth":
            ax.plot(*data[name].T, ".", color=colour, ms=1.0, alpha=0.7, mew=0)
        panel = metrics["panels"][name]
        digits = {"sliced_w2": 3, "outside": 3, "branch_variation": 2}
        names = {"sliced_w2": "sliced W2", "outside": "outside"}
        names["branch_variation"] = "branch mass"
        ax.set_xlabel(
            "\n".join(
                f"{label} {plus_minus(panel[key], digits[key])}"
                for key, label in names.items()
            ),
            fontsize=6.2,
        )
    figure.supxlabel(
        "grey: true samples of class A. Outside: share below the density that 1 % of "
        "true samples fall below; branch mass: total variation over branches;\n"
        f"± standard error over {metrics['seeds']} training seeds. Upper left: as many "
        "true samples, the floor",
        fontsize=6.2,
    )
    return figure


def _draw_paths(data: Arrays) -> Figure:
    figure, axes = plt.subplots(
        1, len(RULES), figsize=(PAGE_WIDTH, 1.75), sharex=True, sharey=True
    )
    titles = {name: (title, colour) for name, title, colour in PANELS}
    for ax, name in zip(axes.flat, RULES, strict=True):
        title, colour = titles[name]
        _frame(ax, data, title, colour)
        path = data[f"{name}/path"]
        ax.plot(path[..., 0], path[..., 1], color=colour, lw=0.35, alpha=0.8)
        ax.plot(*path[-1].T, ".", color=colour, ms=2.5, mew=0)
    return figure


def _frame(ax: Axes, data: Arrays, title: str, colour: str) -> None:
    truth = data["truth"]
    ax.plot(*truth.T, ".", color=TRUTH, ms=0.9, alpha=0.6, mew=0, rasterized=True)
    ax.set_title(title, color=colour if colour != TRUTH else "black")
    low, high = np.quantile(truth, [0.0, 1.0])
    margin = 0.08 * (high - low)
    limits = (low - margin, high + margin)
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    ax.set_xticks([0.0, 0.5, 1.0])
    ax.set_yticks([0.0, 0.5, 1.0])


def summarise(metrics: Metrics) -> list[str]:
    """Every number of each panel."""
    lines = []
    for name, title, _ in PANELS:
        panel = metrics["panels"][name]
        title = "true samples (floor)" if name == "truth" else title
        lines.append(
            f"{title}: sliced W2 {plus_minus(panel['sliced_w2'])}, W2 "
            f"{plus_minus(panel['w2'])}, branch mass "
            f"{plus_minus(panel['branch_variation'])}, outside "
            f"{plus_minus(panel['outside'])}, NLL median "
            f"{plus_minus(panel['nll_median'], 2)} and 99 % "
            f"{plus_minus(panel['nll_p99'], 1)}, nearest-neighbour precision "
            f"{plus_minus(panel['nn_precision'], 4)}, recall "
            f"{plus_minus(panel['nn_recall'], 4)}"
        )
    return lines


EXPERIMENT = Experiment(
    "autoguidance_toy",
    "the tree of AutoGuidance with numbers: CFG, AutoGuidance, S² and exact CFG",
    AutoguidanceToyConfig,
    compute,
    draw,
    summarise,
)
