"""Decoding many latents in the memory of a few."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from full_models.generation.images import to_uint8
from full_models.models.autoencoder.kl import VAEDecoder


@jax.jit
def _decode(decoder: VAEDecoder, latents: jax.Array) -> jax.Array:
    return decoder.decode(latents)


def decode_in_chunks(
    decoder: VAEDecoder,
    latents: np.ndarray,
    chunk_size: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Images of latents as bytes: uint8 ``[n, 8 h, 8 w, 3]``, on the host.

    The last chunk is filled up, so that one program serves all; the images do not
    depend on the size of chunks (up to rounding before they become bytes).

    Args:
        decoder: the decoder.
        latents: ``[n, h, w, C]`` as the diffusion model has them.
        chunk_size: latents at once, at least 1.
        progress: called with the number of images done, and of all.

    Raises:
        ValueError: for a chunk size below 1, or latents of another shape.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
    latents = np.asarray(latents)
    images = np.empty(decoder.image_shape(latents.shape), np.uint8)
    total = len(images)
    size = min(chunk_size, max(total, 1))
    for start in range(0, total, size):
        chunk = latents[start : start + size]
        count = len(chunk)
        if count < size:
            filling = np.zeros((size - count, *chunk.shape[1:]), chunk.dtype)
            chunk = np.concatenate([chunk, filling])
        decoded = np.asarray(_decode(decoder, chunk))
        images[start : start + count] = to_uint8(decoded[:count])
        if progress is not None:
            progress(start + count, total)
    return images
