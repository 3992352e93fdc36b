"""The cost of a guidance rule in forward passes, before anything is run."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from gmm_guidance._runtime.checks import as_concrete
from gmm_guidance.blocks.drop import DropProbabilities
from gmm_guidance.blocks.perturbation import check_kind, saved_fraction
from gmm_guidance.blocks.stack import relative_costs
from gmm_guidance.diffusion.schedule import Schedule
from gmm_guidance.guidance.draws import RandomBlocks
from gmm_guidance.guidance.rule import GuidanceRule, check_rule, expected_passes
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
