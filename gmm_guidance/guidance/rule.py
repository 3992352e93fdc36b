"""What a guidance rule is.

A rule names the passes it needs at a step and combines their results into one guided
denoiser value. It knows neither the network nor the solver. Rules are frozen
dataclasses registered as pytrees: scales are leaves, which may be traced, swept and
vmapped; everything that shapes the program is static.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.guidance.renoised import Guided, Renoised
from gmm_guidance.guidance.windows import Position

__all__ = [
    "GuidanceRule",
    "Renoised",
    "Unconditional",
    "Unguided",
    "full_precision",
    "guidance_rule",
    "static",
]

Rule = TypeVar("Rule")


def static(*, default: Any = dataclasses.MISSING) -> Any:
    """A field that shapes the program and is not traced: a count, a form, a window."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def guidance_rule(cls: type[Rule]) -> type[Rule]:
    """Class decorator: a frozen dataclass whose non-``static`` fields are leaves."""
    frozen: Any = dataclasses.dataclass(frozen=True)(cls)
    return jax.tree_util.register_dataclass(frozen)


class GuidanceRule:
    """Base of all rules: derive, decorate with ``guidance_rule``, define two methods.

    ``passes`` and ``combine`` are the rule; the other methods have defaults for rules
    without windows, random draws and state.
    """

    #: Whether the rule needs a condition to guide towards.
    needs_label: bool = False

    def at(self, position: Position) -> GuidanceRule:
        """The rule as it acts at one network evaluation: windows and zero weights gone.

        Called on concrete positions before the program is traced, so that a pass whose
        weight is known to be zero there is never part of the program. A rule with
        coefficients that vary smoothly should rather compute them in ``combine`` from
        ``sigma``: each distinct result of ``at`` is a program of its own.
        """
        return self

    def without_weak_passes(self) -> GuidanceRule:
        """The rule as it is where weak passes equal the conditional one.

        That is, its part that a perfect network does not switch off: CFG of
        S²-Guidance, no guidance of AutoGuidance.
        """
        return self

    def check_run(self, positions: Sequence[Position]) -> None:
        """Raise where a part of the rule would never act in this run.

        The default asks the rules in the fields of this one.

        Args:
            positions: the evaluations of the run at which the rule is asked, at least
                one.

        Raises:
            ValueError: for a window that holds none of them.
        """
        for part in vars(self).values():
            if isinstance(part, GuidanceRule):
                part.check_run(positions)

    def draw(
        self,
        key: jax.Array,
        step: jax.Array,
        evaluation: jax.Array,
        num_blocks: int | None,
        sample_index: jax.Array,
    ) -> Any:
        """Whatever is random in one evaluation, as data (a pytree of arrays).

        Args:
            key: the key of the whole run, the same at each call.
            step: index of the step.
            evaluation: 0, or 1 for the second evaluation of a two-stage solver.
            num_blocks: depth of the model, ``None`` if it has no blocks.
            sample_index: global index of each sample, ``[n]``.
        """
        return ()

    def expected_draws(self, num_blocks: int | None) -> Any:
        """In place of ``draw`` where only the passes are counted.

        Of the structure of ``draw``, with an ``ExpectedDrop`` for each random set of
        blocks. The default has the shapes of ``draw``; a pass that drops a set of which
        no more is known counts in full.
        """
        index = jnp.zeros(1, jnp.uint32)
        return jax.eval_shape(
            lambda key: self.draw(key, index[0], index[0], num_blocks, index),
            jax.random.key(0),
        )

    def num_passes(self) -> int | None:
        """Length of ``passes``; ``None`` if it depends on the depth of the model."""
        return len(self.passes(None, self.expected_draws(None)))

    def init(self, x: jax.Array) -> Any:
        """State carried from evaluation to evaluation (momentum, say)."""
        return ()

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """The evaluations that ``combine`` needs.

        Args:
            label: the condition, ``[n]`` integers or ``None``.
            draws: what ``draw`` returned.
        """
        raise NotImplementedError(f"{type(self).__name__} must define passes().")

    def combine(
        self, outputs: jax.Array, x: jax.Array, sigma: jax.Array, state: Any
    ) -> tuple[Guided, Any]:
        """The guided denoiser value, and the next state.

        The value may be a ``Renoised``, for solvers that know it.

        Args:
            outputs: results of the passes, float32 or better, ``[row, n, ...]``; no row
                for a rule without passes.
            x: noisy samples ``[n, ...]``.
            sigma: noise level, a scalar.
            state: state from the previous evaluation.
        """
        raise NotImplementedError(f"{type(self).__name__} must define combine().")


@guidance_rule
class Unguided(GuidanceRule):
    """The conditional denoiser as it is: ``D_c``. One pass."""

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """The conditional pass."""
        return (Pass(label),)

    def combine(self, outputs, x, sigma, state):
        """``D_c``."""
        return outputs[0], state


@guidance_rule
class Unconditional(GuidanceRule):
    """The unconditional denoiser, whatever the label: ``D_u``. One pass."""

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """The unconditional pass."""
        return (Pass(None),)

    def combine(self, outputs, x, sigma, state):
        """``D_u``."""
        return outputs[0], state


def full_precision(outputs: jax.Array) -> jax.Array:
    """At least float32: guidance takes small differences of large numbers."""
    small = jnp.finfo(outputs.dtype).bits < 32
    return outputs.astype(jnp.float32) if small else outputs
