"""The plan of a run: which rule acts at which evaluation, known before tracing.

A rule resolves its windows and zero weights at each concrete position of the schedule.
Neighbouring steps with the same resolved rules form a segment, which is one compiled
loop body: passes that are off in a segment are not part of its program, and no step
branches at run time.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np

from gmm_guidance._runtime.pytree import node_types
from gmm_guidance.diffusion.schedule import Schedule
from gmm_guidance.guidance.rule import GuidanceRule
from gmm_guidance.guidance.windows import Position
from gmm_guidance.sampling.solvers import Solver


@dataclasses.dataclass(frozen=True)
class Segment:
    """Steps ``start .. stop - 1``, on which the same rules act.

    ``rules`` has one rule for each evaluation that the solver makes in a step, or a
    single one where all of them are the same.
    """

    start: int
    stop: int
    is_final: bool
    rules: tuple[GuidanceRule, ...]

    def evaluations(self, solver: Solver) -> tuple[GuidanceRule, ...]:
        """The rule of each evaluation in a step."""
        count = solver.num_evaluations(self.is_final)
        return self.rules * count if len(self.rules) == 1 else self.rules


def plan_segments(
    guidance: GuidanceRule, schedule: Schedule, solver: Solver
) -> tuple[Segment, ...]:
    """Resolve the rule over the schedule and group equal neighbours.

    Raises:
        ValueError: if a window of the rule holds no evaluation of the run.
    """
    sigmas = np.asarray(schedule.sigmas())
    num_steps = len(sigmas) - 1
    positions = [
        [
            Position(
                fraction=step / num_steps,
                sigma=float(sigmas[step + evaluation]),
                step=step,
                num_steps=num_steps,
            )
            for evaluation in range(solver.num_evaluations(step == num_steps - 1))
        ]
        for step in range(num_steps)
    ]
    guidance.check_run(list(itertools.chain(*positions)))
    segments: list[Segment] = []
    for step in range(num_steps):
        is_final = step == num_steps - 1
        rules = tuple(guidance.at(position) for position in positions[step])
        if all(_same(rules[0], rule) for rule in rules):
            rules = rules[:1]
        last = segments[-1] if segments else None
        if last is not None and not is_final and _same(last.rules, rules):
            segments[-1] = dataclasses.replace(last, stop=step + 1)
        else:
            segments.append(Segment(step, step + 1, is_final, rules))
    return tuple(segments)


def same_structure(a: Any, b: Any) -> bool:
    """Whether two pytrees have the same structure."""
    tree_a: Any = jax.tree.structure(a)
    tree_b: Any = jax.tree.structure(b)
    return bool(tree_a == tree_b) and node_types(tree_a) == node_types(tree_b)


def _same(a: Any, b: Any) -> bool:
    """Equal structure, and the same numbers or the very same arrays."""
    return same_structure(a, b) and all(
        x is y
        or (isinstance(x, (int, float)) and isinstance(y, (int, float)) and x == y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
