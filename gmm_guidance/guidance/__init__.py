"""Guidance rules."""

from gmm_guidance.guidance.calibrated import CalibratedGuidance
from gmm_guidance.guidance.cfg import CFG, CFGPlusPlus
from gmm_guidance.guidance.listed import (
    PAG,
    SEG,
    STG,
    TPG,
    SkipLayer,
    WeakUnconditional,
)
from gmm_guidance.guidance.recombine import (
    ADG,
    FDG,
    MatrixCFG,
    Momentum,
    NegativeBase,
    NegativeCFG,
    NormMatchedCFG,
    Thresholded,
)
from gmm_guidance.guidance.registry import RULES, parse_rule
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
from gmm_guidance.guidance.weak import AutoGuidance, S2Guidance
from gmm_guidance.guidance.wrappers import GuidedChannels, Rescaled, Windowed

__all__ = [
    "ADG",
    "FDG",
    "MatrixCFG",
    "Momentum",
    "NegativeBase",
    "NegativeCFG",
    "NormMatchedCFG",
    "Thresholded",
    "RULES",
    "parse_rule",
    "APG",
    "CFG",
    "MAMBOG",
    "PAG",
    "SEG",
    "STG",
    "TCFG",
    "TPG",
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
    "WeakUnconditional",
    "Windowed",
    "guidance_rule",
    "static_field",
]
