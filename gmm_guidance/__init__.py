"""Diffusion guidance beside the exact answer: mixtures, denoisers, rules, samplers."""

from gmm_guidance import presets
from gmm_guidance.block_drop import Bernoulli, FixedBlocks, FixedCount
from gmm_guidance.cost import Cost, expected_cost
from gmm_guidance.denoiser import BlockStack, Denoiser, ExactDenoiser
from gmm_guidance.guidance import (
    CFG,
    AutoGuidance,
    GuidanceRule,
    S2Guidance,
    SkipLayer,
    Unguided,
    Windowed,
    guidance_rule,
    static,
)
from gmm_guidance.mixture import GaussianMixture
from gmm_guidance.passes import Pass, evaluate_passes
from gmm_guidance.sampling import guided_sample
from gmm_guidance.schedule import (
    DDPMSteps,
    FlowSteps,
    Karras,
    SigmaWindow,
    StepWindow,
)

__all__ = [
    "CFG",
    "AutoGuidance",
    "Bernoulli",
    "BlockStack",
    "Cost",
    "DDPMSteps",
    "Denoiser",
    "ExactDenoiser",
    "FixedBlocks",
    "FixedCount",
    "FlowSteps",
    "GaussianMixture",
    "GuidanceRule",
    "Karras",
    "Pass",
    "S2Guidance",
    "SigmaWindow",
    "SkipLayer",
    "StepWindow",
    "Unguided",
    "Windowed",
    "evaluate_passes",
    "expected_cost",
    "guidance_rule",
    "guided_sample",
    "presets",
    "static",
]
