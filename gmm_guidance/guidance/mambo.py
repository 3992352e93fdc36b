"""MAMBO-G: CFG that is damped where the two predictions differ much."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.diffusion.process import Process, RectifiedFlow
from gmm_guidance.guidance.cfg import Scale, check_scale
from gmm_guidance.guidance.per_sample import norm, ratio
from gmm_guidance.guidance.rule import GuidanceRule, Unguided, guidance_rule, static
from gmm_guidance.guidance.scale import known_scale_at, scale_at
from gmm_guidance.guidance.velocity import velocity_of
from gmm_guidance.guidance.windows import Position


@guidance_rule
class MAMBOG(GuidanceRule):
    """Magnitude-aware guidance: CFG of a scale for each sample. 1 = off.

    MAMBO-G (arXiv 2508.03442): CFG of the scale ``1 + (scale - 1) exp(-alpha
    |v_c - v_u| / |v_u|)``, norms over all axes of each sample. Two passes. It is not
    affine: the ratio is that of the velocities of ``process``. ``alpha`` 0 is CFG.

    Args:
        scale: total scale; 1 = off.
        alpha: how fast a large update is damped, >= 0.
        process: whose velocity it is.

    Raises:
        ValueError: for a scale that is not finite or a negative alpha.
    """

    scale: Scale = 10.0
    alpha: ArrayLike = 8.0
    process: Process = static(default=RectifiedFlow())
    needs_label = True

    def __post_init__(self):
        check_scale("scale", self.scale)
        check_scale("alpha", self.alpha, low=0.0)

    def at(self, position: Position) -> GuidanceRule:
        """``Unguided`` where the scale is known to be 1."""
        off = known_scale_at(self.scale, position.sigma) == 1.0
        return Unguided() if off else self

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """Unconditional, conditional."""
        return Pass(None), Pass(label)

    def combine(self, outputs, x, sigma, state):
        """Written around ``D_c``."""
        uncond, cond = outputs
        v_uncond, v_cond = (velocity_of(self.process, o, x, sigma) for o in outputs)
        # Where v_u is zero any difference is infinitely large beside it.
        update = ratio(norm(v_cond - v_uncond), norm(v_uncond), jnp.inf)
        damping = jnp.where(self.alpha == 0.0, 1.0, jnp.exp(-1.0 * self.alpha * update))
        weight = (scale_at(self.scale, sigma) - 1.0) * damping
        return cond + weight * (cond - uncond), state
