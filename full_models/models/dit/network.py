"""``DiT``: the diffusion transformer of DiT and SiT, as a backbone of blocks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from full_models.models.dit.config import DiTConfig
from full_models.models.dit.layers import Block, position_table
from full_models.models.dit.pipeline import DiTPipeline
from full_models.models.layers import (
    XAVIER,
    FinalLayer,
    Linear,
    TimeEmbedding,
    from_patches,
    to_patches,
)
from gmm_guidance._runtime.pytree import one_line_repr
from gmm_guidance.blocks.perturbation import (
    ATTENTION_KINDS,
    BlockPerturbation,
    attention_savings,
)


class DiT(nnx.Module):
    """A class-conditional diffusion transformer: DiT or SiT, by its configuration.

    Peebles & Xie 2023 (arXiv 2212.09748); Ma et al. 2024 (arXiv 2401.08740), which is
    the same network on another process. A ``Backbone`` of ``gmm_guidance``, which
    ``as_stack`` makes a ``Denoiser`` and ``BlockStack``. Samples are ``[n, H, W,
    C]``, channels last; parameters of the blocks are stacked on their leading axis.

    Args:
        config: the shape.
        rngs: Flax random streams. A fresh network predicts zeros (adaLN-Zero).
    """

    __repr__ = one_line_repr

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, dtype = config.width, config.compute_dtype
        patch = config.patch_size**2
        self.patches = Linear(
            patch * config.in_channels,
            width,
            dtype=dtype,
            kernel_init=XAVIER,
            rngs=rngs,
        )
        self.time = TimeEmbedding(width, rngs=rngs)
        table = nnx.initializers.normal(0.02)(
            rngs.params(), (config.num_embeddings, width)
        )
        self.labels = nnx.Param(table)
        keys = jax.random.split(rngs.params(), config.depth)
        self.blocks = jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(keys)
        self.final = FinalLayer(width, patch * config.out_channels, dtype, rngs=rngs)

    @property
    def num_blocks(self) -> int:
        """Depth of the stack."""
        return self.config.depth

    @property
    def perturbations(self) -> frozenset[str]:
        """Kinds of perturbation of the blocks."""
        return ATTENTION_KINDS

    @property
    def perturbation_savings(self) -> dict[str, float]:
        """Fraction of the products of a block that each kind saves."""
        c = self.config
        tokens = (c.input_size // c.patch_size) ** 2
        return attention_savings(c.width, c.mlp_width, tokens, 6 * c.width)

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return self.config.num_labels

    @property
    def null_label(self) -> bool:
        """Whether label ``num_labels`` means "no condition"."""
        return self.config.null_label

    @property
    def pipeline(self) -> DiTPipeline:
        """How the model is sampled."""
        return DiTPipeline(self.config)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one sample, ``(H, W, C)``."""
        size = self.config.input_size
        return size, size, self.config.in_channels

    def embed(
        self, x_t: jax.Array, time: jax.Array, label: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens ``[n, T, D]`` entering block 0, and condition ``[n, D]``."""
        c = self.config
        positions = position_table(c.input_size // c.patch_size, c.width)
        tokens = self.patches(to_patches(x_t.astype(jnp.float32), c.patch_size))
        if label is None and not c.null_label:
            raise ValueError(
                "this network has no null class (null_label=False), so it cannot be "
                "evaluated without a label: use Unguided() or a rule without an "
                "unconditional pass, and give a label for each sample."
            )
        if label is None:
            label = jnp.full(x_t.shape[:1], c.num_labels, jnp.int32)
        named = self.labels[...][label].astype(jnp.float32)
        condition = jax.nn.silu(self.time(time.astype(jnp.float32)) + named)
        return tokens + jnp.asarray(positions)[None], condition

    def segment_block(
        self,
        segment: int,
        index: ArrayLike,
        hidden: jax.Array,
        context: jax.Array,
        perturb: BlockPerturbation | None = None,
    ) -> jax.Array:
        """The tokens after block ``index``, ``[n, T, D]``, perhaps perturbed."""
        side = self.config.input_size // self.config.patch_size

        def run(index, hidden, context):
            chosen = jax.tree.map(
                lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False),
                self.blocks,
            )
            return chosen(hidden, context, perturb, (side, side))

        if self.config.remat:
            run = jax.checkpoint(run, prevent_cse=False)
        return run(index, hidden, context)

    def readout(self, hidden: jax.Array, context: jax.Array) -> jax.Array:
        """The prediction ``[n, H, W, out_channels]``, variance channels last."""
        c = self.config
        return from_patches(self.final(hidden, context), c.patch_size, c.input_size)

    def predict(self, x_t: jax.Array, time: jax.Array, label: Any) -> jax.Array:
        """A forward pass for training: ``[n, H, W, out_channels]``.

        One scan over the blocks, whose gradient costs no more than itself (through
        indexed blocks, each would add to the gradient of all).
        """
        hidden, context = self.embed(x_t, time, label)

        def step(hidden, block):
            return block(hidden, context), None

        if self.config.remat:
            step = jax.checkpoint(step, prevent_cse=False)
        hidden, _ = jax.lax.scan(step, hidden, self.blocks)
        return self.readout(hidden, context)
