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
from full_models.models.wan.config import WanConfig
from full_models.models.wan.network import Wan
from full_models.models.wan.pipeline import wan_schedule
from full_models.weights.export import export_weights
from full_models.weights.load import load_weights, model_names

__all__ = [
    "DiT",
    "DiTConfig",
    "KLConfig",
    "KLDecoder",
    "Wan",
    "WanConfig",
    "WanDecoder",
    "WanVAEConfig",
    "as_stack",
    "export_weights",
    "load_autoencoder",
    "load_weights",
    "model_names",
    "wan_schedule",
]
