"""``KLDecoder``: the decoder of Stable Diffusion's autoencoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from full_models.models.attention import attention
from full_models.models.autoencoder.config import KLConfig
from full_models.models.layers import Conv, GroupNorm, Linear


class KLDecoder(nnx.Module):
    """The decoder of ``AutoencoderKL``: from latents to images.

    Rombach et al. 2022 (arXiv 2112.10752). Products are computed in
    ``config.compute_dtype``, everything else in float32.

    Args:
        config: the shape.
        rngs: Flax random streams.
    """

    def __init__(self, config: KLConfig, *, rngs: nnx.Rngs):
        self.config = config
        channels, outwards = config.latent_channels, config.block_out_channels[::-1]
        last = len(outwards) - 1
        self.post_quant_conv = (
            _conv(config, channels, channels, 1, rngs)
            if config.use_post_quant_conv
            else None
        )
        self.conv_in = _conv(config, channels, outwards[0], 3, rngs)
        self.mid = MidBlock(config, outwards[0], rngs=rngs)
        self.blocks = nnx.List(
            UpBlock(config, outwards[max(i - 1, 0)], width, i < last, rngs=rngs)
            for i, width in enumerate(outwards)
        )
        self.norm_out = GroupNorm(outwards[-1], config.norm_num_groups, rngs=rngs)
        self.conv_out = _conv(config, outwards[-1], config.out_channels, 3, rngs)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decode latents to images.

        Args:
            latents: ``[n, h, w, C]`` as the diffusion model has them, scaled.

        Returns:
            Images ``[n, 8 h, 8 w, 3]``, float32, about within [-1, 1].

        Raises:
            ValueError: for another number of axes or channels.
        """
        channels = self.config.latent_channels
        if latents.ndim != 4 or latents.shape[-1] != channels:
            raise ValueError(
                f"latents must have shape [n, h, w, {channels}], channels last, got "
                f"{latents.shape}."
            )
        x = latents.astype(jnp.float32) / self.config.scaling_factor
        if self.config.shift_factor is not None:
            x = x + self.config.shift_factor
        if self.post_quant_conv is not None:
            x = self.post_quant_conv(x)
        x = self.mid(self.conv_in(x))
        for block in self.blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class MidBlock(nnx.Module):
    """Two residual layers around attention."""

    def __init__(self, config: KLConfig, channels: int, *, rngs: nnx.Rngs):
        self.first = ResidualLayer(config, channels, channels, rngs=rngs)
        self.attention = (
            SpatialAttention(config, channels, rngs=rngs)
            if config.mid_block_add_attention
            else None
        )
        self.second = ResidualLayer(config, channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same shape."""
        x = self.first(x)
        if self.attention is not None:
            x = self.attention(x)
        return self.second(x)


class UpBlock(nnx.Module):
    """Residual layers, then twice the size (except in the last block)."""

    def __init__(
        self, config: KLConfig, inner: int, outer: int, doubles: bool, *, rngs: nnx.Rngs
    ):
        widths = [inner] + [outer] * config.layers_per_block
        self.layers = nnx.List(
            ResidualLayer(config, width, outer, rngs=rngs) for width in widths
        )
        self.conv = _conv(config, outer, outer, 3, rngs) if doubles else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, H, W, inner]`` to ``[n, 2 H, 2 W, outer]``."""
        for layer in self.layers:
            x = layer(x)
        return x if self.conv is None else self.conv(x.repeat(2, 1).repeat(2, 2))


class ResidualLayer(nnx.Module):
    """Twice norm, SiLU and convolution, added to a shortcut."""

    def __init__(self, config: KLConfig, inner: int, outer: int, *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(inner, config.norm_num_groups, rngs=rngs)
        self.conv1 = _conv(config, inner, outer, 3, rngs)
        self.norm2 = GroupNorm(outer, config.norm_num_groups, rngs=rngs)
        self.conv2 = _conv(config, outer, outer, 3, rngs)
        self.shortcut = _conv(config, inner, outer, 1, rngs) if inner != outer else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, H, W, inner]`` to ``[n, H, W, outer]``."""
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class SpatialAttention(nnx.Module):
    """Self-attention of all places with one head; softmax in float32."""

    def __init__(self, config: KLConfig, channels: int, *, rngs: nnx.Rngs):
        self.dtype = config.compute_dtype
        self.norm = GroupNorm(channels, config.norm_num_groups, rngs=rngs)
        self.query, self.key, self.value, self.out = (
            Linear(channels, channels, dtype=self.dtype, rngs=rngs) for _ in range(4)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same shape."""
        n, height, width, channels = x.shape
        places = self.norm(x).reshape(n, height * width, 1, channels)
        maps = (self.query, self.key, self.value)
        mixed = attention(*(m(places).astype(self.dtype) for m in maps))
        return x + self.out(mixed).reshape(x.shape)


def _conv(config: KLConfig, inner: int, outer: int, size: int, rngs: nnx.Rngs):
    return Conv(inner, outer, (size, size), dtype=config.compute_dtype, rngs=rngs)
