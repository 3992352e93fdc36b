"""Convolutions, norms, residual layers and attention on ``[n, H, W, C]``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from full_models.models.dit.layers import Linear

_EPSILON = 1e-6
_SPATIAL = ("NHWC", "HWIO", "NHWC")


class Conv(nnx.Module):
    """A convolution that keeps height and width; result float32."""

    def __init__(self, inner: int, outer: int, size: int, dtype: str, *, rngs):
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inner, outer)))
        self.bias = nnx.Param(jnp.zeros(outer))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, H, W, inner]`` to ``[n, H, W, outer]``."""
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=_SPATIAL,
        )
        bias = self.bias[...].astype(jnp.float32)
        return y.astype(jnp.float32) + bias[None, None, None]


class GroupNorm(nnx.Module):
    """Zero mean and unit variance over space and each group of channels; float32."""

    def __init__(self, channels: int, groups: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups = groups

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same shape."""
        n, height, width, channels = x.shape
        # Two passes over the data: a difference of mean squares loses digits.
        grouped = x.reshape(n, height * width, self.groups, channels // self.groups)
        mean = jnp.mean(grouped, axis=(1, 3), keepdims=True)
        centred = grouped - mean
        variance = jnp.mean(centred**2, axis=(1, 3), keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + _EPSILON)).reshape(x.shape)
        scale, bias = (p[...].astype(jnp.float32) for p in (self.scale, self.bias))
        return y * scale[None, None, None] + bias[None, None, None]


class ResidualLayer(nnx.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut."""

    def __init__(self, inner: int, outer: int, groups: int, dtype: str, *, rngs):
        self.norm1 = GroupNorm(inner, groups)
        self.conv1 = Conv(inner, outer, 3, dtype, rngs=rngs)
        self.norm2 = GroupNorm(outer, groups)
        self.conv2 = Conv(outer, outer, 3, dtype, rngs=rngs)
        self.shortcut = (
            Conv(inner, outer, 1, dtype, rngs=rngs) if inner != outer else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, H, W, inner]`` to ``[n, H, W, outer]``."""
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class SpatialAttention(nnx.Module):
    """All places attend to each other, with one head; softmax in float32."""

    def __init__(self, channels: int, groups: int, dtype: str, *, rngs):
        self.norm = GroupNorm(channels, groups)
        self.query = Linear(channels, channels, dtype, rngs=rngs)
        self.key = Linear(channels, channels, dtype, rngs=rngs)
        self.value = Linear(channels, channels, dtype, rngs=rngs)
        self.out = Linear(channels, channels, dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same shape."""
        n, height, width, channels = x.shape
        places = self.norm(x).reshape(n, height * width, 1, channels)
        maps = (self.query, self.key, self.value)
        # JAX takes the softmax in float32, by a promotion that a strict caller forbids.
        with jax.numpy_dtype_promotion("standard"):
            mixed = jax.nn.dot_product_attention(
                *(m(places).astype(self.dtype) for m in maps)
            )
        return x + self.out(mixed).reshape(x.shape)


def upsample(x: jax.Array) -> jax.Array:
    """Each pixel four times: ``[n, H, W, C]`` to ``[n, 2 H, 2 W, C]``."""
    n, height, width, channels = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, channels))
    return y.reshape(n, 2 * height, 2 * width, channels)
