"""The guidance rules that are compared, by name."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

import gmm_guidance as gg
from gmm_guidance._runtime.figure_style import COLORS as COLORS
from gmm_guidance.guidance.updates import ZeroVelocity

#: Rules of the paper's figures, in the order of figures and tables.
METHODS = ("unguided", "cfg", "autoguidance", "naive_s2", "s2")
#: And S² with a second omega.
COLUMNS = (*METHODS, "s2_strong")
RULE_TITLES = {
    "unguided": "no guidance",
    "cfg": "CFG",
    "autoguidance": "AutoGuidance",
    "skip_layer": "SkipLayer",
    "naive_s2": "Naive S²",
    "s2": "S²",
    "s2_strong": "S², larger ω",
    "s2_alone": "S² alone",
    "optimized": "optimized scale alone",
    "zero": "zero first step alone",
    "cfg_zero": "CFG-Zero*",
}
RULE_COLORS = COLORS | {
    "skip_layer": "#56b4e9",
    "s2_strong": "#6b8e23",
    "s2_alone": COLORS["naive_s2"],
    "optimized": COLORS["naive_s2"],
    "zero": COLORS["autoguidance"],
    "cfg_zero": COLORS["s2"],
}


def make_rule(
    name: str,
    scale: Any = 1.0,
    s2_scale: float = 0.0,
    *,
    weak_model: Any = None,
    num_dropped: int = 1,
    num_masks: Any = 4,
    window: Any = (0.1, 0.9),
    skipped: int = 1,
    zero_steps: int = 1,
) -> gg.GuidanceRule:
    """The rule of a name.

    Args:
        name: a key of ``RULE_TITLES``.
        scale: total scale of CFG or AutoGuidance, 1 = off; or the rule to which the
            terms of SkipLayer, Naive S² and S² are added.
        s2_scale: weight of the term of SkipLayer, Naive S² and S² (omega).
        weak_model: AutoGuidance's.
        num_dropped: blocks dropped in a weak pass.
        num_masks: weak passes of Naive S² at a step.
        window: where the terms of SkipLayer, Naive S² and S² act.
        skipped: the block that SkipLayer skips.
        zero_steps: first steps of zero velocity.
    """
    match name:
        case "unguided":
            return gg.Unguided()
        case "cfg":
            return gg.CFG(scale)
        case "autoguidance":
            return gg.AutoGuidance(weak_model, scale)
        case "skip_layer":
            return gg.SkipLayer(scale, (skipped,), s2_scale, window)
        case "naive_s2":
            return gg.S2Guidance(
                scale, s2_scale, num_dropped, window=window, num_masks=num_masks
            )
        case "s2" | "s2_strong":
            return gg.S2Guidance(scale, s2_scale, num_dropped, window=window)
        case "s2_alone":
            return gg.S2Guidance(1.0, s2_scale, num_dropped, window=window)
        case "optimized":
            return gg.CFGZeroStar(scale, 0)
        case "cfg_zero":
            return gg.CFGZeroStar(scale, zero_steps)
        case "zero":
            return ZeroFirst(gg.CFG(scale), zero_steps)
    raise ValueError(f"unknown rule {name!r}; known: {', '.join(RULE_TITLES)}.")


def exact_name(name: str) -> str:
    """The rule that a rule is with exact denoisers.

    The sub-network of a perfect network is perfect at best, and so is a perfect weak
    model: then their terms vanish, S² is CFG and AutoGuidance no guidance.
    """
    if name in ("unguided", "autoguidance", "s2_alone"):
        return "unguided"
    return "cfg" if name in ("skip_layer", "naive_s2", "s2", "s2_strong") else name


@gg.guidance_rule
class ZeroFirst(gg.RuleWrapper):
    """A rule after first steps of zero velocity, without CFG-Zero*'s other part."""

    rule: gg.GuidanceRule
    zero_steps: int = gg.static_field(default=1)

    @override
    def at(self, position: Any) -> gg.GuidanceRule:
        if position.step < self.zero_steps:
            return ZeroVelocity()
        return self.rule.at(position)
