"""The block of a DiT, and its positions."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from full_models.models.attention import attention
from full_models.models.dit.config import DiTConfig
from full_models.models.layers import (
    MLP,
    XAVIER,
    ZEROS,
    Linear,
    layer_norm,
    modulate,
)
from gmm_guidance.blocks.perturbation import (
    BlockPerturbation,
    add_branch,
    perturbed_attention,
    shuffled,
)


class Attention(nnx.Module):
    """Self-attention of all tokens."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        self.num_heads, self.dtype = config.num_heads, config.compute_dtype
        width = config.width
        make = functools.partial(
            Linear, dtype=self.dtype, kernel_init=XAVIER, rngs=rngs
        )
        self.qkv = make(width, 3 * width)
        self.proj = make(width, width)

    def __call__(
        self,
        x: jax.Array,
        perturb: BlockPerturbation | None = None,
        grid: tuple[int, int] = (0, 0),
    ) -> jax.Array:
        """``[n, T, D]`` to the same; ``grid`` of the tokens, for a perturbation."""
        n, tokens, width = x.shape
        if perturb is not None and perturb.is_full("identity"):
            return self.proj(self._values(x))
        qkv = self.qkv(x).astype(self.dtype)
        qkv = qkv.reshape(n, tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = (qkv[:, :, i] for i in range(3))
        plain = functools.partial(attention, implementation="full")
        mixed = perturbed_attention(plain, query, key, value, perturb, grid)
        return self.proj(mixed.reshape(n, tokens, width))

    def _values(self, x: jax.Array) -> jax.Array:
        """The values alone, ``[n, T, D]``."""
        width = x.shape[-1]
        graph, state = nnx.split(self.qkv)
        last = jax.tree.map(lambda a: a[..., 2 * width :], state)
        return nnx.merge(graph, last)(x).astype(self.dtype)


class Block(nnx.Module):
    """adaLN-Zero block: attention and MLP, each shifted, scaled and gated.

    Peebles & Xie 2023 (arXiv 2212.09748), Sec. 3.2. Before training its output is its
    input.
    """

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, config.compute_dtype
        self.attn = Attention(config, rngs=rngs)
        self.mlp = MLP(width, config.mlp_width, dtype, rngs=rngs)
        self.modulation = Linear(
            width, 6 * width, dtype=dtype, kernel_init=ZEROS, rngs=rngs
        )

    def __call__(
        self,
        hidden: jax.Array,
        condition: jax.Array,
        perturb: BlockPerturbation | None = None,
        grid: tuple[int, int] = (0, 0),
    ) -> jax.Array:
        """The next tokens, ``[n, T, D]``; condition ``[n, D]``, activated."""
        terms = jnp.split(self.modulation(condition), 6, axis=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = terms

        def attend():
            inner = modulate(layer_norm(hidden), shift, scale)
            return gate[:, None] * self.attn(inner, perturb, grid)

        def feed_forward():
            inner = modulate(layer_norm(hidden), mlp_shift, mlp_scale)
            return mlp_gate[:, None] * self.mlp(inner)

        hidden = shuffled(hidden, perturb)
        hidden = add_branch(hidden, attend, "attention", perturb)
        return add_branch(hidden, feed_forward, "mlp", perturb)


@functools.cache
def position_table(grid: int, width: int) -> np.ndarray:
    """Sine-cosine positions of a square grid of patches: float32, ``[grid^2, width]``.

    The first half of the features encodes the column, the second the row; each half is
    ``[sin, cos]`` of ``position / 10000^(i / (width / 4))``, computed in float64.
    Tokens run along rows. The tables of published checkpoints agree to rounding.
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    phase = np.arange(grid)[:, None] * frequencies
    line = np.concatenate([np.sin(phase), np.cos(phase)], axis=1)  # [grid, width / 2]
    columns = np.tile(line, (grid, 1))
    rows = np.repeat(line, grid, axis=0)
    table = np.concatenate([columns, rows], axis=1).astype(np.float32)
    table.setflags(write=False)  # it is shared by all callers
    return table
