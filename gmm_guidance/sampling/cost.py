"""The cost of a guidance rule in forward passes, before anything is run."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from gmm_guidance._runtime.checks import as_concrete
from gmm_guidance.diffusion.schedule import Schedule
from gmm_guidance.guidance.draws import RandomBlocks
from gmm_guidance.guidance.rule import GuidanceRule, expected_passes
from gmm_guidance.sampling.segments import plan_segments
from gmm_guidance.sampling.solvers import Solver, as_solver


class Cost(NamedTuple):
    """Forward passes per sample over a whole run.

    Attributes:
        shared: cost as run here: weak passes join at their first dropped block.
        separate: cost of weak passes run separately, without their dropped blocks.
        evaluations: number of denoiser evaluations by the solver.
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
    """Expected forward passes per sample, exact over the distribution of random masks.

    A pass of another model (AutoGuidance) counts as one, whatever its size. A traced
    scale counts as on.

    Args:
        guidance: the rule.
        schedule: noise levels.
        num_blocks: depth of the model.
        solver: as in ``guided_sample``.

    Raises:
        ValueError: if a drop distribution of the rule does not fit ``num_blocks``.
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
    """Shared and separate cost of one evaluation: each distinct pass once."""
    # Labels count as the same if they are the same object.
    passes = expected_passes(rule, num_blocks, label=object())
    full = {(id(p.label), id(p.model)) for p in passes if p.drop is None}
    shared = separate = float(len(full))
    for p in passes:
        if p.drop is None:
            continue
        blocks = _expected_blocks(p.drop, num_blocks)
        if blocks is None:
            # Nothing is skipped, and the prefix is hardly shared.
            shared, separate = shared + 1.0, separate + 1.0
            continue
        first, dropped = blocks
        own = (num_blocks - dropped) / num_blocks
        joins = (id(p.label), id(p.model)) in full
        shared += own - first / num_blocks if joins else own
        separate += own
    return shared, separate


def _expected_blocks(drop: Any, num_blocks: int) -> tuple[float, float] | None:
    """Expected first dropped block and number of dropped blocks of the whole batch.

    ``None`` for sets per sample, and sets of which nothing is known.
    """
    if isinstance(drop, RandomBlocks):
        if drop.per_sample:
            return None
        return drop.distribution.expected_depths(num_blocks)
    if isinstance(drop, jax.ShapeDtypeStruct):
        return None
    blocks = as_concrete(drop)
    if blocks is None or blocks.ndim != 1:
        return None
    dropped = blocks[blocks < num_blocks]
    first = np.min(dropped) if dropped.size else num_blocks
    return float(first), float(dropped.size)
