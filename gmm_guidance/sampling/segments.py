"""Segments of a run: which rule acts at which evaluation, known before tracing.

A rule resolves its windows and zero weights at each concrete position of the schedule.
Adjacent steps with the same resolved rules form a segment, which is one compiled loop
body: passes that are off in a segment are not part of its program, and no step branches
at run time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from gmm_guidance._runtime.pytree import node_types
from gmm_guidance.diffusion.schedule import Schedule, levels_of
from gmm_guidance.guidance.rule import GuidanceRule, run_at
from gmm_guidance.guidance.windows import Position
from gmm_guidance.sampling.solvers import Solver

# Terms held over 2 and over 3 steps repeat after 6, in at most as many segments.
_LONGEST_BODY = 16


@dataclasses.dataclass(frozen=True)
class Segment:
    """Steps ``start .. stop - 1``, in which the same rules act.

    Attributes:
        start: index of the first step.
        stop: index after the last step.
        is_final: whether it is the last step of the run, which leads to noise level 0.
        rules: one rule for each evaluation of a step by the solver, or a single one if
            all of them are the same.
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
    """Resolve the rule over the schedule and group equal adjacent steps.

    Raises:
        ValueError: if a window of the rule contains no evaluation of the run.
    """
    sigmas = levels_of(schedule)
    num_steps = len(sigmas) - 1
    start = Position(0.0, float(sigmas[0]), 0, num_steps)
    segments: list[Segment] = []
    for step in range(num_steps):
        is_final = step == num_steps - 1
        rules = tuple(
            run_at(
                guidance,
                dataclasses.replace(
                    start,
                    fraction=step / num_steps,
                    sigma=float(sigmas[step + evaluation]),
                    step=step,
                ),
            )
            for evaluation in range(solver.num_evaluations(is_final))
        )
        if all(_same(rules[0], rule) for rule in rules):
            rules = rules[:1]
        last = segments[-1] if segments else None
        if last is not None and not is_final and _same(last.rules, rules):
            segments[-1] = dataclasses.replace(last, stop=step + 1)
        else:
            segments.append(Segment(step, step + 1, is_final, rules))
    start.check_windows()
    return tuple(segments)


@dataclasses.dataclass(frozen=True)
class Loop:
    """Segments that follow each other several times: one compiled body.

    Attributes:
        body: the segments of the first repeat, of which all others are copies.
        repeats: how often they follow each other, at least once.
    """

    body: tuple[Segment, ...]
    repeats: int


def find_loops(segments: tuple[Segment, ...]) -> tuple[Loop, ...]:
    """The same segments in order, repeated ones as the body of a loop.

    A correction that is computed every m-th step makes two segments of each m steps:
    one step with weak passes, and m - 1 without.
    """
    loops, start = [], 0
    while start < len(segments):
        size, repeats = 1, 1
        for candidate in range(2, min(_LONGEST_BODY, (len(segments) - start) // 2) + 1):
            found = _repeats(segments[start:], candidate)
            if found > 1:
                size, repeats = candidate, found
                break
        loops.append(Loop(segments[start : start + size], repeats))
        start += size * repeats
    return tuple(loops)


def _repeats(segments: tuple[Segment, ...], size: int) -> int:
    """How often the first ``size`` segments follow each other."""
    count = 1
    while (count + 1) * size <= len(segments) and all(
        a.stop - a.start == b.stop - b.start
        and a.is_final == b.is_final
        and _same(a.rules, b.rules)
        for a, b in zip(segments, segments[count * size :][:size], strict=False)
    ):
        count += 1
    return count


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
