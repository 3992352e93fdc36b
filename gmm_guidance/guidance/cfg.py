"""Classifier-free guidance: CFG and CFG++."""

from __future__ import annotations

from typing_extensions import override

from gmm_guidance.diffusion.denoiser import Renoised
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    Unconditional,
    UpdateRule,
    guidance_rule,
)
from gmm_guidance.guidance.scale import Scale, check_scale, known_scale_at
from gmm_guidance.guidance.windows import Position


@guidance_rule
class CFG(UpdateRule):
    """Classifier-free guidance: ``D_u + scale (D_c - D_u)``. 1 = off. Two passes.

    Ho & Salimans 2022 (arXiv 2207.12598), whose weight ``w`` is ``scale - 1``. The
    coefficients sum to one, so the rule is the same in x0, noise, velocity and score.
    A Python scale of 1 costs one pass (``D_c``), a scale of 0 one pass (``D_u``).

    Raises:
        ValueError: if the scale is not finite.
    """

    scale: Scale

    @override
    def at(self, position: Position) -> GuidanceRule:
        if known_scale_at(self.scale, position.sigma) == 0.0:
            return Unconditional()
        return super().at(position)

    @override
    def update(self, uncond, cond, x, sigma, state):
        return cond - uncond, state


@guidance_rule
class CFGPlusPlus(UpdateRule):
    """CFG++: an interpolation, renoised with the unconditional noise. 0 = ``D_u``.

    ``D = D_u + scale (D_c - D_u)`` with a scale in [0, 1], and a step to the next noise
    level with the noise of ``D_u``: ``D + sigma_next / sigma (x - D_u)``; Chung et al.
    2024 (arXiv 2406.08070). Two passes; one for a scale known to be 0. A step of
    ``Euler`` equals one of CFG with the total scale ``scale / (1 - sigma_next /
    sigma)``. The coefficients sum to one, so the rule is the same in x0, noise,
    velocity and score. No scale turns it into ``D_c``: at 1 the noise is still that of
    ``D_u``.

    Only ``Euler`` and ``DPMSolverPP2M`` can take the noise from another prediction;
    other solvers raise a ``TypeError``.

    Args:
        scale: the paper's lambda, in [0, 1]; the paper compares 0.6 with CFG 7.5.

    Raises:
        ValueError: if the scale is outside ``[0, 1]``.
    """

    scale: Scale

    def __post_init__(self):
        check_scale("scale", self.scale, low=0.0, high=1.0)

    @override
    def at(self, position: Position) -> GuidanceRule:
        off = known_scale_at(self.scale, position.sigma) == 0.0
        return Unconditional() if off else self

    @override
    def update(self, uncond, cond, x, sigma, state):
        return cond - uncond, state

    @override
    def combine(self, outputs, x, sigma, state):
        guided, state = super().combine(outputs, x, sigma, state)
        return Renoised(guided, outputs[0]), state
