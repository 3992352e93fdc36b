"""Rules that push away from a weaker prediction of the same condition.

S²-Guidance, skip-layer guidance and AutoGuidance add one term to a rule,

    D = base + weak_scale (D_c - D_weak),

and differ in where ``D_weak`` comes from: blocks dropped at random, listed blocks, or
another network. The term's coefficients sum to zero, so that it is the same in x0,
noise, velocity and score; the sum is what its base is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gmm_guidance._runtime.checks import as_float
from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.guidance.cfg import CFG, Scale
from gmm_guidance.guidance.renoised import map_denoised
from gmm_guidance.guidance.rule import GuidanceRule, Unguided, guidance_rule, static
from gmm_guidance.guidance.scale import known_scale_at, scale_at
from gmm_guidance.guidance.weak_source import DroppedBlocks, OtherModel
from gmm_guidance.guidance.windows import Position, Window, as_window, positions_inside

Form = Literal["centred", "subtract", "subtract_eps"]


class NestedDraws(NamedTuple):
    """Draws of a weak term whose base draws masks of its own."""

    base: Any
    weak: Any


@guidance_rule
class WeakPassGuidance(GuidanceRule):
    """``base + weak_scale (D_c - mean D_weak)``: what S² and skip-layer resolve to.

    Cost: the conditional pass, which the base mostly needs as well, those of the base,
    and the weak ones. The state is the base's.

    Args:
        base: the rule to which the term is added.
        weak_scale: weight of the term.
        source: where the weak passes come from.
        form: as in ``S2Guidance``.
    """

    base: GuidanceRule
    weak_scale: Scale
    source: DroppedBlocks | OtherModel
    form: Form = static(default="centred")

    @property
    def needs_label(self) -> bool:  # type: ignore[override]
        """As the base."""
        return self.base.needs_label

    def at(self, position: Position) -> GuidanceRule:
        """With the base as it acts there; alone, if that needs no network."""
        base = self.base.at(position)
        return base if base.num_passes() == 0 else dataclasses.replace(self, base=base)

    def without_weak_passes(self) -> GuidanceRule:
        """The base, without its own weak passes."""
        return self.base.without_weak_passes()

    def draw(self, key, step, evaluation, num_blocks, sample_index):
        """The masks; beside the base's own, if it has some."""
        args = (step, evaluation, num_blocks, sample_index)
        below = self.base.draw(key, *args)
        depth = len(jax.tree.leaves(below))
        if depth == 0:
            return self.source.draw(key, *args)
        # A key of its own, or the masks would be those of the base.
        return NestedDraws(
            below, self.source.draw(jax.random.fold_in(key, depth), *args)
        )

    def expected_draws(self, num_blocks: int | None) -> Any:
        """Of the structure of ``draw``."""
        below = self.base.expected_draws(num_blocks)
        weak = self.source.expected_draws(num_blocks)
        return NestedDraws(below, weak) if jax.tree.leaves(below) else weak

    def num_passes(self) -> int | None:
        """The conditional one, those of the base, the weak ones."""
        counts = (self.base.num_passes(), self.source.num_passes())
        return None if None in counts else 1 + sum(c for c in counts if c)

    def init(self, x: jax.Array) -> Any:
        """That of the base."""
        return self.base.init(x)

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """Conditional, those of the base, weak ones."""
        nested = isinstance(draws, NestedDraws)
        below, weak = draws if nested else ((), draws)
        return (
            Pass(label),
            *self.base.passes(label, below),
            *self.source.passes(label, weak),
        )

    def combine(self, outputs, x, sigma, state):
        """The base, and the term; weak rows are averaged."""
        cond, first_weak = outputs[0], 1 + self._base_rows(len(outputs))
        guided, state = self.base.combine(outputs[1:first_weak], x, sigma, state)
        weak = outputs[first_weak:]
        # The mean of differences, not the difference of means: exactly zero where the
        # weak passes equal the conditional one.
        if self.form == "centred":
            push = jnp.mean(cond[None] - weak, axis=0)
        elif self.form == "subtract":
            push = -jnp.mean(weak, axis=0)
        else:  # eps - w eps_weak, with eps = (x - D) / sigma
            push = jnp.mean(x[None] - weak, axis=0)
        weight = scale_at(self.weak_scale, sigma)
        return map_denoised(lambda d: d + weight * push, guided), state

    def _base_rows(self, rows: int) -> int:
        of_base = self.base.num_passes()
        if of_base is not None:
            return of_base
        of_source = self.source.num_passes()
        if of_source is None:
            raise ValueError(
                'num_masks="all" of a rule and of the rule to which it is added cannot '
                "be told apart; give one of them a number of masks."
            )
        return rows - 1 - of_source


def as_base(scale: Scale | GuidanceRule) -> GuidanceRule:
    """A rule as it is; CFG of a total scale, or nothing where that is known to be 1."""
    if isinstance(scale, GuidanceRule):
        return scale
    return Unguided() if as_float(scale) == 1.0 else CFG(scale)


class WindowedTerm(GuidanceRule):
    """Base of the rules that add a weak term to another rule, inside a window.

    Their fields ``scale`` and ``window`` are the rule and where the term acts. Outside
    of a sampler, they are the rule inside the window.
    """

    scale: Scale | GuidanceRule
    window: Window | tuple[float, float] | None

    def term(self) -> tuple[Scale, DroppedBlocks, Form]:
        """Weight, source and form of the term."""
        raise NotImplementedError(f"{type(self).__name__} must define term().")

    def resolved(self) -> GuidanceRule:
        """The rule inside the window."""
        weight, source, form = self.term()
        base = as_base(self.scale)
        if as_float(weight) == 0.0:
            return base
        return WeakPassGuidance(base, weight, source, form)

    @property
    def needs_label(self) -> bool:  # type: ignore[override]
        """As the rule to which the term is added."""
        return as_base(self.scale).needs_label

    def at(self, position: Position) -> GuidanceRule:
        """With the term inside the window, without it outside."""
        weight = known_scale_at(self.term()[0], position.sigma)
        if weight != 0.0 and as_window(self.window).contains(position):
            return self.resolved().at(position)
        return as_base(self.scale).at(position)

    def without_weak_passes(self) -> GuidanceRule:
        """The rule to which the term is added, without weak passes of its own."""
        return as_base(self.scale).without_weak_passes()

    def check_run(self, positions: Sequence[Position]) -> None:
        """Refuse a window in which the term never acts."""
        super().check_run(positions)
        if as_float(self.term()[0]) != 0.0:
            positions_inside(self.window, positions, type(self).__name__)

    def draw(self, key, step, evaluation, num_blocks, sample_index):
        """As the resolved rule."""
        return self.resolved().draw(key, step, evaluation, num_blocks, sample_index)

    def expected_draws(self, num_blocks: int | None) -> Any:
        """As the resolved rule."""
        return self.resolved().expected_draws(num_blocks)

    def num_passes(self) -> int | None:
        """As the resolved rule."""
        return self.resolved().num_passes()

    def init(self, x: jax.Array) -> Any:
        """As the resolved rule."""
        return self.resolved().init(x)

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """As the resolved rule."""
        return self.resolved().passes(label, draws)

    def combine(self, outputs, x, sigma, state):
        """As the resolved rule."""
        return self.resolved().combine(outputs, x, sigma, state)
