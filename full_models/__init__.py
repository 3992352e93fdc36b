"""Diffusion transformers with droppable blocks: DiT and SiT in Flax."""

from full_models.config import DiTConfig, model_names
from full_models.dit import DiT, WithVariance

__all__ = ["DiT", "DiTConfig", "WithVariance", "model_names"]
