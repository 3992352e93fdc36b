"""``Wan``: the text-to-video transformer of Wan 2.1, as a backbone of blocks."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from full_models.models.layers import (
    MLP,
    XAVIER,
    Linear,
    TimeEmbedding,
    from_patches,
    layer_norm,
    to_patches,
)
from full_models.models.wan.config import PATCH, WanConfig
from full_models.models.wan.layers import Block, rotation_of
from full_models.models.wan.pipeline import WanPipeline
from gmm_guidance._runtime.pytree import one_line_repr
from gmm_guidance.blocks.perturbation import (
    CROSS_KINDS,
    BlockPerturbation,
    attention_savings,
)

_STEPS = 1000  # the network counts its time in these


class EmbeddedPrompts(Protocol):
    """Prompts as the network needs them: states of the text encoder.

    Attributes:
        context: of each prompt, ``[N, S, C]``, rows beyond its end zero.
        negative_context: of the negative prompt, ``[S, C]``, likewise.
    """

    context: Any
    negative_context: Any


class Wan(nnx.Module):
    """Wan 2.1's text-to-video transformer; its blocks are all alike.

    Wan team 2025 (arXiv 2503.20314). A ``Backbone`` of ``gmm_guidance``, which
    ``as_stack`` makes a ``Denoiser`` and ``BlockStack``. Samples are latents ``[n, T,
    H, W, C]``, channels last; parameters of the blocks are stacked on their leading
    axis. Labels are the prompts that ``with_prompts`` binds; no label is the negative
    prompt. The network is given its time as a whole number of thousandths, as in its
    training; all else uses the exact noise level.

    Args:
        config: the shape.
        rngs: Flax random streams.
    """

    __repr__ = one_line_repr

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, pixels = config.width, PATCH**2 * config.in_channels
        self.patches = Linear(
            pixels, width, dtype=config.compute_dtype, kernel_init=XAVIER, rngs=rngs
        )
        self.time = TimeEmbedding(width, rngs=rngs)
        self.modulation = Linear(width, 6 * width, dtype="float32", rngs=rngs)
        self.text = MLP(
            config.text_width, width, config.compute_dtype, width, rngs=rngs
        )
        keys = jax.random.split(rngs.params(), config.depth)
        self.blocks = jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(keys)
        table = nnx.initializers.normal(width**-0.5)
        self.final_modulation = nnx.Param(table(rngs.params(), (2, width)))
        self.final = Linear(width, pixels, dtype="float32", rngs=rngs)
        self.prompts: nnx.Param[Any] | None = nnx.data(None)

    @property
    def num_blocks(self) -> int:
        """Depth of the stack."""
        return self.config.depth

    @property
    def num_labels(self) -> int:
        """Number of prompts."""
        return 0 if self.prompts is None else self.prompts.shape[0] - 1

    @property
    def pipeline(self) -> WanPipeline:
        """How the model is sampled."""
        return WanPipeline(self.config)

    @property
    def sample_shape(self) -> tuple[int, int, int, int]:
        """Shape of one sample, ``(T, H, W, C)``."""
        return (*self.config.latent_shape, self.config.in_channels)

    def with_prompts(self, prompts: EmbeddedPrompts) -> Wan:
        """The network with these prompts as its labels; parameters are shared.

        Args:
            prompts: ``N`` prompts of up to ``text_length`` tokens, padded with zeros.

        Raises:
            ValueError: for prompts of another family or other shapes, values that are
                not finite, or a prompt of zeros alone.
        """
        c = self.config
        family = getattr(prompts, "family", None)
        if family not in (None, "wan"):
            raise ValueError(
                f"prompts must be embedded for wan, got those of {family}; use "
                f"full-models embed-prompts --family wan."
            )
        context = jnp.asarray(prompts.context)
        negative = jnp.asarray(prompts.negative_context, context.dtype)
        for name, array, axes in (("", context, 3), ("negative_", negative, 2)):
            wanted = f"[{'N, ' * (axes == 3)}up to {c.text_length}, {c.text_width}]"
            if (
                array.ndim != axes
                or array.shape[-1] != c.text_width
                or array.shape[-2] > c.text_length
            ):
                raise ValueError(
                    f"{name}context must have shape {wanted}, got {array.shape}; embed "
                    f"the prompts with the text encoder of the model."
                )
        rows = [_padded(a, c.text_length) for a in (context, negative[None])]
        table = jnp.concatenate(rows)
        if (empty := np.flatnonzero(~np.asarray(table).any(axis=(1, 2)))).size:
            which = "the negative prompt" if empty[0] == len(context) else int(empty[0])
            raise ValueError(
                f"no prompt may be all zeros, got zeros for {which}; embed the prompts "
                f"with the text encoder of the model (the empty text is embedded like "
                f"any other)."
            )
        table = jax.jit(_embedded)(self.text, table)
        if not bool(jnp.isfinite(table).all()):
            raise ValueError(
                "prompts must be finite, got NaN or infinite values; embed them again."
            )
        return self._bound(table)

    def bind(self, context: jax.Array) -> Wan:
        """``with_prompts`` without checks, for training: it may be differentiated.

        Args:
            context: ``[N + 1, text_length, C]``, padded with zeros; the negative prompt
                last.
        """
        return self._bound(_embedded(self.text, context))

    def _bound(self, table: jax.Array) -> Wan:
        leaves, structure = jax.tree.flatten(self)
        bound = jax.tree.unflatten(structure, leaves)  # arrays are shared
        bound.prompts = nnx.Param(table)
        return bound

    def embed(
        self, x_t: jax.Array, time: jax.Array, label: Any
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        """Tokens ``[n, T, D]`` entering block 0, and the context of all blocks.

        The context is the text ``[n, S, D]``, the modulation ``[n, 6, D]`` and the
        embedding of the time ``[n, D]``.
        """
        if self.prompts is None:
            raise ValueError(
                "the model has no prompts yet; use model.with_prompts(prompts)."
            )
        n, width = x_t.shape[0], self.config.width
        frames = x_t.astype(jnp.float32).reshape(-1, *x_t.shape[2:])
        tokens = self.patches(to_patches(frames, PATCH)).reshape(n, -1, width)
        if label is None:
            label = jnp.full(n, self.num_labels, jnp.int32)
        text = self.prompts[...][label]
        # At a shift of 1 a step may lie a rounding below its whole number.
        steps = jnp.floor(_STEPS * time.astype(jnp.float32))
        embedded = self.time(steps)
        modulation = self.modulation(jax.nn.silu(embedded)).reshape(n, 6, width)
        return tokens, (text, modulation, embedded)

    @property
    def perturbations(self) -> frozenset[str]:
        """Kinds of perturbation of the blocks."""
        return CROSS_KINDS

    @property
    def perturbation_savings(self) -> dict[str, float]:
        """Fraction of the products of a block that each kind saves."""
        c = self.config
        return attention_savings(c.width, c.mlp_width, c.num_tokens, text=c.text_length)

    def segment_block(
        self,
        segment: int,
        index: ArrayLike,
        hidden: jax.Array,
        context: Any,
        perturb: BlockPerturbation | None = None,
    ) -> jax.Array:
        """The tokens after block ``index``, ``[n, T, D]``, perhaps perturbed."""
        chosen = jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False),
            self.blocks,
        )
        frames, *sides = self.config.latent_shape
        grid = (frames, *(side // PATCH for side in sides))
        rotation = rotation_of(self.config)
        return chosen(hidden, *context[:2], rotation, perturb, grid)

    def readout(self, hidden: jax.Array, context: Any) -> jax.Array:
        """The velocity ``[n, T, H, W, C]``."""
        frames, height, width, channels = self.sample_shape
        terms = self.final_modulation[...].astype(jnp.float32)[None]
        terms = terms + context[2][:, None]
        tokens = layer_norm(hidden) * (1.0 + terms[:, 1:]) + terms[:, :1]
        pixels = self.final(tokens)
        n = pixels.shape[0]
        pixels = pixels.reshape(n * frames, -1, pixels.shape[-1])
        return from_patches(pixels, PATCH, height).reshape(n, *self.sample_shape)

    def predict(self, x_t: jax.Array, time: jax.Array, label: Any) -> jax.Array:
        """A forward pass for training, ``[n, T, H, W, C]``: one scan over blocks."""
        hidden, context = self.embed(x_t, time, label)
        rotation = rotation_of(self.config)

        def step(hidden, block):
            return block(hidden, *context[:2], rotation), None

        hidden, _ = jax.lax.scan(step, hidden, self.blocks)
        return self.readout(hidden, context)


def _padded(context: jax.Array, length: int) -> jax.Array:
    missing = length - context.shape[1]
    return jnp.pad(context, ((0, 0), (0, missing), (0, 0)))


def _embedded(text: MLP, context: jax.Array) -> jax.Array:
    """Prompts ``[N, S, C]`` to ``[N, S, D]``, one by one, in the type of products."""
    dtype = text.fc1.dtype
    return jax.lax.map(lambda states: text(states).astype(dtype), context)
