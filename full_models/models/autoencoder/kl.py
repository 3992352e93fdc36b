"""``VAEDecoder``: from a latent of the diffusion model to an image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from full_models.models.autoencoder.config import VAEConfig
from full_models.models.autoencoder.layers import (
    Conv,
    GroupNorm,
    ResidualLayer,
    SpatialAttention,
    upsample,
)


class MidBlock(nnx.Module):
    """Two residual layers around attention."""

    def __init__(self, config: VAEConfig, channels: int, *, rngs: nnx.Rngs):
        groups, dtype = config.norm_num_groups, config.compute_dtype
        self.first = ResidualLayer(channels, channels, groups, dtype, rngs=rngs)
        self.attention = (
            SpatialAttention(channels, groups, dtype, rngs=rngs)
            if config.mid_block_add_attention
            else None
        )
        self.second = ResidualLayer(channels, channels, groups, dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same shape."""
        x = self.first(x)
        if self.attention is not None:
            x = self.attention(x)
        return self.second(x)


class UpBlock(nnx.Module):
    """Residual layers, then twice the size (but for the last block)."""

    def __init__(
        self, config: VAEConfig, inner: int, outer: int, doubles: bool, *, rngs
    ):
        groups, dtype = config.norm_num_groups, config.compute_dtype
        widths = [inner] + [outer] * config.layers_per_block
        self.layers = nnx.List(
            ResidualLayer(width, outer, groups, dtype, rngs=rngs) for width in widths
        )
        self.conv = Conv(outer, outer, 3, dtype, rngs=rngs) if doubles else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, H, W, inner]`` to ``[n, 2 H, 2 W, outer]``."""
        for layer in self.layers:
            x = layer(x)
        return x if self.conv is None else self.conv(upsample(x))


class VAEDecoder(nnx.Module):
    """The decoder of Stable Diffusion's ``AutoencoderKL``.

    Rombach et al. 2022 (arXiv 2112.10752).

    Args:
        config: the shape.
        rngs: Flax random streams.
    """

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype, channels = config.compute_dtype, config.latent_channels
        outwards = config.block_out_channels[::-1]
        self.post_quant_conv = (
            Conv(channels, channels, 1, dtype, rngs=rngs)
            if config.use_post_quant_conv
            else None
        )
        self.conv_in = Conv(channels, outwards[0], 3, dtype, rngs=rngs)
        self.mid = MidBlock(config, outwards[0], rngs=rngs)
        last = len(outwards) - 1
        self.blocks = nnx.List(
            UpBlock(config, outwards[max(i - 1, 0)], width, i < last, rngs=rngs)
            for i, width in enumerate(outwards)
        )
        self.norm_out = GroupNorm(outwards[-1], config.norm_num_groups)
        self.conv_out = Conv(outwards[-1], config.out_channels, 3, dtype, rngs=rngs)

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Shape of the images of latents of a shape.

        Raises:
            ValueError: for another number of axes or channels.
        """
        channels = self.config.latent_channels
        if len(shape) != 4 or shape[-1] != channels:
            raise ValueError(
                f"latents must have shape [n, h, w, {channels}], channels last, got "
                f"{shape}."
            )
        n, height, width, _ = shape
        factor = self.config.upscaling
        return n, factor * height, factor * width, self.config.out_channels

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images of latents.

        Args:
            latents: ``[n, h, w, C]`` as the diffusion model has them, scaled.

        Returns:
            ``[n, 8 h, 8 w, 3]``, float32, about within [-1, 1].

        Raises:
            ValueError: for another number of axes or channels.
        """
        self.image_shape(latents.shape)
        x = latents.astype(jnp.float32) / self.config.scaling_factor
        if self.config.shift_factor is not None:
            x = x + self.config.shift_factor
        if self.post_quant_conv is not None:
            x = self.post_quant_conv(x)
        x = self.mid(self.conv_in(x))
        for block in self.blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))
