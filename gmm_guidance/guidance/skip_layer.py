"""Skip-layer guidance: away from the network with listed blocks dropped."""

from __future__ import annotations

from gmm_guidance.blocks.drop import FixedBlocks
from gmm_guidance.guidance.cfg import Scale, check_scale
from gmm_guidance.guidance.rule import GuidanceRule, guidance_rule, static
from gmm_guidance.guidance.weak import Form, WindowedTerm
from gmm_guidance.guidance.weak_source import DroppedBlocks
from gmm_guidance.guidance.windows import Window, as_window


@guidance_rule
class SkipLayer(WindowedTerm):
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
            outside ``[0, 1]``.
    """

    scale: Scale | GuidanceRule
    blocks: tuple[int, ...] = static()
    skip_scale: Scale = 2.5
    window: Window | tuple[float, float] | None = static(default=(0.01, 0.2))

    def __post_init__(self):
        check_scale("scale", self.scale)
        check_scale("skip_scale", self.skip_scale)
        FixedBlocks(self.blocks)
        as_window(self.window)

    def term(self) -> tuple[Scale, DroppedBlocks, Form]:
        """Weight, source and form of the term."""
        return self.skip_scale, DroppedBlocks(FixedBlocks(self.blocks)), "centred"
