"""Decoders of autoencoders: from the latents of a diffusion model to images."""

from __future__ import annotations

import os

from flax import nnx

from full_models.models.autoencoder.config import KLConfig
from full_models.models.autoencoder.kl import KLDecoder
from full_models.models.autoencoder.wan import WanDecoder, WanVAEConfig
from full_models.models.autoencoder.wan_weights import LAYOUTS as WAN_LAYOUTS
from full_models.models.autoencoder.weights import LAYOUTS, PUBLISHED
from full_models.models.family import DType, Family
from full_models.weights.load import open_checkpoint

__all__ = [
    "AUTOENCODERS",
    "KLConfig",
    "KLDecoder",
    "WanDecoder",
    "WanVAEConfig",
    "load_autoencoder",
]

# Wan's first: the names of its layers are partly those of the other.
AUTOENCODERS = (
    Family(
        name="AutoencoderKLWan",
        config=WanVAEConfig,
        build=lambda config: WanDecoder(config, rngs=nnx.Rngs(0)),
        layouts=WAN_LAYOUTS,
        subfolder="vae",
    ),
    Family(
        name="AutoencoderKL",
        config=KLConfig,
        build=lambda config: KLDecoder(config, rngs=nnx.Rngs(0)),
        layouts=LAYOUTS,
        published=PUBLISHED,
        subfolder="vae",
    ),
)


def load_autoencoder(
    path: str | os.PathLike,
    *,
    config: str | KLConfig | WanVAEConfig | None = None,
    compute_dtype: DType = "float32",
) -> KLDecoder | WanDecoder:
    """Load the decoder of an autoencoder, of images or of videos.

    Every tensor of the decoder is used exactly once; those of the encoder are not read.

    Args:
        path: its folder, the folder of a pipeline with a subfolder ``vae``, or a file
            of weights with ``config.json`` next to it (without one, the shape is that
            of Stable Diffusion 1 and 2, or of Wan 2.1); or an original file, alone
            (``Wan2.1_VAE.pth``, ``ae.safetensors`` of Flux.1) or with the transformer
            (``sd3_medium.safetensors``).
        config: its shape, where the file alone does not tell; or ``"SD-VAE"``,
            ``"SD3-VAE"`` or ``"Flux.1-VAE"``, of which original files of 16 channels
            need one: they do not say how latents are scaled.
        compute_dtype: type of products; everything else is float32.

    Returns:
        The decoder; ``decode(latents)`` gives images or frames.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: if it is damaged, of another layout, or has tensors that are
            missing, unexpected or of another shape, which are listed.
    """
    families = AUTOENCODERS
    found = open_checkpoint(
        path, config, compute_dtype=compute_dtype, families=families
    )
    return found.load()
