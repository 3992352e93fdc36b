"""CFG++: guidance between the two predictions, with the unconditional noise."""

from __future__ import annotations

from typing import Any

from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.guidance.cfg import Scale, check_scale
from gmm_guidance.guidance.renoised import Renoised
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    Unconditional,
    guidance_rule,
)
from gmm_guidance.guidance.scale import known_scale_at, scale_at
from gmm_guidance.guidance.windows import Position


@guidance_rule
class CFGPlusPlus(GuidanceRule):
    """CFG++: an interpolation, renoised with the unconditional noise. 0 = ``D_u``.

    ``D = D_u + scale (D_c - D_u)`` with a scale in [0, 1], and a step to the next noise
    level with the noise of ``D_u``: ``D + sigma_next / sigma (x - D_u)``; Chung et al.
    2024 (arXiv 2406.08070). Two passes; one for a scale known to be 0. A step of
    ``Euler`` is one of CFG with the total scale ``scale / (1 - sigma_next / sigma)``.
    The coefficients sum to one, so it is the same rule in x0, noise, velocity and
    score. No value turns it into ``D_c``: at 1 the noise is still that of ``D_u``.

    Only ``Euler`` and ``DPMSolverPP2M`` can take the noise from another prediction;
    other solvers raise a ``TypeError``.

    Args:
        scale: the paper's lambda, in [0, 1]; which compares 0.6 with CFG 7.5.

    Raises:
        ValueError: if the scale is outside ``[0, 1]``.
    """

    scale: Scale
    needs_label = True

    def __post_init__(self):
        check_scale("scale", self.scale, low=0.0, high=1.0)

    def at(self, position: Position) -> GuidanceRule:
        """``Unconditional`` where the scale is known to be 0."""
        off = known_scale_at(self.scale, position.sigma) == 0.0
        return Unconditional() if off else self

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """Unconditional, conditional."""
        return Pass(None), Pass(label)

    def combine(self, outputs, x, sigma, state):
        """Written around ``D_c``; the noise is that of ``D_u``."""
        uncond, cond = outputs
        weight = scale_at(self.scale, sigma) - 1.0
        return Renoised(cond + weight * (cond - uncond), uncond), state
