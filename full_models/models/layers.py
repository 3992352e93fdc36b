"""Layers that several families share, on Flax's own."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

TIME_FEATURES = 256
XAVIER = nnx.initializers.xavier_uniform()
ZEROS = nnx.initializers.zeros_init()


def _operands(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Operands of a product in ``dtype``; its bias in float32."""
    x, kernel, bias = arrays
    return x.astype(dtype), kernel.astype(dtype), bias.astype(jnp.float32)


# Narrow products accumulate in float32 anyway; returning that loses nothing.
Linear = functools.partial(
    nnx.Linear, preferred_element_type=jnp.float32, promote_dtype=_operands
)
Conv = functools.partial(
    nnx.Conv, preferred_element_type=jnp.float32, promote_dtype=_operands
)
GroupNorm = functools.partial(
    nnx.GroupNorm, epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False
)


def layer_norm(x: jax.Array) -> jax.Array:
    """Zero mean and unit variance of features, without learned terms; float32.

    As ``nnx.LayerNorm``, but centered once: its gradient then needs fewer sums, which
    are collectives where the features of activations are divided over devices, and
    independent ones can stall devices that XLA simulates on a CPU.
    """
    x = x.astype(jnp.float32)
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + 1e-6)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """``x (1 + scale) + shift`` for every token, ``[n, T, D]`` and ``[n, D]``."""
    return x * (1.0 + scale[:, None]) + shift[:, None]


class MLP(nnx.Module):
    """Two linear maps with a tanh-approximated GELU between them."""

    def __init__(
        self,
        width: int,
        inner: int,
        dtype: str,
        outer: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        make = functools.partial(Linear, dtype=dtype, kernel_init=XAVIER, rngs=rngs)
        self.fc1 = make(width, inner)
        self.fc2 = make(inner, width if outer is None else outer)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., width]`` to ``[..., outer]``, by default the same."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=True))


class TimeEmbedding(nnx.Module):
    """Times ``[n]`` to features ``[n, D]``, in float32."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        make = functools.partial(Linear, dtype="float32", kernel_init=init, rngs=rngs)
        self.fc1 = make(TIME_FEATURES, width)
        self.fc2 = make(width, width)

    def __call__(self, t: jax.Array) -> jax.Array:
        """``[n]`` to ``[n, D]``."""
        return self.fc2(jax.nn.silu(self.fc1(time_features(t))))


class FinalLayer(nnx.Module):
    """Modulated norm and the map to the pixels of a patch."""

    def __init__(self, width: int, pixels: int, dtype: str, *, rngs: nnx.Rngs):
        make = functools.partial(Linear, dtype=dtype, kernel_init=ZEROS, rngs=rngs)
        self.modulation = make(width, 2 * width)
        self.linear = make(width, pixels)

    def __call__(self, hidden: jax.Array, condition: jax.Array) -> jax.Array:
        """``[n, T, D]`` to ``[n, T, pixels]``; condition ``[n, D]``, activated."""
        shift, scale = jnp.split(self.modulation(condition), 2, axis=-1)
        return self.linear(modulate(layer_norm(hidden), shift, scale))


def time_features(t: jax.Array) -> jax.Array:
    """``[cos, sin]`` of times at 128 frequencies from 1 to almost 1 / 10000.

    Frequencies are ``exp(-ln(10000) i / 128)``; other code bases divide by 127.

    Args:
        t: times ``[n]``, float32, in the network's own unit.

    Returns:
        ``[n, 256]``, float32.
    """
    half = TIME_FEATURES // 2
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / half)
    phase = t[:, None] * jnp.asarray(frequencies, jnp.float32)[None]
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


def to_patches(x: jax.Array, size: int) -> jax.Array:
    """``[n, H, W, C]`` to tokens ``[n, T, size size C]`` in row-major order.

    The features of a token are ordered by row in the patch, column, channel.
    """
    n, height, width, channels = x.shape
    x = x.reshape(n, height // size, size, width // size, size, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, (height // size) * (width // size), size * size * channels)


def from_patches(tokens: jax.Array, size: int, height: int) -> jax.Array:
    """The inverse of ``to_patches``, for samples ``[n, height, W, C]``."""
    n, count, features = tokens.shape
    rows = height // size
    x = tokens.reshape(n, rows, count // rows, size, size, features // size**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height, count // rows * size, features // size**2)
