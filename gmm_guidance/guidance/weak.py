"""Guidance away from a weaker prediction: the term, S² and AutoGuidance.

Most of them add a term to another rule,

    D = base + weak_scale (D_c - mean D_weak),

with passes ``D_weak`` of the same condition in which blocks are perturbed. The
coefficients of the term sum to zero, so that it is the same in x0, noise, velocity and
score. AutoGuidance extrapolates from the prediction of another network. Any of these
corrections may be computed every few steps only and held in between.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from typing_extensions import override

from gmm_guidance._runtime.checks import as_concrete, as_float
from gmm_guidance.blocks.drop import DropDistribution, FixedCount
from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.blocks.perturbation import Perturbation, check_amount
from gmm_guidance.diffusion.denoiser import Guided, map_denoised
from gmm_guidance.guidance.cfg import CFG
from gmm_guidance.guidance.draws import RandomDraws, Redraw
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    RuleWrapper,
    Unguided,
    guidance_rule,
    passes_in,
    run_combine,
    runs_network,
    static_field,
)
from gmm_guidance.guidance.scale import (
    Scale,
    SigmaCurve,
    check_scale,
    known_scale_at,
    scale_at,
)
from gmm_guidance.guidance.updates import dot, ratio
from gmm_guidance.guidance.windows import Position, Window, as_window

Form = Literal["centered", "subtract", "subtract_eps"]


class TermState(NamedTuple):
    """State of a weak term that is held.

    Attributes:
        base: state of the rule to which it is added.
        held: the last computed correction in noise, ``(D_c - mean D_weak) / sigma``,
            ``[n, ...]``.
    """

    base: Any
    held: jax.Array


class WeakTerm(RuleWrapper):
    """Base of rules that add ``weak_scale (D_c - mean D_weak)`` to another rule.

    A subclass has the fields ``scale`` and ``window``, and defines ``weak_scale`` and
    ``draw_masks``; ``kind`` and ``amount`` are those of ``Perturbation``. The term acts
    inside the window, the other rule always. The state is that of the other rule.

    With a field ``hold`` above 1 the correction is computed in the first step in which
    the term acts and in every ``hold``-th step from there, by all evaluations of such a
    step, and the last one is held in between: added at the weight of each noise level,
    without weak passes. What is held is the change of the predicted noise, ``(D_c -
    mean D_weak) / sigma``: with plain blocks it varied least, or nearly so, except in
    networks that predict x0. Other kinds of block were not measured.
    """

    scale: Scale | GuidanceRule
    window: Window | tuple[float, float] | None = None
    kind: str = "drop"
    amount: ArrayLike | None = None
    form: Form = "centered"
    redraw: Redraw = "step"
    hold: int = 1
    one_sided: bool = False

    @property
    def weak_scale(self) -> Scale:
        """Weight of the term; 0 = off."""
        raise NotImplementedError(f"{type(self).__name__} must define weak_scale.")

    def draw_masks(self, random: RandomDraws) -> Any:
        """The perturbed blocks of each weak pass."""
        raise NotImplementedError(f"{type(self).__name__} must define draw_masks().")

    def draw_weak(self, random: RandomDraws) -> tuple[Any, ...]:
        """What each weak pass draws: its blocks, with a random key for a shuffle."""
        return with_keys(self.draw_masks(random), self.kind, random, self.redraw)

    def weak_passes(self, label: Any, drawn: Any) -> tuple[Pass, ...]:
        """One conditional pass for each draw."""
        return tuple(weak_pass(label, self.kind, self.amount, one) for one in drawn)

    @property
    def rule(self) -> GuidanceRule:  # type: ignore[override]
        """The rule to which the term is added; CFG for a total scale."""
        if isinstance(self.scale, GuidanceRule):
            return self.scale
        return Unguided() if as_float(self.scale) == 1.0 else CFG(self.scale)

    def added_to(self, base: GuidanceRule) -> WeakTerm:
        """The term added to another rule in all steps."""
        return dataclasses.replace(self, scale=base, window=None)  # type: ignore[type-var]

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
        term = self.added_to(base)
        if self.hold == 1:
            return term
        if not runs_network(base):  # nothing is added, so nothing is held either
            return base
        return Held(term) if position.steps_acting(self) % self.hold else term

    @override
    def init(self, x: jax.Array) -> Any:
        base = super().init(x)
        return base if self.hold == 1 else TermState(base, jnp.zeros_like(x))

    @override
    def without_weak_passes(self) -> GuidanceRule:
        return self.rule.without_weak_passes()

    @override
    def draw(self, random: RandomDraws) -> Any:
        base = super().draw(random)
        return {"base": base, "weak": () if self._is_off() else self.draw_weak(random)}

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        base = super().passes(label, draws["base"])
        if self._is_off() or not passes_in(base):
            return {"base": base}
        weak = self.weak_passes(label, draws["weak"])
        others = {"uncond": Pass(None)} if self.one_sided else {}
        return {"base": base, "cond": Pass(label), "weak": weak, **others}

    @override
    def combine(self, outputs, x, sigma, state):
        base = state.base if self.hold > 1 else state
        guided, base = super().combine(outputs["base"], x, sigma, base)
        push = self._correction(outputs, x) if "weak" in outputs else None
        if self.hold > 1:
            held = state.held if push is None else push / sigma
            state = TermState(base, held)
        else:
            state = base
        if push is None:
            return guided, state
        return self.add(push, guided, outputs, sigma), state

    def add(
        self, push: jax.Array, guided: Guided, outputs: dict[str, Any], sigma: jax.Array
    ) -> Guided:
        """The guided value with a correction ``[n, ...]`` added to it."""
        term = scale_at(self.weak_scale, sigma) * push
        if self.one_sided:
            term = without_part_along(term, outputs["cond"] - outputs["uncond"])
        return map_denoised(lambda d: d + term, guided)

    def _correction(self, outputs: dict[str, Any], x: jax.Array) -> jax.Array:
        weak = jnp.stack(outputs["weak"])
        # The mean of differences, not the difference of means: exactly zero where the
        # weak passes equal the conditional one.
        if self.form == "centered":
            return jnp.mean(outputs["cond"][None] - weak, axis=0)
        if self.form == "subtract":
            return -jnp.mean(weak, axis=0)
        # eps - w eps_weak, with eps = (x - D) / sigma
        return jnp.mean(x[None] - weak, axis=0)

    def _is_off(self) -> bool:
        return as_float(self.weak_scale) == 0.0


def with_keys(
    masks: tuple[Any, ...], kind: str, random: RandomDraws, redraw: Redraw
) -> tuple[Any, ...]:
    """The masks; each with a random key if a perturbation of its kind needs one."""
    if kind != "shuffle":
        return masks
    return tuple((mask, random.key(redraw)) for mask in masks)


def weak_pass(label: Any, kind: str, amount: Any, drawn: Any) -> Pass:
    """The pass of a label with a perturbation, as ``with_keys`` draws it."""
    if kind == "drop" and amount is None:
        return Pass(label, drop=drawn)
    blocks, key = drawn if kind == "shuffle" else (drawn, None)
    return Pass(label, perturb=Perturbation(kind, blocks, amount, key))


@guidance_rule
class Held(RuleWrapper):
    """A weak term in a step in which its correction is held: without weak passes."""

    rule: WeakTerm

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        outputs = {"base": self.rule.rule.passes(label, draws["base"])}
        if self.rule.one_sided:
            outputs |= {"cond": Pass(label), "uncond": Pass(None)}
        return outputs

    @override
    def combine(self, outputs, x, sigma, state):
        term = self.rule
        guided, base = run_combine(term.rule, outputs["base"], x, sigma, state.base)
        guided = term.add(sigma * state.held, guided, outputs, sigma)
        return guided, TermState(base, state.held)


def recomputed(rule: GuidanceRule) -> GuidanceRule:
    """A rule as ``at`` returns it, with every correction computed and none held."""
    return jax.tree.map(
        lambda node: recomputed(node.rule) if isinstance(node, Held) else node,
        rule,
        is_leaf=lambda node: isinstance(node, Held),
    )


def without_part_along(term: jax.Array, direction: jax.Array) -> jax.Array:
    """``term`` without its component along ``direction`` where that is positive."""
    along = ratio(dot(term, direction), dot(direction, direction), 0.0)
    return term - jnp.maximum(along, 0.0) * direction


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
        kind: what happens to the drawn blocks, see ``Perturbation``. ``"identity"`` is
            perturbed-attention guidance in random layers, of which no publication is
            known.
        amount: strength of the perturbation; ``None`` is the full one.
        hold: the correction is computed every ``hold``-th step from the first one
            inside the window on, and held in between; 1 = every step. Divides the cost
            of the term by ``hold``.
        one_sided: remove the part of the term along ``D_c - D_u`` where it points with
            CFG, by sample. Needs ``D_u``, at no cost beside CFG.

    Raises:
        ValueError: for a scale that is not finite, a count below 1, an unknown form, an
            amount out of range, or a window outside ``[0, 1]``; and, in a sampling run,
            for a distribution or kind that does not fit the model, or a window that
            contains no evaluation.
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
    kind: str = static_field(default="drop")
    amount: ArrayLike | None = None
    hold: int = static_field(default=1)
    one_sided: bool = static_field(default=False)

    def __post_init__(self):
        check_scale("scale", self.scale)
        check_scale("s2_scale", self.s2_scale)
        check_amount(self.kind, self.amount)
        check_hold(self.hold)
        FixedCount(self.num_dropped, self.protected)
        as_window(self.window)
        if self.num_masks != "all" and self.num_masks < 1:
            raise ValueError(
                f'num_masks must be at least 1 or "all", got {self.num_masks}.'
            )
        check_choice("form", self.form, ("centered", "subtract", "subtract_eps"))
        check_choice("redraw", self.redraw, ("step", "evaluation", "run"))

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
class AutoGuidance(WeakTerm):
    """Extrapolation from a worse model: ``D_w + scale (D_c - D_w)``. 1 = off.

    Karras et al. 2024 (arXiv 2406.02507). The worse model is a smaller or less trained
    denoiser of the same data, given the same label. Two passes, one of each model. It
    is the weak term ``(scale - 1) (D_c - D_w)`` added to ``D_c``.

    Args:
        weak_model: any denoiser.
        scale: total scale; 1 = off.
        hold: the worse model is evaluated every ``hold``-th step only, as in
            ``S2Guidance``.

    Raises:
        ValueError: if the scale is not finite, or ``hold`` below 1.
    """

    weak_model: Any
    scale: Scale = 2.0
    hold: int = static_field(default=1)

    def __post_init__(self):
        check_scale("scale", self.scale)
        check_hold(self.hold)

    @property
    @override
    def rule(self) -> GuidanceRule:  # type: ignore[override]
        return Unguided()

    @override
    def added_to(self, base: GuidanceRule) -> WeakTerm:
        return self

    @property
    @override
    def weak_scale(self) -> Scale:
        if not isinstance(self.scale, SigmaCurve):
            return self.scale - 1.0
        values: Any = as_concrete(self.scale.values)
        if values is None:
            values = jnp.asarray(self.scale.values)
        return dataclasses.replace(self.scale, values=values - 1.0)

    @override
    def draw_masks(self, random: RandomDraws) -> Any:
        return ()

    @override
    def weak_passes(self, label: Any, masks: Any) -> tuple[Pass, ...]:
        return (Pass(label, model=self.weak_model),)


def check_hold(hold: int) -> None:
    """Raise ``ValueError`` unless a number of steps is a whole number from 1 on."""
    if not (isinstance(hold, int) and hold >= 1):
        raise ValueError(
            f"hold must be a number of steps of at least 1, got {hold!r}; 1 computes "
            f"the correction in every step."
        )


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` for a name that is none of the choices."""
    if isinstance(value, str) and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
