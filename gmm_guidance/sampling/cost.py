"""The cost of guidance rules: forward passes before anything is run, and time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gmm_guidance._runtime import tables
from gmm_guidance._runtime.checks import as_concrete, check_count
from gmm_guidance._runtime.pytree import join, split
from gmm_guidance.blocks.drop import DropProbabilities
from gmm_guidance.blocks.perturbation import check_kind, saved_fraction
from gmm_guidance.blocks.stack import relative_costs
from gmm_guidance.diffusion.schedule import Schedule, default_schedule
from gmm_guidance.guidance.cfg import CFG
from gmm_guidance.guidance.draws import RandomBlocks
from gmm_guidance.guidance.rule import GuidanceRule, check_rule, expected_passes
from gmm_guidance.sampling.guided_denoise import num_blocks_of
from gmm_guidance.sampling.sample import guided_sample
from gmm_guidance.sampling.segments import plan_segments
from gmm_guidance.sampling.solvers import Solver, as_solver


class Cost(NamedTuple):
    """Forward passes per sample over a whole run.

    Attributes:
        shared: cost as run here: weak passes join at their first perturbed block.
        separate: cost of weak passes run separately, without what they leave out.
        evaluations: number of denoiser evaluations by the solver.
    """

    shared: float
    separate: float
    evaluations: int

    def __str__(self) -> str:
        each = self.shared / self.evaluations
        text = f"{self.shared:.5g} passes in {self.evaluations} evaluations"
        text += f", {each:.3g} each"
        if self.separate > self.shared:
            text += f"; {self.separate:.5g} with separate weak passes"
        return text

    def __repr__(self) -> str:
        return str(self)


def expected_cost(
    guidance: GuidanceRule,
    schedule: Schedule,
    model: Any,
    *,
    solver: str | Solver = "heun",
) -> Cost:
    """Expected forward passes per sample, exact over the distribution of random masks.

    A pass of another model (AutoGuidance) counts as one, whatever its size. A traced
    scale counts as on. Embedding and readout count as nothing. What a perturbation
    saves of a block is the model's ``perturbation_savings``, and nothing without a
    model.

    Args:
        guidance: the rule.
        schedule: noise levels.
        model: the ``BlockStack``, with its ``block_costs`` if it has them; or its
            number of blocks, which count as equal.
        solver: as in ``guided_sample``.

    Raises:
        ValueError: if a drop distribution of the rule does not fit the model, its
            blocks lack a kind of perturbation, or its block costs are not positive, one
            for each block.
    """
    check_rule(guidance)
    costs = relative_costs(model)
    solver = as_solver(solver)
    shared = separate = 0.0
    evaluations = 0
    for segment in plan_segments(guidance, schedule, solver):
        steps = segment.stop - segment.start
        for rule in segment.evaluations(solver):
            evaluations += steps
            row_shared, row_separate = _passes_of(rule, model, costs)
            shared += steps * row_shared
            separate += steps * row_separate
    return Cost(shared, separate, evaluations)


class MeasuredCost(NamedTuple):
    """What a rule costs in a run.

    Attributes:
        cost: forward passes per sample, of ``expected_cost``.
        seconds: median time of a run, without compilation.
        megabytes: memory of the program besides the model: samples, states and
            temporary arrays, as the compiler plans it.
        over_cfg: time relative to CFG, less one.
    """

    cost: Cost
    seconds: float
    megabytes: float
    over_cfg: float


class CostTable(dict[str, MeasuredCost]):
    """The result of ``measure_cost``: costs by name of the rule; prints as a table."""

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return tables.markdown(*self._cells())

    def to_latex(self) -> str:
        """The table as a ``tabular`` of LaTeX, which needs the package booktabs."""
        return tables.latex(*self._cells())

    def __str__(self) -> str:
        return self.to_markdown()

    __repr__ = _repr_markdown_ = __str__

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        head = ["rule", "passes", "evaluations", "seconds", "MB", "time over CFG"]
        rows = [
            [
                name,
                f"{row.cost.shared:.4g}",
                str(row.cost.evaluations),
                f"{row.seconds:.3g}",
                f"{row.megabytes:.3g}",
                f"{100.0 * row.over_cfg:+.0f} %",
            ]
            for name, row in self.items()
        ]
        return head, rows


def measure_cost(
    model: Any,
    rules: Mapping[str, GuidanceRule],
    schedule: Schedule | None = None,
    solver: str | Solver = "heun",
    num_samples: int = 16,
    *,
    label: Any = 0,
    sample_shape: tuple[int, ...] | None = None,
    repeats: int = 3,
) -> CostTable:
    """Time rules on a model, beside CFG, and count their passes and memory.

    Each run is compiled first; then the rules take turns, so that other load of the
    machine falls on all of them alike.

    Args:
        model: the denoiser.
        rules: rules by name. CFG is added if none of them is a ``CFG``.
        schedule: noise levels; ``default_schedule(model)`` by default.
        solver: as in ``guided_sample``.
        num_samples: samples of a run, at least 1.
        label: the condition, as in ``guided_sample``.
        sample_shape: likewise.
        repeats: timed runs of each rule, at least 1.

    Returns:
        By name the ``MeasuredCost``; it prints as a table.

    Raises:
        ValueError: as ``guided_sample`` and ``expected_cost``.
        TypeError: likewise.
    """
    repeats = check_count("repeats", repeats)
    schedule = default_schedule(model) if schedule is None else schedule
    for rule in rules.values():
        check_rule(rule)
    named = dict(rules)
    baselines = [name for name, rule in named.items() if isinstance(rule, CFG)]
    if not baselines:
        baselines = ["CFG"]
        named = {"CFG": CFG(2.0)} | named
    depth = 1 if num_blocks_of(model) is None else model
    arrays, static = split(model)
    key = jax.random.key(0)

    def compiled(rule: GuidanceRule) -> Any:
        def run(arrays, key):
            return guided_sample(
                key,
                join(arrays, static),
                label,
                num_samples=num_samples,
                guidance=rule,
                schedule=schedule,
                solver=solver,
                sample_shape=sample_shape,
            )

        return jax.jit(run).lower(arrays, key).compile()

    programs = {name: compiled(rule) for name, rule in named.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(repeats + 1):
        for name, program in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(arrays, key))
            if repeat:  # the first run warms up
                seconds[name].append(time.perf_counter() - begun)
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    table = CostTable()
    for name, rule in named.items():
        memory = programs[name].memory_analysis()
        table[name] = MeasuredCost(
            expected_cost(rule, schedule, depth, solver=solver),
            medians[name],
            (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6,
            medians[name] / medians[baselines[0]] - 1.0,
        )
    return table


def _passes_of(
    rule: GuidanceRule, model: Any, costs: np.ndarray
) -> tuple[float, float]:
    """Shared and separate cost of one evaluation: each distinct pass once."""
    # Labels count as the same if they are the same object.
    passes = expected_passes(rule, len(costs), label=object())
    full = {(id(p.label), id(p.model)) for p in passes if p.perturbation is None}
    shared = separate = float(len(full))
    for p in passes:
        perturbation = p.perturbation
        if perturbation is None:
            continue
        target = model if p.model is None else p.model
        if not isinstance(target, int):
            check_kind(target, perturbation.kind)
        found = _probabilities(perturbation.blocks, len(costs))
        if found is None:
            # Nothing is skipped, and the prefix is hardly shared.
            shared, separate = shared + 1.0, separate + 1.0
            continue
        saved = found.dropped * saved_fraction(
            target, perturbation.kind, perturbation.amount
        )
        own = float(costs @ (1.0 - saved))
        joins = (id(p.label), id(p.model)) in full
        shared += float(costs @ (found.joined - saved)) if joins else own
        separate += own
    return shared, separate


def _probabilities(drop: Any, num_blocks: int) -> DropProbabilities | None:
    """Those of the perturbed blocks; ``None`` for sets per sample, or unknown sets."""
    if isinstance(drop, RandomBlocks):
        return None if drop.per_sample else drop.distribution.probabilities(num_blocks)
    if isinstance(drop, jax.ShapeDtypeStruct):
        return None
    blocks = as_concrete(drop)
    if blocks is None or blocks.ndim != 1:
        return None
    return DropProbabilities.of_set(blocks, num_blocks)
