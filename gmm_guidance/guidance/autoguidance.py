"""AutoGuidance: away from a worse network."""

from __future__ import annotations

from typing import Any

from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.guidance.cfg import Scale, check_scale
from gmm_guidance.guidance.rule import GuidanceRule, Unguided, guidance_rule
from gmm_guidance.guidance.scale import known_scale_at, scale_at
from gmm_guidance.guidance.windows import Position


@guidance_rule
class AutoGuidance(GuidanceRule):
    """Extrapolation from a worse model: ``D_w + scale (D_c - D_w)``. 1 = off.

    Karras et al. 2024 (arXiv 2406.02507). The worse model is a smaller or less trained
    denoiser of the same data, given the same label. Two passes, one of each model.

    Args:
        weak_model: any denoiser.
        scale: total scale; 1 = off.

    Raises:
        ValueError: if the scale is not finite.
    """

    weak_model: Any
    scale: Scale = 2.0

    def __post_init__(self):
        check_scale("scale", self.scale)

    def at(self, position: Position) -> GuidanceRule:
        """``Unguided`` where the scale is known to be 1."""
        off = known_scale_at(self.scale, position.sigma) == 1.0
        return Unguided() if off else self

    def without_weak_passes(self) -> GuidanceRule:
        """No guidance."""
        return Unguided()

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """Conditional, and the same of the worse model."""
        return Pass(label), Pass(label, model=self.weak_model)

    def combine(self, outputs, x, sigma, state):
        """Written around ``D_c``, to which a traced scale of 1 then leads exactly."""
        cond, weak = outputs
        return cond + (scale_at(self.scale, sigma) - 1.0) * (cond - weak), state
