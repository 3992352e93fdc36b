"""S²-Guidance: away from the network with random blocks dropped."""

from __future__ import annotations

from typing import Any, Literal

from gmm_guidance.blocks.drop import DropLaw, FixedCount
from gmm_guidance.guidance.cfg import Scale, check_scale
from gmm_guidance.guidance.rule import GuidanceRule, guidance_rule, static
from gmm_guidance.guidance.weak import Form, WindowedTerm
from gmm_guidance.guidance.weak_source import DroppedBlocks, Redraw
from gmm_guidance.guidance.windows import Window, as_window


@guidance_rule
class S2Guidance(WindowedTerm):
    """S²-Guidance: a rule pushed away from the model with random blocks dropped.

    ``D_u + scale (D_c - D_u) + s2_scale (D_c - D_weak)``, Eq. 4 of Chen et al. (arXiv
    2508.12880v4); with ``num_masks`` > 1 the mean over as many weak passes, Naive S²
    (Eq. 3). Cost over CFG: less than half a pass for each mask of one block (0.6 of a
    pass for two), since a weak pass is shared with the conditional one up to its first
    dropped block.

    Args:
        scale: total CFG scale, 1 = off; or a rule to which the term is added in place
            of CFG, ``APG(4.0)`` say. Where that rule runs no network, nothing is added.
        s2_scale: the paper's omega; 0 = off.
        num_dropped: blocks dropped in each weak pass, at least 1.
        protected: blocks that are never dropped. The paper protects the first.
        window: where the S² term acts: ``(lo, hi)`` fractions of the steps, a
            ``StepWindow`` or ``SigmaWindow``, or ``None`` for always. The rule to which
            it is added acts always.
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

    scale: Scale | GuidanceRule
    s2_scale: Scale = 0.25
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

    def term(self) -> tuple[Scale, DroppedBlocks, Form]:
        """Weight, source and form of the term."""
        law = self.law or FixedCount(self.num_dropped, self.protected)
        source = DroppedBlocks(law, self.num_masks, self.redraw, self.per_sample)
        return self.s2_scale, source, self.form


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if isinstance(value, str) and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
