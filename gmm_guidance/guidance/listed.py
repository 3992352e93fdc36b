"""Weak passes of listed blocks: skip layers, PAG, SEG, STG, TPG, and a weak base."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.typing import ArrayLike
from typing_extensions import override

from gmm_guidance.blocks.drop import DropDistribution, FixedBlocks
from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.blocks.perturbation import check_amount
from gmm_guidance.guidance.cfg import CFG
from gmm_guidance.guidance.draws import RandomDraws, Redraw
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    UpdateRule,
    guidance_rule,
    static_field,
)
from gmm_guidance.guidance.scale import Scale, check_scale
from gmm_guidance.guidance.weak import (
    WeakTerm,
    check_choice,
    check_hold,
    weak_pass,
    with_keys,
)
from gmm_guidance.guidance.windows import Position, Window, as_window


class ListedBlocks(WeakTerm):
    """Base of weak terms that perturb the blocks of their field ``blocks``."""

    blocks: tuple[int, ...]

    def __post_init__(self):
        check_scale("scale", self.scale)
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        weight = next(name for name in names if name.endswith("_scale"))
        check_scale(weight, getattr(self, weight))
        check_amount(self.kind, self.amount)
        check_hold(self.hold)
        FixedBlocks(self.blocks)
        as_window(self.window)

    @override
    def draw_masks(self, random: RandomDraws) -> Any:
        removes = self.kind == "drop" and self.amount is None
        return random.dropped_blocks(FixedBlocks(self.blocks, removes))


@guidance_rule
class SkipLayer(ListedBlocks):
    """Skip-layer guidance: S² with listed blocks instead of random ones.

    ``D_u + scale (D_c - D_u) + skip_scale (D_c - D_skip)``, as released with Stable
    Diffusion 3.5 Medium (scale 4, skip_scale 2.5, blocks 7, 8, 9, steps 1-20 %). All
    blocks from one on, ``range(f, num_blocks)``, are an early exit, whose weak pass
    costs nothing.

    Args:
        scale: total CFG scale, 1 = off; or a rule to which the term is added in place
            of CFG.
        blocks: indices of the blocks to skip.
        skip_scale: weight of the term; 0 = off.
        window: where the term acts, as in ``S2Guidance``.
        kind: ``"drop"`` skips whole blocks, ``"drop_attention"`` or ``"drop_mlp"`` one
            of their branches.
        amount: part that is left out, in [0, 1]; ``None`` leaves out all.
        hold: as in ``S2Guidance``.

    Raises:
        ValueError: for a scale that is not finite, no or repeated blocks, an amount out
            of range, or a window outside ``[0, 1]``; and, in a sampling run, for blocks
            or a kind that the model does not have, or a window that contains no
            evaluation. The other rules with listed blocks raise the same.
        TypeError: in a sampling run, if the denoiser has no blocks.
    """

    scale: Scale | GuidanceRule
    blocks: tuple[int, ...] = static_field()
    skip_scale: Scale = 2.5
    window: Window | tuple[float, float] | None = static_field(default=(0.01, 0.2))
    kind: str = static_field(default="drop")
    amount: ArrayLike | None = None
    hold: int = static_field(default=1)

    @property
    @override
    def weak_scale(self) -> Scale:
        return self.skip_scale


@guidance_rule
class PAG(ListedBlocks):
    """Perturbed-attention guidance: attention maps replaced by the identity. 0 = off.

    ``D_u + scale (D_c - D_u) + pag_scale (D_c - D_weak)``, where every token of the
    listed blocks attends to itself alone: Ahn et al. 2024 (arXiv 2403.17377), with 3.0
    beside CFG and 5.0 alone, always on. With an ``amount`` it is SoftPAG (arXiv
    2506.10978), in all heads. The authors' choice in SD3-medium is block 13 of 24.

    Args:
        scale: total CFG scale, 1 = off; or a rule to which the term is added.
        blocks: indices of the perturbed blocks.
        pag_scale: weight of the term; 0 = off.
        window: where the term acts, as in ``S2Guidance``.
        kind: ``"identity"``, or ``"identity_image"`` where text tokens take part in the
            attention and keep theirs.
        amount: part of the identity in the map, in [0, 1]; ``None`` is 1.
        hold: as in ``S2Guidance``.
    """

    scale: Scale | GuidanceRule
    blocks: tuple[int, ...] = static_field()
    pag_scale: Scale = 3.0
    window: Window | tuple[float, float] | None = static_field(default=None)
    kind: str = static_field(default="identity")
    amount: ArrayLike | None = None
    hold: int = static_field(default=1)

    @property
    @override
    def weak_scale(self) -> Scale:
        return self.pag_scale


@guidance_rule
class SEG(ListedBlocks):
    """Smoothed energy guidance: attention with blurred queries. 0 = off.

    ``D_u + scale (D_c - D_u) + seg_scale (D_c - D_weak)``: Hong 2024 (arXiv
    2408.00760), with 3.0. Blurring the queries blurs the attention logits over the
    tokens that ask.

    Args:
        scale: total CFG scale, 1 = off; or a rule to which the term is added.
        blocks: indices of the perturbed blocks.
        seg_scale: weight of the term; 0 = off.
        window: where the term acts, as in ``S2Guidance``.
        sigma: standard deviation of the Gaussian blur in tokens of the grid, 0 = off;
            ``None`` is infinite: all tokens ask with the mean query.
        hold: as in ``S2Guidance``.
    """

    scale: Scale | GuidanceRule
    blocks: tuple[int, ...] = static_field()
    seg_scale: Scale = 3.0
    window: Window | tuple[float, float] | None = static_field(default=None)
    sigma: ArrayLike | None = None
    hold: int = static_field(default=1)
    kind = "grid_blur"

    @property
    def amount(self) -> ArrayLike | None:  # type: ignore[override]
        """The blur, as the amount of ``Perturbation``."""
        return self.sigma

    @property
    @override
    def weak_scale(self) -> Scale:
        return self.seg_scale


@guidance_rule
class STG(ListedBlocks):
    """Spatiotemporal skip guidance, made for video. 0 = off.

    ``D_u + scale (D_c - D_u) + stg_scale (D_c - D_weak)``: Hyung et al. 2024 (arXiv
    2411.18664), with 1.0, always on, in one block past the middle: 34 of 48 in Mochi
    and 8 of 40 in Wan 14B dropped as a whole, 19 of 28 in LTX with the identity.

    Args:
        scale: total CFG scale, 1 = off; or a rule to which the term is added.
        blocks: indices of the perturbed blocks.
        stg_scale: weight of the term; 0 = off.
        window: where the term acts, as in ``S2Guidance``.
        kind: ``"drop"`` (the authors' code), ``"identity"`` (``values`` in LTX), or
            ``"drop_attention"``.
        hold: as in ``S2Guidance``.
    """

    scale: Scale | GuidanceRule
    blocks: tuple[int, ...] = static_field()
    stg_scale: Scale = 1.0
    window: Window | tuple[float, float] | None = static_field(default=None)
    kind: str = static_field(default="drop")
    hold: int = static_field(default=1)

    @property
    @override
    def weak_scale(self) -> Scale:
        return self.stg_scale


@guidance_rule
class TPG(ListedBlocks):
    """Token perturbation guidance: tokens permuted on entry into blocks. 0 = off.

    ``D_u + scale (D_c - D_u) + tpg_scale (D_c - D_weak)``: Rajabi et al. 2025 (arXiv
    2506.10036), with 3.0, always on. Each block and step has its own permutation, one
    for all samples. The term does not vanish at low noise: with many steps it needs a
    window that ends before.

    Args:
        scale: total CFG scale, 1 = off; or a rule to which the term is added.
        blocks: indices of the perturbed blocks.
        tpg_scale: weight of the term; 0 = off.
        window: where the term acts, as in ``S2Guidance``.
        amount: range of the moves, in [0, 1]; ``None`` permutes freely.
        redraw: a new permutation each ``"step"``, ``"evaluation"``, or ``"run"``.
        hold: as in ``S2Guidance``.
    """

    scale: Scale | GuidanceRule
    blocks: tuple[int, ...] = static_field()
    tpg_scale: Scale = 3.0
    window: Window | tuple[float, float] | None = static_field(default=None)
    amount: ArrayLike | None = None
    redraw: Redraw = static_field(default="step")
    hold: int = static_field(default=1)
    kind = "shuffle"

    @property
    @override
    def weak_scale(self) -> Scale:
        return self.tpg_scale


@guidance_rule
class WeakUnconditional(UpdateRule):
    """CFG whose unconditional pass is weakened: ``D_uw + scale (D_c - D_uw)``. 1 = off.

    Skip-layer guidance in two passes, as practiced with Wan 2.1 (blocks 8 and 9);
    ``CFG + (scale - 1) (D_u - D_uw)``, cheaper than CFG by what the perturbation
    saves. With a random ``distribution`` it is S² in the unconditional pass.

    Args:
        scale: total scale; 1 = off.
        distribution: the perturbed blocks, ``(8, 9)``; or their distribution,
            ``drop.FixedCount(1)``.
        window: where the unconditional pass is weak, as in ``S2Guidance``; CFG outside.
        kind: kind of the perturbation, see ``Perturbation``.
        amount: its strength; ``None`` is the full one.
        redraw: how long a random set lasts, as in ``S2Guidance``.

    Raises:
        ValueError: for a scale that is not finite, an amount out of range, or a window
            outside ``[0, 1]``; and, in a sampling run, for a distribution or kind that
            does not fit the model, or a window that contains no evaluation.
        TypeError: in a sampling run, if the denoiser has no blocks.
    """

    scale: Scale
    distribution: DropDistribution | tuple[int, ...] = static_field()
    window: Window | tuple[float, float] | None = static_field(default=None)
    kind: str = static_field(default="drop")
    amount: ArrayLike | None = None
    redraw: Redraw = static_field(default="step")

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.distribution, tuple):
            FixedBlocks(self.distribution)
        check_amount(self.kind, self.amount)
        as_window(self.window)
        check_choice("redraw", self.redraw, ("step", "evaluation", "run"))

    @override
    def at(self, position: Position) -> GuidanceRule:
        if not position.is_inside(self.window, self):
            return CFG(self.scale).at(position)
        rule = super().at(position)
        return dataclasses.replace(self, window=None) if rule is self else rule

    @override
    def without_weak_passes(self) -> GuidanceRule:
        return CFG(self.scale)

    @override
    def draw(self, random: RandomDraws) -> Any:
        blocks = self.distribution
        distribution = FixedBlocks(blocks) if isinstance(blocks, tuple) else blocks
        masks = random.dropped_blocks(distribution, 1, self.redraw)
        return with_keys(masks, self.kind, random, self.redraw)[0]

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        return weak_pass(None, self.kind, self.amount, draws), Pass(label)

    @override
    def update(self, uncond, cond, x, sigma, state):
        return cond - uncond, state
