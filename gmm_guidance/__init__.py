"""Diffusion guidance beside the exact answer: mixtures, denoisers, rules, samplers."""

from importlib.metadata import version as _version

from gmm_guidance import exact, metrics, presets, sharding
from gmm_guidance.ancestral import Ancestral
from gmm_guidance.block_drop import Bernoulli, FixedBlocks, FixedCount
from gmm_guidance.calibration import Calibration, calibrate
from gmm_guidance.conversions import ProcessDenoiser
from gmm_guidance.cost import Cost, expected_cost
from gmm_guidance.ddpm import DDPM
from gmm_guidance.decomposition import (
    Decomposition,
    ErrorBudget,
    decompose,
    error_budget,
)
from gmm_guidance.denoiser import BlockStack, Denoiser, ExactDenoiser
from gmm_guidance.exact import quantile_map
from gmm_guidance.guidance import (
    APG,
    CFG,
    MAMBOG,
    TCFG,
    AutoGuidance,
    CalibratedGuidance,
    CFGPlusPlus,
    CFGZeroStar,
    GuidanceRule,
    GuidedChannels,
    Renoised,
    Rescaled,
    S2Guidance,
    SigmaCurve,
    SkipLayer,
    Unguided,
    Windowed,
    feature_name,
    guidance_rule,
    static,
)
from gmm_guidance.guided import guided_denoise
from gmm_guidance.mixture import GaussianMixture
from gmm_guidance.networks import BlockMLP, NetworkConfig
from gmm_guidance.passes import Pass, evaluate_passes
from gmm_guidance.process import VE, VP, RectifiedFlow
from gmm_guidance.sampling import guided_sample
from gmm_guidance.schedule import CustomSchedule, DDPMSteps, FlowSteps, Karras
from gmm_guidance.sharding import MeshConfig
from gmm_guidance.solvers import DPMSolverPP2M, EDMStochastic, Euler, Heun
from gmm_guidance.trained import TrainedDenoiser, TrainingRun
from gmm_guidance.training import TrainingProgress, train_denoiser, train_denoisers
from gmm_guidance.training_config import TrainingConfig
from gmm_guidance.windows import SigmaWindow, StepWindow

__version__ = _version("gmm-guidance")

__all__ = [
    "APG",
    "Ancestral",
    "AutoGuidance",
    "Bernoulli",
    "BlockMLP",
    "BlockStack",
    "CFG",
    "CFGPlusPlus",
    "CFGZeroStar",
    "CalibratedGuidance",
    "Calibration",
    "Cost",
    "CustomSchedule",
    "DDPM",
    "DDPMSteps",
    "DPMSolverPP2M",
    "Decomposition",
    "Denoiser",
    "EDMStochastic",
    "ErrorBudget",
    "Euler",
    "ExactDenoiser",
    "FixedBlocks",
    "FixedCount",
    "FlowSteps",
    "GaussianMixture",
    "GuidanceRule",
    "GuidedChannels",
    "Heun",
    "Karras",
    "MAMBOG",
    "MeshConfig",
    "NetworkConfig",
    "Pass",
    "ProcessDenoiser",
    "RectifiedFlow",
    "Renoised",
    "Rescaled",
    "S2Guidance",
    "SigmaCurve",
    "SigmaWindow",
    "SkipLayer",
    "StepWindow",
    "TCFG",
    "TrainedDenoiser",
    "TrainingConfig",
    "TrainingProgress",
    "TrainingRun",
    "Unguided",
    "VE",
    "VP",
    "Windowed",
    "calibrate",
    "decompose",
    "error_budget",
    "evaluate_passes",
    "exact",
    "expected_cost",
    "feature_name",
    "guidance_rule",
    "guided_denoise",
    "guided_sample",
    "metrics",
    "presets",
    "quantile_map",
    "sharding",
    "static",
    "train_denoiser",
    "train_denoisers",
]
