"""S²-Guidance over a grid of scales, for each snapshot of a training run.

The same cells serve every experiment that compares with a grid search.
"""

from __future__ import annotations

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import gmm_guidance as gg
from gmm_guidance._runtime.pytree import join, split
from toy_experiments.common.toys import ToyName, make_toy, toy_schedule, toy_start
from toy_experiments.common.workspace import Arrays, Workspace

METRICS = ("distance", "nll_median", "nll_p99", "outside", "shift", "width")
METRIC_TITLES = {
    "distance": "W2",
    "nll_median": "median NLL",
    "nll_p99": "99 % NLL",
    "outside": "outliers",
    "shift": "shift / std",
    "width": "width ratio",
}
_TRUE_SAMPLES = 1 << 17  # of a class


@dataclasses.dataclass(frozen=True)
class Grid:
    """The rules of a sweep and how they are sampled.

    Attributes:
        scales: total CFG scales; 1 = off.
        s2_scales: the paper's omega; 0 = off (CFG).
        num_samples: samples of each rule, all labels together; even.
        num_steps: steps of DPM-Solver++(2M), one evaluation each.
    """

    scales: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 4.0)
    s2_scales: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 1.0)
    num_samples: int = 2048
    num_steps: int = 24

    def __post_init__(self):
        if 0.0 not in self.s2_scales or min(self.scales) < 0:
            raise ValueError(
                f"s2_scales must contain 0 (CFG) and scales must be >= 0, got "
                f"{self.s2_scales} and {self.scales}."
            )

    def rule(self, scale: float, s2_scale: float) -> gg.GuidanceRule:
        """S² in the paper's window, CFG at omega 0."""
        if s2_scale == 0.0:
            return gg.CFG(scale)
        return gg.S2Guidance(scale, s2_scale)

    @property
    def zero(self) -> int:
        """Where CFG stands among ``s2_scales``."""
        return self.s2_scales.index(0.0)


def sweep_cell(
    workspace: Workspace,
    toy: ToyName,
    run: gg.TrainingRun | None,
    step: int,
    seed: int,
    grid: Grid,
) -> np.ndarray:
    """Metrics of one network under each rule, ``[scales, s2_scales, metric]``.

    Without a run those of the exact denoiser, for which S² is CFG: ``[scales, 1, m]``.
    """
    rules = [
        [grid.rule(s, w) for w in (grid.s2_scales if run is not None else (0.0,))]
        for s in grid.scales
    ]

    def compute() -> Arrays:
        network: Any = gg.ExactDenoiser(make_toy(toy))
        if run is not None:
            network = run.denoiser(seed, step).network
        values = [
            [
                measure_rule(toy, network, rule, grid, seed, mesh=workspace.mesh)
                for rule in row
            ]
            for row in rules
        ]
        return {"metrics": np.array(values)}

    description = {
        "toy": toy,
        "training": None if run is None else repr(run.config),
        "seeds": None if run is None else run.num_seeds,
        "step": step,
        "seed": seed,
        "grid": repr(grid),
    }
    return workspace.cell("sweep", description, compute)["metrics"]


def measure_rule(
    toy: ToyName,
    denoiser: Any,
    rule: gg.GuidanceRule,
    grid: Grid,
    seed: int,
    num_steps: int | None = None,
    mesh: Mesh | None = None,
) -> list[float]:
    """Sample one rule and measure it: the values of ``METRICS``."""
    schedule = toy_schedule(toy, num_steps or grid.num_steps)
    labels, start = toy_start(toy, schedule, grid.num_samples, seed)
    key = jax.random.key(1000 + seed)
    samples = sample_traced(denoiser, rule, schedule, key, labels, start, mesh)
    return measure(toy, samples, labels)


def sample_traced(
    denoiser: Any,
    rule: gg.GuidanceRule,
    schedule: gg.Karras,
    key: jax.Array,
    labels: np.ndarray,
    start: np.ndarray,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Samples from given noise; one program for all numbers of a kind of rule.

    Scales are traced, so that none is known to be off: that costs passes, but fewer
    seconds than a compilation for each pattern of zeros.
    """
    arrays, static = split((denoiser, rule))
    return np.asarray(_sample(static, schedule, mesh, arrays, key, labels, start))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sample(static, schedule, mesh, arrays, key, labels, start) -> jax.Array:
    denoiser, rule = join(arrays, static)
    return gg.guided_sample(
        key,
        denoiser,
        labels,
        num_samples=len(labels),
        guidance=rule,
        schedule=schedule,
        solver="dpmpp_2m",
        initial=start,
        mesh=mesh,
    )


def measure(toy: ToyName, samples: np.ndarray, labels: np.ndarray) -> list[float]:
    """``METRICS`` of samples, averaged over the labels where they are distances."""
    mixture = make_toy(toy)
    m = gg.metrics
    nll = m.negative_log_likelihood(samples, labels, mixture)
    distances = [
        _distance(toy, samples[labels == c], c) for c in range(mixture.num_labels)
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


def _distance(toy: ToyName, own: np.ndarray, label: int) -> float:
    """(Sliced) W2 to the truth of a class, on the tree to its quantiles."""
    if toy != "tree":  # in closed form
        return gg.metrics.sliced_wasserstein(own, make_toy(toy), label)
    table = _true_quantiles(toy, label, len(own))
    sorted_own = np.sort(_DIRECTIONS @ own.T, axis=1)
    return float(np.sqrt(np.mean((sorted_own - table) ** 2)))


_ANGLES = np.pi * np.arange(64) / 64
_DIRECTIONS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


@functools.cache
def _true_quantiles(toy: ToyName, label: int, count: int) -> np.ndarray:
    """Quantiles of the truth along each direction, ``[64, count]``.

    Closed forms of the tree's 1,016 components along 64 directions would take longer
    than the sampling; the quantiles of many true samples have a noise of their own that
    is the same for every rule and a tenth of that of the samples compared.
    """
    samples, _ = make_toy(toy).sample(jax.random.key(77), _TRUE_SAMPLES, label)
    levels = (np.arange(count) + 0.5) / count
    return np.quantile(_DIRECTIONS @ np.asarray(samples).T, levels, axis=1).T


def over_two_threads(function: Any, items: list[Any]) -> list[Any]:
    """Map with two workers: programs this small keep one core busy each."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, items))
