"""Rules compared on networks, beside exact denoisers and true samples."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime import tables
from gmm_guidance._runtime.checks import check_count, check_key
from gmm_guidance.blocks.evaluate import check_denoiser
from gmm_guidance.diffusion.schedule import Schedule, default_schedule
from gmm_guidance.guidance.rule import GuidanceRule, check_rule
from gmm_guidance.metrics.summary import summarize, truth_floor
from gmm_guidance.metrics.uncertainty import mean_and_standard_error
from gmm_guidance.mixture.exact_denoiser import ExactDenoiser
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.sampling.cost import expected_cost
from gmm_guidance.sampling.guided_denoise import num_blocks_of
from gmm_guidance.sampling.sample import guided_sample
from gmm_guidance.sampling.solvers import Solver
from gmm_guidance.training.trained import TrainingRun

if TYPE_CHECKING:  # Matplotlib is imported on use
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Metrics of a table unless others are asked for.
SHOWN = ("w2", "sliced_w2", "mode_shift", "mode_width_ratio", "outside_fraction")


class ComparedRow(NamedTuple):
    """A rule on the networks of one name.

    Attributes:
        denoisers: name of the networks; ``"exact"`` for the exact denoiser.
        rule: name of the rule.
        values: by metric, a value for each network, ``[networks]``.
        passes: forward passes per sample in the whole run.
    """

    denoisers: str
    rule: str
    values: dict[str, np.ndarray]
    passes: float

    def estimate(self, metric: str) -> tuple[float, float]:
        """Mean over networks and its standard error, NaN for a single network."""
        values = self.values[metric]
        if len(values) == 1:
            return float(values[0]), math.nan
        mean, error = mean_and_standard_error(values)
        return float(mean), float(error)


class Comparison(NamedTuple):
    """The result of ``compare``; prints as a table.

    Attributes:
        rows: the rules on the networks, in the order given, exact denoisers first.
        floor: of each metric, ``mean`` and ``standard_error`` for true samples.
        num_samples: samples behind each value.
    """

    rows: tuple[ComparedRow, ...]
    floor: dict[str, dict[str, float]]
    num_samples: int

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics, those of ``metrics.summarize``."""
        return tuple(self.floor)

    def to_markdown(self, metrics: Sequence[str] | None = None) -> str:
        """The table in Markdown.

        Args:
            metrics: its columns; by default a Wasserstein distance, shift, width and
                outliers.

        Raises:
            ValueError: for an unknown metric.
        """
        return tables.markdown(*self._cells(metrics))

    def to_latex(self, metrics: Sequence[str] | None = None) -> str:
        """The table as a ``tabular`` of LaTeX, which needs the package booktabs."""
        return tables.latex(*self._cells(metrics))

    def plot(self, metric: str, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """The metric of each rule, with its standard error; ``gg.plot.comparison``."""
        return importlib.import_module("gmm_guidance.plot").comparison(
            self, metric, ax=ax
        )

    def check_metric(self, metric: str) -> None:
        """Raise ``ValueError`` for an unknown metric."""
        if metric not in self.floor:
            raise ValueError(
                f"metric must be one of {', '.join(self.metrics)}, got {metric!r}."
            )

    def __str__(self) -> str:
        return self.to_markdown()

    def __repr__(self) -> str:
        return self.to_markdown()

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def _cells(
        self, metrics: Sequence[str] | None
    ) -> tuple[list[str], list[list[str]]]:
        if metrics is None:
            metrics = [name for name in SHOWN if name in self.floor]
        for name in metrics:
            self.check_metric(name)
        head = ["denoiser", "rule", "passes", *metrics]
        floor = [
            tables.with_error(self.floor[m]["mean"], self.floor[m]["standard_error"])
            for m in metrics
        ]
        rows = [["true samples", "–", "–", *floor]]
        for row in self.rows:
            shown = [tables.with_error(*row.estimate(m)) for m in metrics]
            rows.append([row.denoisers, row.rule, f"{row.passes:.4g}", *shown])
        return head, rows


def compare(
    denoisers: Any,
    rules: Mapping[str, GuidanceRule],
    mixture: GaussianMixture,
    labels: ArrayLike | None,
    key: jax.Array,
    *,
    num_samples: int | None = None,
    schedule: Schedule | None = None,
    solver: str | Solver = "heun",
    batch_size: int | None = None,
) -> Comparison:
    """Sample networks under several rules and measure the samples against the truth.

    Each rule is also run with the exact denoiser, whose distance from the floor of true
    samples is the bias of the rule itself; there, weak passes equal the conditional
    one, so that S²-Guidance is CFG and AutoGuidance no guidance. All runs begin from
    the same noise: standard errors are those over networks.

    Args:
        denoisers: a denoiser; a sequence of networks of one kind, from different seeds;
            a ``TrainingRun`` (all seeds, at the end of training); or several of these
            by name.
        rules: rules by name.
        mixture: the truth.
        labels: the condition, ``[n]`` integers, one integer, or ``None`` for none.
        key: a JAX random key.
        num_samples: number of samples, unless ``labels`` has one for each; 2,000 by
            default.
        schedule: noise levels; by default those of ``default_schedule`` for the
            mixture.
        solver: as in ``guided_sample``.
        batch_size: likewise.

    Raises:
        ValueError: if there are no rules or denoisers, or as ``guided_sample``.
        TypeError: for anything else than rules and denoisers.
    """
    check_key(key)
    if not isinstance(rules, Mapping) or not rules:
        raise ValueError(
            f"rules must be a dictionary of at least one rule by name, such as "
            f'{{"CFG 2": CFG(2.0)}}, got {type(rules).__name__} of length '
            f"{len(rules) if hasattr(rules, '__len__') else 0}."
        )
    for rule in rules.values():
        check_rule(rule)
    given = np.asarray(mixture.num_labels if labels is None else labels)
    if given.ndim == 1:
        num_samples = len(given)
    num_samples = check_count("num_samples", num_samples or 2000, 2)
    label = np.broadcast_to(given, (num_samples,))
    exact = ExactDenoiser(mixture)
    schedule = default_schedule(exact) if schedule is None else schedule
    sample_key, metric_key, floor_key = jax.random.split(key, 3)

    def measure(name: str, rule_name: str, rule: GuidanceRule, networks: list[Any]):
        found = []
        for network in networks:
            samples = guided_sample(
                sample_key,
                network,
                None if labels is None else label,
                num_samples=num_samples,
                guidance=rule,
                schedule=schedule,
                solver=solver,
                sample_shape=(mixture.dim,),
                batch_size=batch_size,
            )
            found.append(summarize(samples, label, mixture, key=metric_key))
        values = {m: np.array([f[m] for f in found]) for m in found[0]}
        depth = 1 if num_blocks_of(networks[0]) is None else networks[0]
        cost = expected_cost(rule, schedule, depth, solver=solver)
        return ComparedRow(name, rule_name, values, cost.shared)

    rows = [
        measure("exact", name, rule.without_weak_passes(), [exact])
        for name, rule in rules.items()
    ]
    for group, networks in _groups(denoisers).items():
        rows += [measure(group, name, rule, networks) for name, rule in rules.items()]
    floor = truth_floor(floor_key, mixture, label)
    return Comparison(tuple(rows), floor, num_samples)


def _groups(denoisers: Any) -> dict[str, list[Any]]:
    """Networks by name."""
    named = denoisers if isinstance(denoisers, Mapping) else {"": denoisers}
    groups: dict[str, list[Any]] = {}
    for name, group in named.items():
        if isinstance(group, TrainingRun):
            networks = [group.denoiser(seed) for seed in range(group.num_seeds)]
        elif isinstance(group, Sequence):
            networks = list(group)
        else:
            networks = [group]
        if not networks:
            raise ValueError(f"denoisers {name!r} must be at least one, got none.")
        for network in networks:
            check_denoiser(network)
        plural = "network" if len(networks) == 1 else f"{len(networks)} networks"
        groups[name or plural] = networks
    if not groups:
        raise ValueError("denoisers must be at least one, got none.")
    return groups
