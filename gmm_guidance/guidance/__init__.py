"""Guidance rules, one file for each family."""

from gmm_guidance.guidance.cfg import CFG, Windowed
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    Unconditional,
    Unguided,
    guidance_rule,
    static,
)
from gmm_guidance.guidance.weak import AutoGuidance, S2Guidance, SkipLayer

__all__ = [
    "CFG",
    "AutoGuidance",
    "GuidanceRule",
    "S2Guidance",
    "SkipLayer",
    "Unconditional",
    "Unguided",
    "Windowed",
    "guidance_rule",
    "static",
]
