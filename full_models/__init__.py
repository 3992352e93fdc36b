"""Large diffusion models with droppable blocks: families, weights and sampling."""

from full_models.models.autoencoder import (
    KLConfig,
    KLDecoder,
    WanDecoder,
    WanVAEConfig,
    load_autoencoder,
)
from full_models.models.dit.config import DiTConfig
from full_models.models.dit.network import DiT
from full_models.models.family import as_stack
from full_models.models.flux.config import FluxConfig
from full_models.models.flux.network import Flux
from full_models.models.flux.pipeline import flux_schedule
from full_models.models.sd3.config import SD3Config
from full_models.models.sd3.network import SD3
from full_models.models.sd3.pipeline import sd3_schedule
from full_models.models.wan.config import WanConfig
from full_models.models.wan.network import Wan
from full_models.models.wan.pipeline import wan_schedule
from full_models.prompts.prompts import Prompts, load_prompts
from full_models.weights.export import export_weights
from full_models.weights.load import load_weights, model_names

__all__ = [
    "SD3",
    "DiT",
    "DiTConfig",
    "Flux",
    "FluxConfig",
    "KLConfig",
    "KLDecoder",
    "Wan",
    "WanConfig",
    "WanDecoder",
    "WanVAEConfig",
    "Prompts",
    "SD3Config",
    "as_stack",
    "export_weights",
    "flux_schedule",
    "load_autoencoder",
    "load_prompts",
    "load_weights",
    "model_names",
    "wan_schedule",
    "sd3_schedule",
]
