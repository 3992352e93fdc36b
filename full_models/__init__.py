"""Diffusion transformers with droppable blocks: DiT and SiT in Flax."""

from full_models.models.autoencoder import (
    VAEConfig,
    VAEDecoder,
    decode_in_chunks,
    load_vae,
)
from full_models.models.dit.config import DiTConfig, model_names
from full_models.models.dit.network import DiT, WithVariance
from full_models.weights.export import export_weights
from full_models.weights.load import load_weights

__all__ = [
    "DiT",
    "DiTConfig",
    "VAEConfig",
    "VAEDecoder",
    "WithVariance",
    "decode_in_chunks",
    "export_weights",
    "load_vae",
    "load_weights",
    "model_names",
]
