"""What a guidance rule is.

A rule names the passes it needs at a step and combines their results into one guided
denoiser value. It knows neither the network nor the solver. Rules are frozen
dataclasses registered as pytrees: scales are leaves, which may be traced, swept and
vmapped; everything that shapes the program is static.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

from gmm_guidance.passes import Pass
from gmm_guidance.windows import Position

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
    ) -> tuple[jax.Array, Any]:
        """The guided denoiser value, and the next state.

        Args:
            outputs: results of the passes, float32, ``[row, n, ...]``.
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
