"""The parts of a diffusion transformer: linear maps, the adaLN block, embeddings."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from full_models.models.dit.config import DiTConfig
from full_models.models.dit.encodings import TIME_FEATURES, time_features

_EPSILON = 1e-6


class Linear(nnx.Module):
    """``x @ kernel + bias``: operands in ``dtype``, result float32.

    A narrow product accumulates in float32 anyway; returning that loses nothing.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        dtype: str,
        *,
        rngs: nnx.Rngs,
        init: nnx.Initializer | None = None,
    ):
        init = init or nnx.initializers.xavier_uniform()
        self.kernel = nnx.Param(init(rngs.params(), (in_features, out_features)))
        self.bias = nnx.Param(jnp.zeros(out_features))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., in]`` to ``[..., out]``, float32."""
        kernel, bias = self.kernel[...], self.bias[...]
        y = jax.lax.dot_general(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (((x.ndim - 1,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return y + bias.astype(jnp.float32).reshape((1,) * (y.ndim - 1) + (-1,))


def layer_norm(x: jax.Array) -> jax.Array:
    """Zero mean and unit variance over features, without learned scale; float32."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    centred = x - mean
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + _EPSILON)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """``x (1 + scale) + shift`` for every token, ``[n, T, D]`` and ``[n, D]``."""
    return x * (1.0 + scale[:, None]) + shift[:, None]


class Attention(nnx.Module):
    """Self-attention of all tokens; softmax in float32."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        self.dtype = config.compute_dtype
        width, dtype = config.width, config.compute_dtype
        self.qkv = Linear(width, 3 * width, dtype, rngs=rngs)
        self.proj = Linear(width, width, dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, T, D]`` to the same."""
        n, tokens, width = x.shape
        qkv = self.qkv(x).astype(self.dtype)
        qkv = qkv.reshape(n, tokens, 3, self.num_heads, width // self.num_heads)
        # JAX takes the softmax in float32, by a promotion that a strict caller forbids.
        with jax.numpy_dtype_promotion("standard"):
            mixed = jax.nn.dot_product_attention(*(qkv[:, :, i] for i in range(3)))
        return self.proj(mixed.reshape(n, tokens, width))


class MLP(nnx.Module):
    """Two linear maps with a tanh-approximated GELU between them."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        dtype = config.compute_dtype
        self.fc1 = Linear(config.width, config.mlp_width, dtype, rngs=rngs)
        self.fc2 = Linear(config.mlp_width, config.width, dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, T, D]`` to the same."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=True))


class Block(nnx.Module):
    """adaLN-Zero block: attention and MLP, each shifted, scaled and gated.

    Peebles & Xie 2023 (arXiv 2212.09748), Sec. 3.2. Before training its output is its
    input.
    """

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.attn = Attention(config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.modulation = Linear(
            config.width, 6 * config.width, config.compute_dtype, rngs=rngs, init=zeros
        )

    def __call__(self, hidden: jax.Array, condition: jax.Array) -> jax.Array:
        """The next tokens, ``[n, T, D]``; condition ``[n, D]``, activated."""
        terms = jnp.split(self.modulation(condition), 6, axis=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = terms
        inner = modulate(layer_norm(hidden), shift, scale)
        hidden = hidden + gate[:, None] * self.attn(inner)
        inner = modulate(layer_norm(hidden), mlp_shift, mlp_scale)
        return hidden + mlp_gate[:, None] * self.mlp(inner)


class TimeEmbedding(nnx.Module):
    """Times ``[n]`` to features ``[n, D]``; float32."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        make = functools.partial(
            Linear, dtype="float32", rngs=rngs, init=nnx.initializers.normal(0.02)
        )
        self.fc1 = make(TIME_FEATURES, width)
        self.fc2 = make(width, width)

    def __call__(self, t: jax.Array) -> jax.Array:
        """``[n]`` to ``[n, D]``."""
        return self.fc2(jax.nn.silu(self.fc1(time_features(t))))


class FinalLayer(nnx.Module):
    """Modulated norm and the map to the pixels of a patch."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        dtype, width = config.compute_dtype, config.width
        pixels = config.patch_size**2 * config.out_channels
        self.modulation = Linear(width, 2 * width, dtype, rngs=rngs, init=zeros)
        self.linear = Linear(width, pixels, dtype, rngs=rngs, init=zeros)

    def __call__(self, hidden: jax.Array, condition: jax.Array) -> jax.Array:
        """``[n, T, D]`` to ``[n, T, p p C]``."""
        shift, scale = jnp.split(self.modulation(condition), 2, axis=-1)
        return self.linear(modulate(layer_norm(hidden), shift, scale))
