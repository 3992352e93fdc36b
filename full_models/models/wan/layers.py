"""The block of a Wan transformer, and its positions."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from full_models.models.attention import attention
from full_models.models.layers import (
    MLP,
    XAVIER,
    Linear,
    layer_norm,
)
from full_models.models.wan.config import PATCH, WanConfig
from gmm_guidance.blocks.perturbation import (
    BlockPerturbation,
    add_branch,
    perturbed_attention,
    shuffled,
)


class RMSNorm(nnx.Module):
    """Unit mean square over all features, times a learned scale; float32."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., D]`` to the same."""
        x = x.astype(jnp.float32)
        size = jnp.mean(x**2, axis=-1, keepdims=True)
        return scaled(x * jax.lax.rsqrt(size + 1e-6), self.scale[...])


class SelfAttention(nnx.Module):
    """Attention of all tokens, with normed and rotated queries and keys."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        width, self.dtype = config.width, config.compute_dtype
        self.num_heads = config.num_heads
        make = functools.partial(
            Linear, dtype=self.dtype, kernel_init=XAVIER, rngs=rngs
        )
        self.qkv = make(width, 3 * width)
        self.query_norm, self.key_norm = RMSNorm(width), RMSNorm(width)
        self.proj = make(width, width)

    def __call__(
        self,
        x: jax.Array,
        rotation: jax.Array,
        perturb: BlockPerturbation | None = None,
        grid: Sequence[int] = (),
    ) -> jax.Array:
        """``[n, T, D]`` to the same; rotation ``[2, T, head_dim / 2]``."""
        if perturb is not None and perturb.is_full("identity"):
            last = jax.tree.map(lambda a: a[..., 2 * x.shape[-1] :], self.qkv)
            return self.proj(last(x).astype(self.dtype))
        query, key, value = jnp.split(self.qkv(x), 3, axis=-1)
        query, key = self.query_norm(query), self.key_norm(key)
        query, key, value = (_heads(a, self.num_heads) for a in (query, key, value))
        query, key = rotated(query, rotation), rotated(key, rotation)
        query, key, value = (a.astype(self.dtype) for a in (query, key, value))
        mixed = perturbed_attention(attention, query, key, value, perturb, grid)
        return self.proj(mixed.reshape(x.shape))


class CrossAttention(nnx.Module):
    """Attention of all tokens to those of the text, with normed queries and keys."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        width, self.dtype = config.width, config.compute_dtype
        self.num_heads = config.num_heads
        make = functools.partial(
            Linear, dtype=self.dtype, kernel_init=XAVIER, rngs=rngs
        )
        self.query = make(width, width)
        self.key_value = make(width, 2 * width)
        self.query_norm, self.key_norm = RMSNorm(width), RMSNorm(width)
        self.proj = make(width, width)

    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        """``[n, T, D]`` to the same; text ``[n, S, D]``."""
        query = self.query_norm(self.query(x))
        key, value = jnp.split(self.key_value(text), 2, axis=-1)
        parts = (query, self.key_norm(key), value)
        mixed = attention(
            *(_heads(a, self.num_heads).astype(self.dtype) for a in parts)
        )
        return self.proj(mixed.reshape(x.shape))


class Block(nnx.Module):
    """Self-attention, attention to the text, MLP; the first and last are modulated.

    The modulation is a table of the block plus that of the time, which all blocks
    share. The residual stream is float32, whatever the type of products.
    """

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        width = config.width
        table = nnx.initializers.normal(width**-0.5)
        self.modulation = nnx.Param(table(rngs.params(), (6, width)))
        self.attn = SelfAttention(config, rngs=rngs)
        self.cross_norm = LayerNorm(width)
        self.cross = CrossAttention(config, rngs=rngs)
        self.mlp = MLP(width, config.mlp_width, config.compute_dtype, rngs=rngs)

    def __call__(
        self,
        hidden: jax.Array,
        text: jax.Array,
        time: jax.Array,
        rotation: jax.Array,
        perturb: BlockPerturbation | None = None,
        grid: Sequence[int] = (),
    ) -> jax.Array:
        """The next tokens ``[n, T, D]``.

        Args:
            hidden: tokens ``[n, T, D]``.
            text: text ``[n, S, D]``.
            time: modulation by the time ``[n, 6, D]``.
            rotation: positions ``[2, T, head_dim / 2]``.
            perturb: a perturbation of the block.
            grid: frames, rows and columns of tokens, for a perturbation.
        """
        hidden = shuffled(hidden, perturb)
        terms = self.modulation[...].astype(jnp.float32)[None] + time
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
            terms[:, i : i + 1] for i in range(6)
        )

        def attend(x: jax.Array) -> jax.Array:
            inner = layer_norm(x) * (1.0 + scale) + shift
            return gate * self.attn(inner, rotation, perturb, grid)

        def attend_to_text(x: jax.Array) -> jax.Array:
            return self.cross(self.cross_norm(x), text)

        def feed_forward(x: jax.Array) -> jax.Array:
            inner = layer_norm(x) * (1.0 + mlp_scale) + mlp_shift
            return mlp_gate * self.mlp(inner)

        branches = {"attention": attend, "cross": attend_to_text, "mlp": feed_forward}
        for name, branch in branches.items():
            added = functools.partial(branch, hidden)
            hidden = add_branch(hidden, added, name, perturb)
        return hidden


class LayerNorm(nnx.Module):
    """``layer_norm`` with a learned scale and bias; float32."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., D]`` to the same."""
        bias = self.bias[...].astype(jnp.float32)
        x = scaled(layer_norm(x), self.scale[...])
        return x + jnp.expand_dims(bias, range(x.ndim - 1))


def scaled(x: jax.Array, scale: jax.Array) -> jax.Array:
    """``[..., D]`` times ``[D]``, in float32."""
    return x * jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))


def rotated(x: jax.Array, rotation: jax.Array) -> jax.Array:
    """Neighboring pairs of features of ``[n, T, heads, head_dim]``, rotated; float32.

    Args:
        x: queries or keys.
        rotation: cosines and sines ``[2, T, head_dim / 2]``.
    """
    cos, sin = rotation[:, None, :, None]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape)


def rotation_of(config: WanConfig) -> jax.Array:
    """Cosines and sines of all tokens, ``[2, T, head_dim / 2]``, float32.

    Three small tables of the host, broadcast in the program: the whole would be a
    constant of 17 MB at 480 x 832 x 81.
    """
    frames, height, width = config.latent_shape
    grid = (frames, height // PATCH, width // PATCH)
    parts = []
    for axis, table in enumerate(axis_tables(grid, config.head_dim)):
        shape = [2, 1, 1, 1, table.shape[-1]]
        shape[axis + 1] = grid[axis]
        wide = jnp.asarray(table).reshape(shape)
        parts.append(jnp.broadcast_to(wide, (2, *grid, table.shape[-1])))
    return jnp.concatenate(parts, axis=-1).reshape(2, config.num_tokens, -1)


@functools.cache
def axis_tables(grid: tuple[int, int, int], head_dim: int) -> tuple[np.ndarray, ...]:
    """Cosines and sines of time, row and column: ``[2, size, pairs]`` each, float32.

    Rows and columns have a third of the pairs each, rounded down, time the rest (22,
    21, 21 of 64), with frequencies ``10000^(-i / pairs)``; angles in float64.
    """
    third = head_dim // 6
    tables = []
    for size, pairs in zip(
        grid, (head_dim // 2 - 2 * third, third, third), strict=True
    ):
        angles = np.arange(size)[:, None] * 10000.0 ** (-np.arange(pairs) / pairs)
        table = np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
        table.setflags(write=False)  # it is shared by all callers
        tables.append(table)
    return tuple(tables)


def _heads(x: jax.Array, num_heads: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], num_heads, -1)
