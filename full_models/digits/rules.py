"""The guidance rules that are compared on the digits, and their grids of settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gmm_guidance as gg

UNGUIDED = "no guidance"
CFG = "CFG"
AUTOGUIDANCE = "AutoGuidance"
SKIP_LAYER = "SkipLayer"
NAIVE_S2 = "Naive S²"
S2 = "S²"
#: All rules, in the order of figures and tables.
RULES = (UNGUIDED, CFG, AUTOGUIDANCE, SKIP_LAYER, NAIVE_S2, S2)
#: Rules that add a weighted term to CFG.
WITH_TERM = (SKIP_LAYER, NAIVE_S2, S2)


class Setting(NamedTuple):
    """One rule with its numbers.

    Attributes:
        rule: one of ``RULES``.
        scale: total scale, of CFG or of AutoGuidance; 1 = off.
        weight: of the term that the rule adds to CFG, 0 for rules without one.
    """

    rule: str
    scale: float = 1.0
    weight: float = 0.0

    def __str__(self) -> str:
        weight = f", weight {self.weight:g}" if self.weight else ""
        return f"{self.rule}, scale {self.scale:g}{weight}"


def settings(
    scales: Sequence[float], weights: Sequence[float], has_weak_network: bool
) -> dict[str, list[Setting]]:
    """The settings of each rule.

    Scale 1 of CFG and of AutoGuidance is no guidance, the same setting for both.

    Args:
        scales: total scales, 1 among them.
        weights: of the terms of SkipLayer, Naive S² and S²; > 0.
        has_weak_network: whether AutoGuidance has a worse network to go away from.
    """
    off = Setting(UNGUIDED)
    grid = {UNGUIDED: [off]}
    for rule in (CFG, AUTOGUIDANCE) if has_weak_network else (CFG,):
        grid[rule] = [off if s == 1.0 else Setting(rule, s) for s in scales]
    for rule in WITH_TERM:
        grid[rule] = [Setting(rule, s, w) for s in scales for w in weights]
    return grid


def build(
    setting: Setting, depth: int, num_masks: int, weak_network: Any = None
) -> gg.GuidanceRule:
    """The rule of a setting, for a network of ``depth`` blocks.

    At scale 1 the terms are added to the conditional network alone, without a pass that
    counts for nothing. All terms act in the window of S²; SkipLayer skips the middle
    block.
    """
    base: Any = gg.Unguided() if setting.scale == 1.0 else setting.scale
    if setting.rule == UNGUIDED:
        return gg.Unguided()
    if setting.rule == CFG:
        return gg.CFG(setting.scale)
    if setting.rule == AUTOGUIDANCE:
        return gg.AutoGuidance(weak_network, setting.scale)
    if setting.rule == SKIP_LAYER:
        window = gg.S2Guidance(1.0).window
        return gg.SkipLayer(base, (depth // 2,), setting.weight, window)
    masks = num_masks if setting.rule == NAIVE_S2 else 1
    return gg.S2Guidance(base, setting.weight, num_masks=masks)
