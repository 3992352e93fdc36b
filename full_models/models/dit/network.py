"""``DiT``: the diffusion transformer of DiT and SiT, as a stack of droppable blocks."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from full_models.models.dit.config import DiTConfig
from full_models.models.dit.encodings import position_table
from full_models.models.dit.layers import Block, FinalLayer, Linear, TimeEmbedding
from full_models.models.dit.parameterization import (
    denoised,
    network_input,
    network_time,
)
from full_models.models.dit.pipeline import DiTPipeline
from gmm_guidance._runtime.checks import as_concrete
from gmm_guidance.blocks.shared_prefix import run_blocks


class DiT(nnx.Module):
    """A class-conditional diffusion transformer: DiT or SiT, by its configuration.

    Peebles & Xie 2023 (arXiv 2212.09748); Ma et al. 2024 (arXiv 2401.08740), which is
    the same network on another process. A ``Denoiser`` and a ``BlockStack`` of
    ``gmm_guidance``: every rule and solver works with it. Samples are ``[n, H, W, C]``,
    channels last; parameters of the blocks are stacked on their leading axis.

    Args:
        config: the shape.
        rngs: Flax random streams. A fresh network predicts zeros (adaLN-Zero).
    """

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        self.patches = Linear(
            config.patch_size**2 * config.in_channels,
            width,
            config.compute_dtype,
            rngs=rngs,
        )
        self.time = TimeEmbedding(width, rngs=rngs)
        table = nnx.initializers.normal(0.02)(
            rngs.params(), (config.num_labels + 1, width)
        )
        self.labels = nnx.Param(table)
        keys = jax.random.split(rngs.params(), config.depth)
        self.blocks = jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(keys)
        self.final = FinalLayer(config, rngs=rngs)

    @property
    def num_blocks(self) -> int:
        """Depth of the stack."""
        return self.config.depth

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return self.config.num_labels

    @property
    def pipeline(self) -> DiTPipeline:
        """How the model is sampled."""
        return DiTPipeline(self.config)

    def with_variance(self) -> WithVariance:
        """The model with its learned variance, for the ancestral sampler."""
        return WithVariance(self)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one sample, ``(H, W, C)``."""
        size = self.config.input_size
        return size, size, self.config.in_channels

    def embed(
        self, x: jax.Array, sigma: ArrayLike, label: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens ``[n, T, D]`` entering block 0, and condition ``[n, D]``."""
        x, sigma = self._check(x, sigma)
        n = x.shape[0]
        inputs = network_input(self.config.process, x, _expand(sigma))
        table = position_table(
            self.config.input_size // self.config.patch_size, self.config.width
        )
        hidden = self.patches(self._to_patches(inputs)) + jnp.asarray(table)[None]
        t = jnp.broadcast_to(network_time(self.config.process, sigma), (n,))
        if label is None:
            label = jnp.full((n,), self.config.num_labels, jnp.int32)
        named = self.labels[...][label].astype(jnp.float32)
        return hidden, jax.nn.silu(self.time(t) + named)

    def block(
        self, index: ArrayLike, hidden: jax.Array, context: jax.Array
    ) -> jax.Array:
        """The tokens after block ``index``, ``[n, T, D]``."""

        def run(index, hidden, context):
            chosen = jax.tree.map(
                lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False),
                self.blocks,
            )
            return chosen(hidden, context)

        if self.config.remat:
            run = jax.checkpoint(run, prevent_cse=False)
        return run(index, hidden, context)

    def readout(
        self, hidden: jax.Array, context: jax.Array, x: jax.Array, sigma: ArrayLike
    ) -> jax.Array:
        """Denoised samples ``[n, H, W, C]``."""
        return self._read(hidden, context, x, sigma)[0]

    def __call__(self, x: jax.Array, sigma: ArrayLike, label: Any = None) -> jax.Array:
        """Denoise ``[n, H, W, C]``; sigma scalar or ``[n]``, label ``[n]`` or none."""
        return run_blocks(self, x, jnp.asarray(sigma, jnp.float32), label)

    def predict(self, x: jax.Array, sigma: ArrayLike, label: Any = None) -> jax.Array:
        """What the network itself predicts, for training: ``[n, H, W, out_channels]``.

        Noise (DiT) or velocity (SiT), then the variance channels if there are any. One
        scan over the blocks, whose gradient costs no more than itself (through indexed
        blocks, each would add to the gradient of all).
        """
        hidden, context = self.embed(x, jnp.asarray(sigma, jnp.float32), label)

        def step(hidden, block):
            return block(hidden, context), None

        if self.config.remat:
            step = jax.checkpoint(step, prevent_cse=False)
        hidden, _ = jax.lax.scan(step, hidden, self.blocks)
        return self._from_patches(self.final(hidden, context))

    def _read(
        self, hidden: jax.Array, context: jax.Array, x: jax.Array, sigma: ArrayLike
    ) -> tuple[jax.Array, jax.Array]:
        """Denoised samples, and the variance channels (``[..., 0]`` without)."""
        x, sigma = self._check(x, sigma)
        output = self._from_patches(self.final(hidden, context))
        channels = self.config.in_channels
        prediction, variance = output[..., :channels], output[..., channels:]
        value = denoised(self.config.process, prediction, x, _expand(sigma))
        return value, variance

    def _to_patches(self, x: jax.Array) -> jax.Array:
        """``[n, H, W, C]`` to ``[n, T, p p C]``: row, column in the patch, channel."""
        n, size, p = x.shape[0], self.config.input_size, self.config.patch_size
        x = x.reshape(n, size // p, p, size // p, p, self.config.in_channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, self.config.num_tokens, -1)

    def _from_patches(self, tokens: jax.Array) -> jax.Array:
        """``[n, T, p p C]`` to ``[n, H, W, C]``."""
        n, size, p = tokens.shape[0], self.config.input_size, self.config.patch_size
        x = tokens.reshape(n, size // p, size // p, p, p, self.config.out_channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, size, size, -1)

    def _check(self, x: jax.Array, sigma: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Samples of this network's shape in float32, sigma as ``[1 or n]``."""
        if x.ndim != 4 or x.shape[1:] != self.sample_shape:
            expected = ", ".join(str(s) for s in self.sample_shape)
            raise ValueError(
                f"x must have shape [n, {expected}] (channels last), got {x.shape}."
            )
        sigma = jnp.asarray(sigma, jnp.float32)
        values = as_concrete(sigma)
        if values is not None and not (values > 0).all():
            raise ValueError(f"sigma must be > 0, got {values.min()}.")
        return x.astype(jnp.float32), sigma.reshape(-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WithVariance:
    """A DiT that also returns its learned variance, for the ancestral sampler.

    A ``BlockStack`` whose values are ``[n, H, W, 2 C]``: the denoised sample, then for
    each of its channels the network's ``v`` in [-1, 1], a place between the smallest
    and the largest variance (Nichol & Dhariwal 2021, arXiv 2102.09672, Eq. 15).

    Raises:
        ValueError: if the network has no variance channels.
    """

    network: DiT

    def __post_init__(self):
        if isinstance(self.network, DiT) and not self.network.config.learn_sigma:
            raise ValueError(
                "the learned variance needs a network with learn_sigma=True, got one "
                "without; use a fixed variance, Ancestral('posterior')."
            )

    @property
    def num_blocks(self) -> int:
        """Depth of the stack."""
        return self.network.num_blocks

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return self.network.num_labels

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one sample, ``(H, W, C)``."""
        return self.network.sample_shape

    def embed(self, x: jax.Array, sigma: ArrayLike, label: Any) -> Any:
        """As the network."""
        return self.network.embed(x, sigma, label)

    def block(self, index: ArrayLike, hidden: Any, context: Any) -> Any:
        """As the network."""
        return self.network.block(index, hidden, context)

    def readout(self, hidden: Any, context: Any, x: jax.Array, sigma: ArrayLike) -> Any:
        """Denoised sample and ``v``, ``[n, H, W, 2 C]``."""
        return jnp.concatenate(self.network._read(hidden, context, x, sigma), axis=-1)

    def __call__(self, x: jax.Array, sigma: ArrayLike, label: Any = None) -> jax.Array:
        """As ``readout``."""
        return run_blocks(self, x, jnp.asarray(sigma, jnp.float32), label)


def _expand(sigma: jax.Array) -> jax.Array:
    return sigma[:, None, None, None]
