"""Rules that push away from a weaker prediction of the same condition.

S²-Guidance, skip-layer guidance and AutoGuidance are one affine rule,

    D = D_u + scale (D_c - D_u) + weak_scale (D_c - D_weak),

and differ in where ``D_weak`` comes from: blocks dropped at random, listed blocks, or
another network. Its coefficients sum to one, so the rule is the same in x0, noise,
velocity and score.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gmm_guidance.block_drop import DropLaw, FixedBlocks, FixedCount
from gmm_guidance.checks import as_float
from gmm_guidance.guidance.cfg import CFG, check_scale
from gmm_guidance.guidance.rule import GuidanceRule, Unguided, guidance_rule, static
from gmm_guidance.passes import Pass
from gmm_guidance.windows import Position, Window, as_window

Form = Literal["centred", "subtract", "subtract_eps"]
Redraw = Literal["step", "evaluation", "run"]


@guidance_rule
class DroppedBlocks:
    """Weak passes of the guided model itself, with blocks left out.

    Attributes:
        law: which blocks are dropped.
        num_masks: independent draws, or ``"all"`` for each possible set once (the exact
            expectation over masks; ``FixedCount`` only).
        redraw: how long a draw lasts: a ``"step"``, a single ``"evaluation"``, or the
            whole ``"run"``.
        per_sample: a draw for each sample instead of one for the batch. Samples are
            told apart by their global index, so the result does not depend on batches.
    """

    law: DropLaw = static()
    num_masks: int | Literal["all"] = static(default=1)
    redraw: Redraw = static(default="step")
    per_sample: bool = static(default=False)

    def draw(self, key, step, evaluation, num_blocks, sample_index):
        """Index sets of the dropped blocks, one ``[k]`` or ``[n, k]`` for each mask."""
        if num_blocks is None:
            raise TypeError(
                "this guidance rule drops blocks, but the denoiser has none: it is no "
                "BlockStack (num_blocks, embed, block, readout). Use a rule that drops "
                "none (CFG, AutoGuidance), or give the model these methods."
            )
        self.law.check(num_blocks)
        if self.num_masks == "all":
            if not isinstance(self.law, FixedCount):
                raise ValueError(
                    f'num_masks="all" enumerates the sets of FixedCount, got '
                    f"{type(self.law).__name__}; give a number of masks instead."
                )
            return tuple(jnp.asarray(m) for m in self.law.all_masks(num_blocks))
        if self.redraw != "run":
            key = jax.random.fold_in(key, step)
        if self.redraw == "evaluation":
            key = jax.random.fold_in(key, evaluation)

        def draw_one(mask_key):
            if not self.per_sample:
                return self.law.draw(mask_key, num_blocks)
            keys = jax.vmap(lambda i: jax.random.fold_in(mask_key, i))(sample_index)
            return jax.vmap(lambda k: self.law.draw(k, num_blocks))(keys)

        return tuple(
            draw_one(jax.random.fold_in(key, mask)) for mask in range(self.num_masks)
        )

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """One conditional pass for each mask."""
        return tuple(Pass(label, drop=drop) for drop in draws)

    def count(self, num_blocks: int) -> int:
        """Number of weak passes."""
        if self.num_masks == "all":
            return len(self.law.all_masks(num_blocks))  # type: ignore[attr-defined]
        return self.num_masks


@guidance_rule
class OtherModel:
    """A weak pass of another, worse denoiser (a pytree leaf or subtree of the rule)."""

    model: Any

    def draw(self, key, step, evaluation, num_blocks, sample_index):
        """Nothing is random."""
        return ()

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """One conditional pass of the other model."""
        return (Pass(label, model=self.model),)


@guidance_rule
class WeakPassGuidance(GuidanceRule):
    """The affine rule at one step: what S², skip-layer and AutoGuidance resolve to.

    ``scale`` is ``None`` where CFG is off, so that no unconditional pass is run.
    """

    scale: ArrayLike | None
    weak_scale: ArrayLike
    source: DroppedBlocks | OtherModel
    form: Form = static(default="centred")

    @property
    def needs_label(self) -> bool:  # type: ignore[override]
        """With CFG it does."""
        return self.scale is not None

    def draw(self, key, step, evaluation, num_blocks, sample_index):
        """The draws of the weak source."""
        return self.source.draw(key, step, evaluation, num_blocks, sample_index)

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """Conditional, unconditional unless CFG is off, weak ones."""
        uncond = () if self.scale is None else (Pass(None),)
        return (Pass(label), *uncond, *self.source.passes(label, draws))

    def combine(self, outputs, x, sigma, state):
        """The affine combination; weak rows are averaged."""
        guided = cond = outputs[0]
        first_weak = 1
        if self.scale is not None:
            guided = cond + (self.scale - 1.0) * (cond - outputs[1])
            first_weak = 2
        # The mean of differences, not the difference of means: exactly zero where the
        # weak passes equal the conditional one.
        if self.form == "centred":
            push = jnp.mean(cond[None] - outputs[first_weak:], axis=0)
        elif self.form == "subtract":
            push = -jnp.mean(outputs[first_weak:], axis=0)
        else:  # eps - w eps_weak, with eps = (x - D) / sigma
            push = jnp.mean(x[None] - outputs[first_weak:], axis=0)
        return guided + self.weak_scale * push, state


class _ResolvingRule(GuidanceRule):
    """A rule that is another one at each step; outside of a sampler, the one inside."""

    def resolved(self) -> GuidanceRule:
        """The rule inside the window."""
        raise NotImplementedError

    @property
    def needs_label(self) -> bool:  # type: ignore[override]
        """As the resolved rule."""
        return self.resolved().needs_label

    def at(self, position: Position) -> GuidanceRule:
        """The resolved rule."""
        return self.resolved()

    def draw(self, *args):
        """As the resolved rule."""
        return self.resolved().draw(*args)

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """As the resolved rule."""
        return self.resolved().passes(label, draws)

    def combine(self, outputs, x, sigma, state):
        """As the resolved rule."""
        return self.resolved().combine(outputs, x, sigma, state)


def _cfg_or_nothing(scale: ArrayLike) -> GuidanceRule:
    return Unguided() if as_float(scale) == 1.0 else CFG(scale)


@guidance_rule
class S2Guidance(_ResolvingRule):
    """S²-Guidance: CFG pushed away from the model with random blocks dropped.

    ``D_u + scale (D_c - D_u) + s2_scale (D_c - D_weak)``, Eq. 4 of Chen et al. (arXiv
    2508.12880v4); with ``num_masks`` > 1 the mean over as many weak passes, Naive S²
    (Eq. 3). Cost over CFG: less than half a pass for each mask of one block (0.6 of a
    pass for two), since a weak pass is shared with the conditional one up to its first
    dropped block.

    Args:
        scale: total CFG scale; 1 = off.
        s2_scale: the paper's omega; 0 = off.
        num_dropped: blocks dropped in each weak pass, at least 1.
        protected: blocks that are never dropped. The paper protects the first.
        window: where the S² term acts: ``(lo, hi)`` fractions of the steps, a
            ``StepWindow`` or ``SigmaWindow``, or ``None`` for always. CFG acts always.
        num_masks: weak passes per step, or ``"all"`` for the exact expectation.
        form: ``"centred"`` as above. ``"subtract"`` is the first versions'
            ``- s2_scale D_weak`` and ``"subtract_eps"`` the same in noise space; both
            shrink the prediction and are kept only to show what they do.
        law: a drop law in place of ``FixedCount(num_dropped, protected)``.
        redraw: a fresh mask each ``"step"`` (the paper), each ``"evaluation"``, or one
            for the ``"run"``.
        per_sample: a mask for each sample instead of one for the batch; saves nothing.

    Raises:
        ValueError: for a scale that is not finite, a count below 1, an unknown form,
            or a window outside ``[0, 1]``.
    """

    scale: ArrayLike
    s2_scale: ArrayLike = 0.25
    num_dropped: int = static(default=1)
    protected: tuple[int, ...] = static(default=(0,))
    window: Window | tuple[float, float] | None = static(default=(0.1, 0.9))
    num_masks: int | Literal["all"] = static(default=1)
    form: Form = static(default="centred")
    law: DropLaw | None = static(default=None)
    redraw: Redraw = static(default="step")
    per_sample: bool = static(default=False)

    def __post_init__(self):
        check_scale("scale", self.scale)
        check_scale("s2_scale", self.s2_scale)
        FixedCount(self.num_dropped, self.protected)
        as_window(self.window)
        if self.num_masks != "all" and self.num_masks < 1:
            raise ValueError(
                f'num_masks must be at least 1 or "all", got {self.num_masks}.'
            )
        _check_choice("form", self.form, ("centred", "subtract", "subtract_eps"))
        _check_choice("redraw", self.redraw, ("step", "evaluation", "run"))

    def resolved(self) -> GuidanceRule:
        """The rule inside the window."""
        if as_float(self.s2_scale) == 0.0:
            return _cfg_or_nothing(self.scale)
        law = self.law or FixedCount(self.num_dropped, self.protected)
        return WeakPassGuidance(
            scale=None if as_float(self.scale) == 1.0 else self.scale,
            weak_scale=self.s2_scale,
            source=DroppedBlocks(law, self.num_masks, self.redraw, self.per_sample),
            form=self.form,
        )

    def at(self, position: Position) -> GuidanceRule:
        """S² inside the window, CFG outside."""
        if as_window(self.window).contains(position):
            return self.resolved().at(position)
        return CFG(self.scale).at(position)


@guidance_rule
class SkipLayer(_ResolvingRule):
    """Skip-layer guidance: S² with listed blocks instead of random ones.

    ``D_u + scale (D_c - D_u) + skip_scale (D_c - D_skip)``, as released with Stable
    Diffusion 3.5 Medium (scale 4, skip_scale 2.5, blocks 7, 8, 9, steps 1-20 %).

    Args:
        scale: total CFG scale; 1 = off.
        blocks: indices of the blocks to skip.
        skip_scale: weight of the term; 0 = off.
        window: where the term acts, as in ``S2Guidance``.

    Raises:
        ValueError: for a scale that is not finite, no or repeated blocks, or a window
            outside ``[0, 1]``.
    """

    scale: ArrayLike
    blocks: tuple[int, ...] = static()
    skip_scale: ArrayLike = 2.5
    window: Window | tuple[float, float] | None = static(default=(0.01, 0.2))

    def __post_init__(self):
        check_scale("scale", self.scale)
        check_scale("skip_scale", self.skip_scale)
        FixedBlocks(self.blocks)
        as_window(self.window)

    def resolved(self) -> GuidanceRule:
        """The rule inside the window."""
        if as_float(self.skip_scale) == 0.0:
            return _cfg_or_nothing(self.scale)
        return WeakPassGuidance(
            scale=None if as_float(self.scale) == 1.0 else self.scale,
            weak_scale=self.skip_scale,
            source=DroppedBlocks(FixedBlocks(self.blocks)),
        )

    def at(self, position: Position) -> GuidanceRule:
        """Skip-layer inside the window, CFG outside."""
        if as_window(self.window).contains(position):
            return self.resolved().at(position)
        return CFG(self.scale).at(position)


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
    scale: ArrayLike = 2.0

    def __post_init__(self):
        check_scale("scale", self.scale)

    def at(self, position: Position) -> GuidanceRule:
        """``Unguided`` where the scale is known to be 1."""
        return Unguided() if as_float(self.scale) == 1.0 else self

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """Conditional, and the same of the worse model."""
        return Pass(label), Pass(label, model=self.weak_model)

    def combine(self, outputs, x, sigma, state):
        """Written around ``D_c``, to which a traced scale of 1 then leads exactly."""
        cond, weak = outputs
        return cond + (self.scale - 1.0) * (cond - weak), state


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if isinstance(value, str) and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
