"""Exact answers about rules: what a sampler makes of a mixture, without sampling."""

from gmm_guidance.exact.density import (
    Estimate,
    OutputDensity,
    entropy,
    kl_divergence,
    nll,
    output_density,
)
from gmm_guidance.exact.feynman_kac import WeightedSamples, repaired_sample
from gmm_guidance.exact.fokker_planck import fokker_planck_defect
from gmm_guidance.exact.jensen import jensen_gap, rule_bias
from gmm_guidance.exact.line_density import LineLaw, line_density, line_law
from gmm_guidance.exact.quantile_map import quantile_map
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
    cfg_sde_variance,
    tilted_moments,
)

__all__ = [
    "Estimate",
    "LineLaw",
    "ModeChange",
    "Moments",
    "OutputDensity",
    "ScaledOutputStack",
    "TiltedTarget",
    "WeightedSamples",
    "cfg_ode_moments",
    "cfg_sde_moments",
    "cfg_sde_variance",
    "entropy",
    "fokker_planck_defect",
    "jensen_gap",
    "kl_divergence",
    "line_density",
    "line_law",
    "nll",
    "output_density",
    "quantile_map",
    "repaired_sample",
    "rule_bias",
    "scaled_output_change",
    "tilted_moments",
]
