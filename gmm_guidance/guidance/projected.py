"""Guidance with projected updates: APG along ``D_c``, TCFG along both predictions."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_float
from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.diffusion.process import VE, Process
from gmm_guidance.guidance.cfg import Scale, check_scale
from gmm_guidance.guidance.per_sample import dot, norm, ratio
from gmm_guidance.guidance.rule import GuidanceRule, Unguided, guidance_rule, static
from gmm_guidance.guidance.scale import known_scale_at, scale_at
from gmm_guidance.guidance.velocity import denoised_change, velocity_of
from gmm_guidance.guidance.windows import Position


@guidance_rule
class APG(GuidanceRule):
    """Adaptive projected guidance: CFG with less of the part along ``D_c``. 1 = off.

    Sadat et al. 2024 (arXiv 2410.02416)::

        d = D_c - D_u + momentum d_previous
        d = d min(1, norm_threshold / |d|)
        D = D_c + (scale - 1) (d_perp + eta d_par),    d_par along D_c

    Two passes. It is not affine and is defined on ``D``. Norms and projections are over
    all axes of each sample. With ``eta=1``, no threshold and no momentum it is CFG. The
    state ``d``, before clipping, is carried from one evaluation to the next: a solver
    with two evaluations a step (Heun) updates it twice a step.

    Args:
        scale: total scale; 1 = off.
        eta: share of the parallel part that is kept; the paper takes 0.
        norm_threshold: largest norm of the update, > 0; ``None`` for no limit.
        momentum: weight of the previous update; the paper takes negative ones,
            -0.5 mostly. 0 = off, without state.

    Raises:
        ValueError: for a number that is not finite, or a threshold that is not above 0.
    """

    scale: Scale
    eta: ArrayLike = 0.0
    norm_threshold: ArrayLike | None = None
    momentum: ArrayLike | None = -0.5
    needs_label = True

    def __post_init__(self):
        for name in ("scale", "eta", "momentum"):
            check_scale(name, getattr(self, name))
        threshold = as_float(self.norm_threshold)
        if threshold is not None and not threshold > 0.0:
            raise ValueError(
                f"norm_threshold must be > 0, got {threshold}; None is no limit."
            )

    def at(self, position: Position) -> GuidanceRule:
        """``Unguided`` where the scale is known to be 1; without a momentum of 0."""
        if known_scale_at(self.scale, position.sigma) == 1.0:
            return Unguided()
        if as_float(self.momentum) == 0.0:
            return dataclasses.replace(self, momentum=None)
        return self

    def init(self, x: jax.Array) -> Any:
        """No update yet."""
        return jnp.zeros_like(x) if self._has_momentum() else ()

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """Unconditional, conditional."""
        return Pass(None), Pass(label)

    def combine(self, outputs, x, sigma, state):
        """Written around ``D_c``."""
        uncond, cond = outputs
        update = cond - uncond
        if self._has_momentum():
            state = update = update + self.momentum * state
        if self.norm_threshold is not None:
            largest = ratio(self.norm_threshold, norm(update), jnp.inf)
            update = update * jnp.minimum(largest, 1.0)
        parallel = ratio(dot(update, cond), dot(cond, cond), 0.0) * cond
        update = update - (1.0 - self.eta) * parallel
        return cond + (scale_at(self.scale, sigma) - 1.0) * update, state

    def _has_momentum(self) -> bool:
        return self.momentum is not None and as_float(self.momentum) != 0.0


@guidance_rule
class TCFG(GuidanceRule):
    """Tangential damping CFG: ``D_u`` without what ``D_c`` does not share. 1 = off.

    Kwon et al. 2025 (arXiv 2503.18137): the unconditional prediction ``p_u`` is
    replaced by its projection on the first right singular vector of the two rows
    ``[p_c; p_u]`` of each sample, and then CFG: ``p_u + scale (p_c - p_u)``. Two
    passes. It is not affine, and the predictions are the noises ``(x - D) / sigma``, or
    the velocities of a process. Where both are orthogonal and equally long there is no
    first singular vector, and it is CFG.

    Args:
        scale: total scale; 1 = off.
        space: ``"noise"``, or the process whose velocity is projected.

    Raises:
        ValueError: if the scale is not finite.
        TypeError: for a space that is neither.
    """

    scale: Scale
    space: Process | Literal["noise"] = static(default="noise")
    needs_label = True

    def __post_init__(self):
        check_scale("scale", self.scale)
        if self.space != "noise" and not isinstance(self.space, Process):
            raise TypeError(
                f'space must be "noise" or a process such as RectifiedFlow(), got '
                f"{self.space!r}."
            )

    def at(self, position: Position) -> GuidanceRule:
        """``Unguided`` where the scale is known to be 1."""
        off = known_scale_at(self.scale, position.sigma) == 1.0
        return Unguided() if off else self

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """Unconditional, conditional."""
        return Pass(None), Pass(label)

    def combine(self, outputs, x, sigma, state):
        """Written around ``D_c``."""
        # The noise is the velocity of the variance-exploding clock.
        process = VE() if isinstance(self.space, str) else self.space
        uncond, cond = (velocity_of(process, row, x, sigma) for row in outputs)
        change = cond - project_on_first(cond, uncond)
        weight = scale_at(self.scale, sigma) - 1.0
        return outputs[1] + weight * denoised_change(process, change, sigma), state


def project_on_first(cond: jax.Array, uncond: jax.Array) -> jax.Array:
    """Projection of ``uncond`` on the first right singular vector of both, by sample.

    With ``G`` the 2 x 2 matrix of inner products and ``(cos a, sin a)`` its leading
    eigenvector, the singular vector is along ``y = cos(a) cond + sin(a) uncond``, and
    the projection is ``sin(a) y``; ``tan 2a = 2 G_cu / (G_cc - G_uu)``.
    """
    # Nearly equal predictions are the rule: no difference of their squared norms.
    gap = dot(cond - uncond, cond + uncond)
    twice = 2.0 * dot(cond, uncond)
    length = jnp.hypot(gap, twice)
    cos_2a, sin_2a = ratio(gap, length, -1.0), ratio(twice, length, 0.0)
    return 0.5 * (sin_2a * cond + (1.0 - cos_2a) * uncond)
