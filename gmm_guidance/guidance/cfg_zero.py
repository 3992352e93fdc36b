"""CFG-Zero*: CFG on the velocity with an optimised scale, after steps of none."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.diffusion.process import Process, RectifiedFlow
from gmm_guidance.guidance.cfg import Scale, check_scale
from gmm_guidance.guidance.per_sample import dot, ratio
from gmm_guidance.guidance.rule import GuidanceRule, Unguided, guidance_rule, static
from gmm_guidance.guidance.scale import known_scale_at, scale_at
from gmm_guidance.guidance.velocity import denoised_change, denoised_of, velocity_of
from gmm_guidance.guidance.windows import Position, StepWindow


@guidance_rule
class CFGZeroStar(GuidanceRule):
    """CFG-Zero*: CFG on velocities, ``v_u`` first scaled to fit ``v_c``. 1 = off.

    Fan et al. 2025 (arXiv 2503.18886)::

        k = <v_c, v_u> / |v_u|^2                      for each sample
        v = k v_u + scale (v_c - k v_u)

    and ``v = 0`` in the first steps, for which no network is run. Two passes
    afterwards. It is not affine and is defined on the velocity of ``process``. At scale
    1 it is ``D_c``, but in the first steps.

    Args:
        scale: total scale; 1 = off.
        zero_steps: how many first steps have zero velocity; 0 = none. A count (1 in the
            authors' code), or as a float the share f of the steps (0.04 in the paper):
            all steps i of N with ``i / N < f``, so that it never rounds to none. Both
            evaluations of a Heun step count as that step.
        process: whose velocity it is. For the rectified flow zero velocity is ``D = x /
            (1 + sigma)``, and leaves ``x_t`` exactly where it is, whatever the solver.

    Raises:
        ValueError: for a scale that is not finite, a negative count, or a share outside
            ``[0, 1)``; and for a run that has no other steps.
    """

    scale: Scale
    zero_steps: int | float = static(default=1)
    process: Process = static(default=RectifiedFlow())
    needs_label = True

    def __post_init__(self):
        check_scale("scale", self.scale)
        is_share = not isinstance(self.zero_steps, numbers.Integral)
        if not 0 <= self.zero_steps or (is_share and not self.zero_steps < 1):
            raise ValueError(
                f"zero_steps must be a count >= 0, or a share of the steps in [0, 1) "
                f"as a float, got {self.zero_steps!r}."
            )

    def at(self, position: Position) -> GuidanceRule:
        """``ZeroVelocity`` at first; ``Unguided`` where the scale is known to be 1."""
        if self._is_zero_at(position):
            return ZeroVelocity(self.process)
        if known_scale_at(self.scale, position.sigma) == 1.0:
            return Unguided()
        return dataclasses.replace(self, zero_steps=0)

    def check_run(self, positions: Sequence[Position]) -> None:
        """Refuse a run that would never leave its first steps."""
        if all(self._is_zero_at(position) for position in positions):
            raise ValueError(
                f"zero_steps={self.zero_steps} of {type(self).__name__} leaves no step "
                f"in which it would guide, in a run of {positions[0].num_steps}; take "
                f"more steps, or zero_steps=0."
            )

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """Unconditional, conditional."""
        return Pass(None), Pass(label)

    def combine(self, outputs, x, sigma, state):
        """Written around ``D_c``."""
        uncond, cond = (velocity_of(self.process, row, x, sigma) for row in outputs)
        change = cond - ratio(dot(cond, uncond), dot(uncond, uncond), 0.0) * uncond
        change = denoised_change(self.process, change, sigma)
        return outputs[1] + (scale_at(self.scale, sigma) - 1.0) * change, state

    def _is_zero_at(self, position: Position) -> bool:
        if isinstance(self.zero_steps, numbers.Integral):
            return position.step < self.zero_steps
        return self.zero_steps > 0 and StepWindow(0.0, self.zero_steps).contains(
            position
        )


@guidance_rule
class ZeroVelocity(GuidanceRule):
    """What stands still in the clock of a process: ``v = 0``. No pass."""

    process: Process = static(default=RectifiedFlow())

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """None."""
        return ()

    def combine(self, outputs: jax.Array, x, sigma, state):
        """The denoised samples that zero velocity amounts to."""
        return denoised_of(self.process, jnp.zeros_like(x), x, sigma), state
