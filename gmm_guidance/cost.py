"""What a guidance rule costs, in forward passes, before anything is run."""

from __future__ import annotations

from typing import NamedTuple

from gmm_guidance.guidance.rule import GuidanceRule
from gmm_guidance.guidance.weak import DroppedBlocks, WeakPassGuidance
from gmm_guidance.plan import plan_segments
from gmm_guidance.schedule import Schedule
from gmm_guidance.solvers import Solver, as_solver


class Cost(NamedTuple):
    """Forward passes per sample over a whole run.

    Attributes:
        shared: as run here: weak passes join at their first dropped block.
        separate: each weak pass on its own, its dropped blocks still left out.
        evaluations: denoiser evaluations by the solver.
    """

    shared: float
    separate: float
    evaluations: int


def expected_cost(
    guidance: GuidanceRule,
    schedule: Schedule,
    num_blocks: int,
    *,
    solver: str | Solver = "heun",
) -> Cost:
    """Expected forward passes per sample, exact over the law of the random masks.

    A pass of another model (AutoGuidance) counts as one, whatever its size. A traced
    scale counts as on.

    Args:
        guidance: the rule.
        schedule: noise levels.
        num_blocks: depth of the model.
        solver: as in ``guided_sample``.

    Raises:
        ValueError: if the rule's drop law does not fit ``num_blocks``.
    """
    solver = as_solver(solver)
    shared = separate = 0.0
    evaluations = 0
    for segment in plan_segments(guidance, schedule, solver):
        steps = segment.stop - segment.start
        for rule in segment.evaluations(solver):
            evaluations += steps
            row_shared, row_separate = _passes_of(rule, num_blocks)
            shared += steps * row_shared
            separate += steps * row_separate
    return Cost(shared, separate, evaluations)


def _passes_of(rule: GuidanceRule, num_blocks: int) -> tuple[float, float]:
    if isinstance(rule, WeakPassGuidance) and isinstance(rule.source, DroppedBlocks):
        source = rule.source
        source.law.check(num_blocks)
        first, dropped = source.law.expected_depths(num_blocks)
        full = 1.0 if rule.scale is None else 2.0
        count = source.count(num_blocks)
        own = (num_blocks - dropped) / num_blocks
        joined = (num_blocks - first - dropped) / num_blocks
        if source.per_sample:  # nothing is skipped, and the prefix is hardly shared
            own = joined = 1.0
        return full + count * joined, full + count * own
    number = float(len(rule.passes(None, ())))
    return number, number
