"""Diffusion guidance with exact references: mixtures, denoisers, rules, samplers."""

import importlib as _importlib
from importlib.metadata import version as _version
from typing import Any as _Any

from gmm_guidance import exact, metrics, sharding
from gmm_guidance.analysis.calibrate import calibrate
from gmm_guidance.analysis.calibration import Calibration
from gmm_guidance.analysis.error_budget import (
    Decomposition,
    ErrorBudget,
    decompose,
    error_budget,
)
from gmm_guidance.analysis.weak_pass_effect import WeakPassEffect, weak_pass_effect
from gmm_guidance.analysis.weak_pass_profile import WeakPassProfile
from gmm_guidance.blocks import drop
from gmm_guidance.blocks.block_list import stack_blocks
from gmm_guidance.blocks.check_stack import StackCheck, check_stack
from gmm_guidance.blocks.evaluate import Pass, evaluate_passes
from gmm_guidance.blocks.perturbation import Perturbation
from gmm_guidance.blocks.process_stack import ProcessStack
from gmm_guidance.blocks.stack import Backbone, BlockStack
from gmm_guidance.diffusion.denoiser import Denoiser, Renoised
from gmm_guidance.diffusion.parameterization import ScaledPrediction
from gmm_guidance.diffusion.process import DDPM, VE, VP, RectifiedFlow
from gmm_guidance.diffusion.schedule import (
    CustomSchedule,
    DDPMSteps,
    FlowSteps,
    Karras,
    default_schedule,
)
from gmm_guidance.exact import quantile_map
from gmm_guidance.guidance import (
    ADG,
    APG,
    CFG,
    FDG,
    MAMBOG,
    PAG,
    SEG,
    STG,
    TCFG,
    TPG,
    AutoGuidance,
    CalibratedGuidance,
    CFGPlusPlus,
    CFGZeroStar,
    GuidanceRule,
    GuidedChannels,
    MatrixCFG,
    Momentum,
    NegativeBase,
    NegativeCFG,
    NormMatchedCFG,
    Rescaled,
    RuleWrapper,
    S2Guidance,
    SigmaCurve,
    SkipLayer,
    Thresholded,
    Unguided,
    UpdateRule,
    WeakUnconditional,
    Windowed,
    guidance_rule,
    static_field,
)
from gmm_guidance.guidance.windows import SigmaWindow, StepWindow
from gmm_guidance.metrics.comparison import Comparison, compare
from gmm_guidance.mixture import presets
from gmm_guidance.mixture.exact_denoiser import ExactDenoiser
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.sampling.cost import (
    Cost,
    CostTable,
    MeasuredCost,
    expected_cost,
    measure_cost,
)
from gmm_guidance.sampling.guided_denoise import guided_denoise, guided_score
from gmm_guidance.sampling.record import Sampled
from gmm_guidance.sampling.sample import guided_sample
from gmm_guidance.sampling.solvers import (
    Ancestral,
    DPMSolverPP2M,
    EDMStochastic,
    Euler,
    Heun,
    UniPC,
)
from gmm_guidance.sharding import MeshConfig
from gmm_guidance.training.block_mlp import BlockMLP, NetworkConfig
from gmm_guidance.training.config import TrainingConfig
from gmm_guidance.training.fit import Fit, FitConfig, TrainingProgress
from gmm_guidance.training.loss import denoising_loss
from gmm_guidance.training.own_model import train
from gmm_guidance.training.train import train_denoiser, train_denoisers
from gmm_guidance.training.trained import TrainedDenoiser, TrainingRun

__version__ = _version("gmm-guidance")


def __getattr__(name: str) -> _Any:
    """``gmm_guidance.plot`` is imported on use, since Matplotlib takes a second."""
    if name == "plot":
        return _importlib.import_module("gmm_guidance.plot")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names only."""
    return sorted(__all__)


__all__ = [
    "ADG",
    "FDG",
    "MatrixCFG",
    "Momentum",
    "NegativeBase",
    "NegativeCFG",
    "NormMatchedCFG",
    "Thresholded",
    "APG",
    "Ancestral",
    "AutoGuidance",
    "Backbone",
    "BlockMLP",
    "BlockStack",
    "CFG",
    "CFGPlusPlus",
    "CFGZeroStar",
    "CalibratedGuidance",
    "Calibration",
    "Comparison",
    "Cost",
    "CostTable",
    "CustomSchedule",
    "DDPM",
    "DDPMSteps",
    "DPMSolverPP2M",
    "Decomposition",
    "Denoiser",
    "ScaledPrediction",
    "EDMStochastic",
    "ErrorBudget",
    "Euler",
    "ExactDenoiser",
    "Fit",
    "FitConfig",
    "FlowSteps",
    "GaussianMixture",
    "GuidanceRule",
    "GuidedChannels",
    "Heun",
    "Karras",
    "MAMBOG",
    "MeasuredCost",
    "MeshConfig",
    "NetworkConfig",
    "PAG",
    "Pass",
    "Perturbation",
    "ProcessStack",
    "RectifiedFlow",
    "Renoised",
    "Rescaled",
    "RuleWrapper",
    "S2Guidance",
    "SEG",
    "STG",
    "Sampled",
    "SigmaCurve",
    "SigmaWindow",
    "SkipLayer",
    "StackCheck",
    "StepWindow",
    "TCFG",
    "TPG",
    "TrainedDenoiser",
    "TrainingConfig",
    "TrainingProgress",
    "TrainingRun",
    "Unguided",
    "UniPC",
    "UpdateRule",
    "VE",
    "VP",
    "WeakPassEffect",
    "WeakPassProfile",
    "WeakUnconditional",
    "Windowed",
    "calibrate",
    "check_stack",
    "compare",
    "decompose",
    "default_schedule",
    "denoising_loss",
    "drop",
    "error_budget",
    "evaluate_passes",
    "exact",
    "expected_cost",
    "guidance_rule",
    "guided_denoise",
    "guided_sample",
    "guided_score",
    "measure_cost",
    "metrics",
    "plot",
    "presets",
    "quantile_map",
    "sharding",
    "stack_blocks",
    "static_field",
    "train",
    "train_denoiser",
    "train_denoisers",
    "weak_pass_effect",
]
