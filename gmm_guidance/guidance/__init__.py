"""Guidance rules, one file for each family."""

from gmm_guidance.guidance.autoguidance import AutoGuidance
from gmm_guidance.guidance.calibrated import CalibratedGuidance
from gmm_guidance.guidance.cfg import CFG, Windowed
from gmm_guidance.guidance.cfg_plus_plus import CFGPlusPlus
from gmm_guidance.guidance.cfg_zero import CFGZeroStar
from gmm_guidance.guidance.channels import GuidedChannels
from gmm_guidance.guidance.features import feature_name
from gmm_guidance.guidance.mambo import MAMBOG
from gmm_guidance.guidance.projected import APG, TCFG
from gmm_guidance.guidance.rescaled import Rescaled
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    Renoised,
    Unconditional,
    Unguided,
    guidance_rule,
    static,
)
from gmm_guidance.guidance.s2 import S2Guidance
from gmm_guidance.guidance.scale import SigmaCurve
from gmm_guidance.guidance.skip_layer import SkipLayer

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
    "Renoised",
    "Rescaled",
    "S2Guidance",
    "SigmaCurve",
    "SkipLayer",
    "Unconditional",
    "Unguided",
    "Windowed",
    "feature_name",
    "guidance_rule",
    "static",
]
