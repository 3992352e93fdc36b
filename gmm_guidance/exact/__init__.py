"""Exact results on guidance rules: densities and biases without sampling noise."""

from gmm_guidance.exact.density import (
    Estimate,
    OutputDensity,
    entropy,
    kl_divergence,
    nll,
    output_density,
)
from gmm_guidance.exact.feynman_kac import WeightedSamples, repaired_sample
from gmm_guidance.exact.grouped_tokens import GroupedTokens, Variances
from gmm_guidance.exact.line_density import (
    LineDistribution,
    line_density,
    line_distribution,
)
from gmm_guidance.exact.quantile_map import quantile_map
from gmm_guidance.exact.rule_bias import fokker_planck_defect, jensen_gap, rule_bias
from gmm_guidance.exact.scaled_output import (
    ModeChange,
    ScaledOutputStack,
    scaled_output_change,
)
from gmm_guidance.exact.tilted import TiltedTarget
from gmm_guidance.exact.two_gaussians import (
    Moments,
    cfg_ode_moments,
    cfg_sde_moments,
    tilted_moments,
)

__all__ = [
    "Estimate",
    "GroupedTokens",
    "LineDistribution",
    "ModeChange",
    "Moments",
    "OutputDensity",
    "ScaledOutputStack",
    "TiltedTarget",
    "Variances",
    "WeightedSamples",
    "cfg_ode_moments",
    "cfg_sde_moments",
    "entropy",
    "fokker_planck_defect",
    "jensen_gap",
    "kl_divergence",
    "line_density",
    "line_distribution",
    "nll",
    "output_density",
    "quantile_map",
    "repaired_sample",
    "rule_bias",
    "scaled_output_change",
    "tilted_moments",
]
