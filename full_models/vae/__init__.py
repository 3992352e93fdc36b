"""The decoder of Stable Diffusion's autoencoder: latents to images."""

from full_models.vae.chunks import decode_in_chunks
from full_models.vae.config import VAEConfig
from full_models.vae.decoder import VAEDecoder
from full_models.vae.load import load_vae

__all__ = ["VAEConfig", "VAEDecoder", "decode_in_chunks", "load_vae"]
