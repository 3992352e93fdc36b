"""Diffusion guidance beside the exact answer: mixtures, denoisers, rules, samplers."""

from importlib.metadata import version as _version

from gmm_guidance import metrics, presets
from gmm_guidance.block_drop import Bernoulli, FixedBlocks, FixedCount
from gmm_guidance.conversions import ProcessDenoiser
from gmm_guidance.cost import Cost, expected_cost
from gmm_guidance.ddpm import DDPM
from gmm_guidance.denoiser import BlockStack, Denoiser, ExactDenoiser
from gmm_guidance.exact import quantile_map
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
from gmm_guidance.networks import BlockMLP, NetworkConfig
from gmm_guidance.passes import Pass, evaluate_passes
from gmm_guidance.process import VE, VP, RectifiedFlow
from gmm_guidance.sampling import guided_sample
from gmm_guidance.schedule import CustomSchedule, DDPMSteps, FlowSteps, Karras
from gmm_guidance.solvers import DPMSolverPP2M, EDMStochastic, Euler, Heun
from gmm_guidance.trained import TrainedDenoiser, TrainingRun
from gmm_guidance.training import TrainingProgress, train_denoiser, train_denoisers
from gmm_guidance.training_config import TrainingConfig
from gmm_guidance.windows import SigmaWindow, StepWindow

__version__ = _version("gmm-guidance")

__all__ = [
    "AutoGuidance",
    "Bernoulli",
    "BlockMLP",
    "BlockStack",
    "CFG",
    "Cost",
    "CustomSchedule",
    "DDPM",
    "DDPMSteps",
    "DPMSolverPP2M",
    "Denoiser",
    "EDMStochastic",
    "Euler",
    "ExactDenoiser",
    "FixedBlocks",
    "FixedCount",
    "FlowSteps",
    "GaussianMixture",
    "GuidanceRule",
    "Heun",
    "Karras",
    "NetworkConfig",
    "Pass",
    "ProcessDenoiser",
    "RectifiedFlow",
    "S2Guidance",
    "SigmaWindow",
    "SkipLayer",
    "StepWindow",
    "TrainedDenoiser",
    "TrainingConfig",
    "TrainingProgress",
    "TrainingRun",
    "Unguided",
    "VE",
    "VP",
    "Windowed",
    "evaluate_passes",
    "expected_cost",
    "guidance_rule",
    "guided_sample",
    "metrics",
    "presets",
    "quantile_map",
    "static",
    "train_denoiser",
    "train_denoisers",
]
