"""The decoder of Stable Diffusion's autoencoder: latents to images."""

from full_models.models.autoencoder.chunks import decode_in_chunks
from full_models.models.autoencoder.config import VAEConfig
from full_models.models.autoencoder.kl import VAEDecoder
from full_models.models.autoencoder.weights import load_vae

__all__ = ["VAEConfig", "VAEDecoder", "decode_in_chunks", "load_vae"]
