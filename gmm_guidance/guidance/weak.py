"""Guidance away from a weaker prediction: S²-Guidance, skip layers, AutoGuidance.

S²-Guidance and skip-layer guidance add a term to another rule,

    D = base + weak_scale (D_c - mean D_weak),

with passes ``D_weak`` of the same condition from which blocks are dropped. The
coefficients of the term sum to zero, so that it is the same in x0, noise, velocity and
score. AutoGuidance extrapolates from the prediction of another network.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from typing_extensions import override

from gmm_guidance._runtime.checks import as_float
from gmm_guidance.blocks.drop import DropDistribution, FixedBlocks, FixedCount
from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.diffusion.denoiser import map_denoised
from gmm_guidance.guidance.cfg import CFG
from gmm_guidance.guidance.draws import RandomDraws, Redraw
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    RuleWrapper,
    Unguided,
    UpdateRule,
    guidance_rule,
    passes_in,
    static_field,
)
from gmm_guidance.guidance.scale import Scale, check_scale, known_scale_at, scale_at
from gmm_guidance.guidance.windows import Position, Window, as_window

Form = Literal["centered", "subtract", "subtract_eps"]


class WeakTerm(RuleWrapper):
    """Base of rules that add ``weak_scale (D_c - mean D_weak)`` to another rule.

    A subclass has the fields ``scale`` and ``window``, and defines ``weak_scale`` and
    ``draw_masks``; for weak passes of another kind, ``weak_passes``. The term acts
    inside the window, the other rule always. The state is that of the other rule.
    """

    scale: Scale | GuidanceRule
    window: Window | tuple[float, float] | None
    form: Form = "centered"

    @property
    def weak_scale(self) -> Scale:
        """Weight of the term; 0 = off."""
        raise NotImplementedError(f"{type(self).__name__} must define weak_scale.")

    def draw_masks(self, random: RandomDraws) -> Any:
        """The dropped blocks of each weak pass."""
        raise NotImplementedError(f"{type(self).__name__} must define draw_masks().")

    def weak_passes(self, label: Any, masks: Any) -> tuple[Pass, ...]:
        """One conditional pass for each mask."""
        return tuple(Pass(label, drop=mask) for mask in masks)

    @property
    def rule(self) -> GuidanceRule:  # type: ignore[override]
        """The rule to which the term is added; CFG for a total scale."""
        if isinstance(self.scale, GuidanceRule):
            return self.scale
        return Unguided() if as_float(self.scale) == 1.0 else CFG(self.scale)

    @override
    def at(self, position: Position) -> GuidanceRule:
        base = self.rule.at(position)
        acts = (
            not self._is_off()
            and position.is_inside(self.window, self)
            and known_scale_at(self.weak_scale, position.sigma) != 0.0
        )
        if not acts:
            return base
        return dataclasses.replace(self, scale=base, window=None)  # type: ignore[type-var]

    @override
    def without_weak_passes(self) -> GuidanceRule:
        return self.rule.without_weak_passes()

    @override
    def draw(self, random: RandomDraws) -> Any:
        base = super().draw(random)
        return {"base": base, "weak": () if self._is_off() else self.draw_masks(random)}

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        base = super().passes(label, draws["base"])
        if self._is_off() or not passes_in(base):
            return {"base": base}
        weak = self.weak_passes(label, draws["weak"])
        return {"base": base, "cond": Pass(label), "weak": weak}

    @override
    def combine(self, outputs, x, sigma, state):
        guided, state = super().combine(outputs["base"], x, sigma, state)
        if "weak" not in outputs:
            return guided, state
        weak = jnp.stack(outputs["weak"])
        # The mean of differences, not the difference of means: exactly zero where the
        # weak passes equal the conditional one.
        if self.form == "centered":
            push = jnp.mean(outputs["cond"][None] - weak, axis=0)
        elif self.form == "subtract":
            push = -jnp.mean(weak, axis=0)
        else:  # eps - w eps_weak, with eps = (x - D) / sigma
            push = jnp.mean(x[None] - weak, axis=0)
        weight = scale_at(self.weak_scale, sigma)
        return map_denoised(lambda d: d + weight * push, guided), state

    def _is_off(self) -> bool:
        return as_float(self.weak_scale) == 0.0


@guidance_rule
class S2Guidance(WeakTerm):
    """S²-Guidance: a rule pushed away from the model with random blocks dropped.

    ``D_u + scale (D_c - D_u) + s2_scale (D_c - D_weak)``, Eq. 4 of Chen et al. (arXiv
    2508.12880v4); with ``num_masks`` > 1 the mean over as many weak passes, Naive S²
    (Eq. 3). Cost over CFG: less than half a pass for each mask of one block (0.6 of a
    pass for two), since a weak pass is shared with the conditional one up to its first
    dropped block.

    Args:
        scale: total CFG scale, 1 = off; or a rule to which the term is added in place
            of CFG, ``APG(4.0)`` for example. Nothing is added in steps in which that
            rule runs no network.
        s2_scale: the paper's omega; 0 = off.
        num_dropped: number of blocks dropped in each weak pass, at least 1.
        protected: blocks that are never dropped. The paper protects the first.
        window: where the S² term acts: ``(lo, hi)`` fractions of the steps, a
            ``StepWindow`` or ``SigmaWindow``, or ``None`` for always. The rule to which
            it is added always acts.
        num_masks: weak passes per step, or ``"all"`` for the exact expectation.
        form: ``"centered"`` as above. ``"subtract"`` is ``- s2_scale D_weak``, as in
            the first versions of the paper, and ``"subtract_eps"`` the same in noise
            space; both shrink the prediction and are kept only to show this.
        distribution: a drop distribution in place of ``FixedCount(num_dropped,
            protected)``.
        redraw: a new mask each ``"step"`` (the paper), each ``"evaluation"``, or one
            for the whole ``"run"``.
        per_sample: a mask for each sample instead of one for the batch; saves nothing.

    Raises:
        ValueError: for a scale that is not finite, a count below 1, an unknown form, or
            a window outside ``[0, 1]``; and, in a sampling run, for a distribution that
            does not fit the model, or a window that contains no evaluation.
        TypeError: in a sampling run, if the denoiser has no blocks.
    """

    scale: Scale | GuidanceRule
    s2_scale: Scale = 0.25
    num_dropped: int = static_field(default=1)
    protected: tuple[int, ...] = static_field(default=(0,))
    window: Window | tuple[float, float] | None = static_field(default=(0.1, 0.9))
    num_masks: int | Literal["all"] = static_field(default=1)
    form: Form = static_field(default="centered")
    distribution: DropDistribution | None = static_field(default=None)
    redraw: Redraw = static_field(default="step")
    per_sample: bool = static_field(default=False)

    def __post_init__(self):
        check_scale("scale", self.scale)
        check_scale("s2_scale", self.s2_scale)
        FixedCount(self.num_dropped, self.protected)
        as_window(self.window)
        if self.num_masks != "all" and self.num_masks < 1:
            raise ValueError(
                f'num_masks must be at least 1 or "all", got {self.num_masks}.'
            )
        _check_choice("form", self.form, ("centered", "subtract", "subtract_eps"))
        _check_choice("redraw", self.redraw, ("step", "evaluation", "run"))

    @property
    @override
    def weak_scale(self) -> Scale:
        return self.s2_scale

    @override
    def draw_masks(self, random: RandomDraws) -> Any:
        distribution = self.distribution or FixedCount(self.num_dropped, self.protected)
        return random.dropped_blocks(
            distribution, self.num_masks, self.redraw, self.per_sample
        )


@guidance_rule
class SkipLayer(WeakTerm):
    """Skip-layer guidance: S² with listed blocks instead of random ones.

    ``D_u + scale (D_c - D_u) + skip_scale (D_c - D_skip)``, as released with Stable
    Diffusion 3.5 Medium (scale 4, skip_scale 2.5, blocks 7, 8, 9, steps 1-20 %).

    Args:
        scale: total CFG scale, 1 = off; or a rule to which the term is added in place
            of CFG.
        blocks: indices of the blocks to skip.
        skip_scale: weight of the term; 0 = off.
        window: where the term acts, as in ``S2Guidance``.

    Raises:
        ValueError: for a scale that is not finite, no or repeated blocks, or a window
            outside ``[0, 1]``; and, in a sampling run, for blocks that the model does
            not have, or a window that contains no evaluation.
        TypeError: in a sampling run, if the denoiser has no blocks.
    """

    scale: Scale | GuidanceRule
    blocks: tuple[int, ...] = static_field()
    skip_scale: Scale = 2.5
    window: Window | tuple[float, float] | None = static_field(default=(0.01, 0.2))

    def __post_init__(self):
        check_scale("scale", self.scale)
        check_scale("skip_scale", self.skip_scale)
        FixedBlocks(self.blocks)
        as_window(self.window)

    @property
    @override
    def weak_scale(self) -> Scale:
        return self.skip_scale

    @override
    def draw_masks(self, random: RandomDraws) -> Any:
        return random.dropped_blocks(FixedBlocks(self.blocks))


@guidance_rule
class AutoGuidance(UpdateRule):
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

    @override
    def without_weak_passes(self) -> GuidanceRule:
        return Unguided()

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        return Pass(label, model=self.weak_model), Pass(label)

    @override
    def update(self, uncond, cond, x, sigma, state):
        return cond - uncond, state


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if isinstance(value, str) and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
