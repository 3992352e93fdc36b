"""Guidance rules."""

from gmm_guidance.guidance.calibrated import CalibratedGuidance
from gmm_guidance.guidance.cfg import CFG, CFGPlusPlus
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    RuleWrapper,
    Unconditional,
    Unguided,
    UpdateRule,
    guidance_rule,
    static_field,
)
from gmm_guidance.guidance.scale import SigmaCurve
from gmm_guidance.guidance.updates import APG, MAMBOG, TCFG, CFGZeroStar
from gmm_guidance.guidance.weak import AutoGuidance, S2Guidance, SkipLayer
from gmm_guidance.guidance.wrappers import GuidedChannels, Rescaled, Windowed

__all__ = [
    "APG",
    "CFG",
    "MAMBOG",
    "TCFG",
    "AutoGuidance",
    "CFGPlusPlus",
    "CFGZeroStar",
    "CalibratedGuidance",
    "GuidanceRule",
    "GuidedChannels",
    "Rescaled",
    "RuleWrapper",
    "S2Guidance",
    "SigmaCurve",
    "SkipLayer",
    "Unconditional",
    "Unguided",
    "UpdateRule",
    "Windowed",
    "guidance_rule",
    "static_field",
]
