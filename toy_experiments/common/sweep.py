"""Rules measured on trained networks, many settings in one compiled program.

The same cells serve every experiment that compares with a grid search.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

import gmm_guidance as gg
from toy_experiments.common.experiment import Config
from toy_experiments.common.mixtures import (
    MixtureName,
    balanced_start,
    make_mixture,
    relative_schedule,
)
from toy_experiments.common.networks import Budgets, trained
from toy_experiments.common.rules import make_rule
from toy_experiments.common.store import Arrays, Context, Store

METRICS = ("distance", "nll_median", "nll_p99", "outside", "shift", "width")
METRIC_TITLES = {
    "distance": "W2",
    "nll_median": "median NLL",
    "nll_p99": "99 % NLL",
    "outside": "outliers",
    "shift": "shift / std",
    "width": "width ratio",
}
DISTANCE = METRICS.index("distance")
_TRUE_SAMPLES = 1 << 17  # of a class


@dataclasses.dataclass(frozen=True)
class AnalysisConfig(Config):
    """Base configuration of the analysis experiments.

    Attributes:
        num_steps: steps of the sampler (DPM-Solver++(2M)).
        budgets: training lengths and network; the same networks in all of them.
    """

    num_samples: int = 1024
    num_steps: int = 24
    budgets: Budgets = Budgets()

    QUICK: ClassVar[dict[str, Any]] = Config.QUICK | {
        "num_samples": 256,
        "num_steps": 16,
        "budgets": Budgets(steps=(50, 300), batch_size=256),
    }

    def networks(
        self, store: Store, mixture: MixtureName, **changes: Any
    ) -> gg.TrainingRun:
        """The networks of a mixture, with some fields of the training changed."""
        training = self.budgets.training(**changes)
        return trained(store, make_mixture(mixture), training, self.seeds)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The rules of a grid search.

    Attributes:
        scales: total CFG scales; 1 = off.
        s2_scales: the paper's omega; 0 = off (CFG).
    """

    scales: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 4.0)
    s2_scales: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 1.0)

    def __post_init__(self):
        if 0.0 not in self.s2_scales or min(self.scales) < 0:
            raise ValueError(
                f"s2_scales must contain 0 (CFG) and scales must be >= 0, got "
                f"{self.s2_scales} and {self.scales}."
            )

    @property
    def zero(self) -> int:
        """The index of CFG among ``s2_scales``."""
        return self.s2_scales.index(0.0)

    @property
    def omegas(self) -> tuple[float, ...]:
        """``s2_scales`` without 0."""
        return tuple(w for w in self.s2_scales if w)

    def rules(self) -> list[gg.GuidanceRule]:
        """S² in the paper's window, CFG at omega 0; the scale varies slowest."""
        return [
            make_rule("s2" if w else "cfg", s, w)
            for s in self.scales
            for w in self.s2_scales
        ]


def measure_grid(
    store: Store,
    mixture: MixtureName,
    denoiser: Any,
    grid: Grid,
    config: Config,
    seed: int,
) -> np.ndarray:
    """Metrics of one denoiser under each rule, ``[scales, s2_scales, metric]``."""
    values = measure_rules(
        store,
        mixture,
        denoiser,
        grid.rules(),
        config.num_samples,
        config.num_steps,
        seed,
    )
    return values.reshape(len(grid.scales), len(grid.s2_scales), len(METRICS))


def measure_rules(
    store: Store,
    mixture: MixtureName,
    denoiser: Any,
    rules: Sequence[gg.GuidanceRule],
    num_samples: int,
    num_steps: int,
    seed: int,
) -> np.ndarray:
    """``METRICS`` of one denoiser under each rule, ``[rules, metric]``; a stored cell.

    Args:
        store: where it is stored.
        mixture: the data.
        denoiser: what is sampled.
        rules: the guidance rules.
        num_samples: samples of each rule, all labels together; even.
        num_steps: steps of DPM-Solver++(2M), one evaluation each.
        seed: seed of noise and masks.
    """
    return store.cell(
        rule_metrics, mixture, denoiser, list(rules), num_samples, num_steps, seed
    )["metrics"]


def rule_metrics(
    context: Context,
    mixture: MixtureName,
    denoiser: Any,
    rules: list[gg.GuidanceRule],
    num_samples: int,
    num_steps: int,
    seed: int,
) -> Arrays:
    """Sample and measure each rule from the same noise."""
    schedule = relative_schedule(mixture, num_steps)
    labels, start = balanced_start(make_mixture(mixture), schedule, num_samples, seed)
    key = jax.random.key(1000 + seed)
    values = []
    for rule in rules:
        samples = draw_samples_of(
            denoiser, rule, schedule, key, labels, start, context.mesh
        )
        values.append(measure(mixture, samples, labels))
    return {"metrics": np.array(values)}


def draw_samples_of(
    denoiser: Any,
    rule: gg.GuidanceRule,
    schedule: Any,
    key: jax.Array,
    labels: np.ndarray,
    start: np.ndarray | None = None,
    mesh: Mesh | None = None,
    solver: str = "dpmpp_2m",
    trajectory: bool = False,
) -> np.ndarray:
    """Samples of given labels, ``[n, d]``.

    With ``trajectory`` the states at all noise levels, ``[steps + 1, n, d]``.
    """
    options: Any = {"initial": start, "trajectory": trajectory}
    result = gg.guided_sample(
        key,
        denoiser,
        labels,
        num_samples=len(labels),
        guidance=rule,
        schedule=schedule,
        solver=solver,
        mesh=mesh,
        **options,
    )
    return np.asarray(result[1] if trajectory else result)


def measure(name: MixtureName, samples: np.ndarray, labels: np.ndarray) -> list[float]:
    """``METRICS`` of samples, averaged over the labels where they are distances."""
    mixture = make_mixture(name)
    m = gg.metrics
    nll = m.negative_log_likelihood(samples, labels, mixture)
    distances = [
        _distance(name, samples[labels == c], c) for c in range(mixture.num_labels)
    ]
    classes = m.class_statistics(samples, labels, mixture)
    return [
        float(np.mean(distances)),
        nll.median,
        nll.p99,
        m.outside_fraction(samples, labels, mixture),
        float(np.mean(classes.outward_shift)),
        float(np.mean(classes.width_ratio)),
    ]


def _distance(name: MixtureName, own: np.ndarray, label: int) -> float:
    """(Sliced) W2 to the truth of a class, on the tree to its quantiles."""
    if name != "tree":  # in closed form
        return gg.metrics.sliced_wasserstein(own, make_mixture(name), label)
    table = _true_quantiles(name, label, len(own))
    sorted_own = np.sort(_DIRECTIONS @ own.T, axis=1)
    return float(np.sqrt(np.mean((sorted_own - table) ** 2)))


_ANGLES = np.pi * np.arange(64) / 64
_DIRECTIONS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


@functools.cache
def _true_quantiles(name: MixtureName, label: int, count: int) -> np.ndarray:
    """Quantiles of the truth along each direction, ``[64, count]``.

    Closed forms of the tree's 1,016 components along 64 directions would take longer
    than the sampling; the quantiles of many true samples have sampling noise that
    is the same for every rule and a tenth of that of the samples compared.
    """
    samples, _ = make_mixture(name).sample(jax.random.key(77), _TRUE_SAMPLES, label)
    levels = (np.arange(count) + 0.5) / count
    return np.quantile(_DIRECTIONS @ np.asarray(samples).T, levels, axis=1).T
