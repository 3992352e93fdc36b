"""``Flux``: the transformer of Flux.1, as a backbone of blocks."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from full_models.models.attention import attention
from full_models.models.flux.config import PATCH, FluxConfig
from full_models.models.flux.pipeline import FluxPipeline
from full_models.models.joint import (
    STEPS,
    HeadNorms,
    JointBlock,
    PromptedNetwork,
    Rotate,
    chosen,
    joint_savings,
    rms_norm,
    stacked,
)
from full_models.models.layers import (
    XAVIER,
    FinalLayer,
    Linear,
    TimeEmbedding,
    layer_norm,
    modulate,
)
from gmm_guidance.blocks.perturbation import (
    JOINT_KINDS,
    BlockPerturbation,
    blend,
    perturbed_attention,
    shuffled,
)

_TEXT_LENGTH = 512  # tokens of a prompt in diffusers' pipeline


class SingleBlock(nnx.Module):
    """Attention and MLP side by side, on text and image as one sequence.

    Args:
        config: the shape.
        rngs: Flax random streams.
    """

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        make = functools.partial(
            Linear, dtype=c.compute_dtype, kernel_init=XAVIER, rngs=rngs
        )
        self.modulation = make(c.width, 3 * c.width)
        self.linear1 = make(c.width, 7 * c.width)  # queries, keys, values, MLP
        self.linear2 = make(5 * c.width, c.width)
        self.norms = HeadNorms(c)

    def __call__(
        self,
        tokens: jax.Array,
        condition: jax.Array,
        rotate: Rotate,
        perturb: BlockPerturbation | None = None,
    ) -> jax.Array:
        """``[n, S + T, D]`` to the same; condition ``[n, D]``, activated.

        The bias of the common output belongs to the MLP.
        """
        width = self.config.width
        text = tokens.shape[1] - self.config.num_tokens
        tokens = shuffled(tokens, perturb, text)
        shift, scale, gate = jnp.split(self.modulation(condition), 3, axis=-1)
        inner = modulate(layer_norm(tokens), shift, scale)
        perturb = perturb or BlockPerturbation("none")
        has_attention = not perturb.is_full("drop_attention")
        has_mlp = not perturb.is_full("drop_mlp")
        # What is made of the tokens: queries, keys, values, features of the MLP.
        first = 0 if has_attention else 3 * width
        first = 2 * width if perturb.is_full("identity") else first
        last = 7 * width if has_mlp else 3 * width
        made = jax.tree.map(lambda a: a[..., first:last], self.linear1)(inner)
        split = 3 * width - first
        parts, output = [], self.linear2
        if has_attention:
            parts.append(self._mixed(made[..., :split], perturb, rotate, text))
        if has_mlp:
            active = jax.nn.gelu(made[..., split:], approximate=True)
            parts.append(active.astype(self.config.compute_dtype))
        if len(parts) == 1:
            output = jax.tree.map(lambda a: a, output)
            rows = slice(None, width) if has_attention else slice(width, None)
            output.kernel = nnx.Param(output.kernel[...][rows])
            if has_attention:
                output.bias = nnx.Param(jnp.zeros_like(output.bias[...]))
        elif perturb.kind in ("drop_attention", "drop_mlp"):
            weakened = 0 if perturb.kind == "drop_attention" else 1
            part = parts[weakened]
            parts[weakened] = blend(part, jnp.zeros_like(part), perturb.amount)
        result = output(jnp.concatenate(parts, axis=-1))
        if perturb.kind == "drop_mlp" and perturb.amount is not None:
            assert output.bias is not None
            bias = output.bias[...].astype(jnp.float32)
            result = result - perturb.amount * bias[None, None]
        return tokens + gate[:, None] * result

    def _mixed(
        self, heads: jax.Array, perturb: BlockPerturbation, rotate: Rotate, text: int
    ) -> jax.Array:
        """Mixed values ``[n, S + T, D]``, of queries, keys and values."""
        c = self.config
        n, count, _ = heads.shape
        if perturb.is_full("identity"):
            return heads.astype(c.compute_dtype)
        heads = heads.reshape(n, count, 3, c.num_heads, -1)
        query, key = (
            rotate(rms_norm(heads[:, :, i], norm).astype(c.compute_dtype))
            for i, norm in enumerate((self.norms.norm_q, self.norms.norm_k))
        )
        value = heads[:, :, 2].astype(c.compute_dtype)
        attend = functools.partial(attention, implementation=c.attention)
        grid = tuple(side // PATCH for side in c.input_size)
        mixed = perturbed_attention(attend, query, key, value, perturb, grid, text)
        return mixed.reshape(n, count, -1)


class Flux(PromptedNetwork):
    """The transformer of Flux.1 by Black Forest Labs.

    A ``Backbone`` of ``gmm_guidance``, which ``as_stack`` makes a ``Denoiser`` and
    ``BlockStack``; labels are the prompts of ``with_prompts``. Samples are latents
    ``[n, H, W, C]``, channels last. Blocks of two streams come first, then blocks of
    one; parameters of each kind are stacked on their leading axis.

    Args:
        config: the shape.
        rngs: Flax random streams.
    """

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        pixels = PATCH**2 * c.in_channels
        self.image_in = Linear(
            pixels, c.width, dtype=c.compute_dtype, kernel_init=XAVIER, rngs=rngs
        )
        self._make_text(rngs=rngs)
        self.guidance = (
            TimeEmbedding(c.width, rngs=rngs) if c.variant == "dev" else None
        )
        self.double = stacked(lambda r: JointBlock(c, rngs=r), c.num_double, rngs)
        self.single = stacked(lambda r: SingleBlock(c, rngs=r), c.num_single, rngs)
        self.final = FinalLayer(c.width, pixels, c.compute_dtype, rngs=rngs)

    @property
    def num_blocks(self) -> int:
        """Depth of the stack."""
        return self.config.depth

    @property
    def segments(self) -> tuple[int, int]:
        """Numbers of double and single blocks."""
        return self.config.num_double, self.config.num_single

    @property
    def block_costs(self) -> tuple[float, ...]:
        """Operations of each block for one sample, the same for both kinds."""
        d, t = self.config.width, self.config.num_tokens + self._text_length
        return self.num_blocks * (24.0 * d**2 * t + 4.0 * t**2 * d,)

    @property
    def perturbations(self) -> frozenset[str]:
        """Kinds of perturbation of the blocks."""
        return JOINT_KINDS

    @property
    def perturbation_savings(self) -> dict[str, float]:
        """Fraction of the operations of a block that each kind saves."""
        c = self.config
        saved = joint_savings(c.width, c.num_tokens, self._text_length)
        return {kind: part / self.block_costs[0] for kind, part in saved.items()}

    @property
    def _text_length(self) -> int:
        return _TEXT_LENGTH if self.prompts is None else self.prompts.shape[1]

    @property
    def pipeline(self) -> FluxPipeline:
        """How the model is sampled."""
        return FluxPipeline(self.config)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one sample, ``(H, W, C)``."""
        return (*self.config.input_size, self.config.in_channels)

    def embed(
        self, x_t: jax.Array, time: jax.Array, label: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens of text and image, ``[n, S + T, D]``; condition ``[n, D]``."""
        tokens = self.image_in(_packed(x_t.astype(jnp.float32)))
        text, vector = self._text(x_t.shape[0], label)
        condition = self.time(STEPS * time.astype(jnp.float32))
        if self.guidance is not None:
            scale = jnp.full(x_t.shape[:1], STEPS * self.config.guidance, jnp.float32)
            condition = condition + self.guidance(scale)
        hidden = jnp.concatenate([text.astype(jnp.float32), tokens], axis=1)
        return hidden, jax.nn.silu(condition + vector)

    def segment_block(
        self,
        segment: int,
        index: ArrayLike,
        hidden: jax.Array,
        context: jax.Array,
        perturb: BlockPerturbation | None = None,
    ) -> jax.Array:
        """The tokens after block ``index`` of the double or the single blocks."""
        c = self.config
        length = hidden.shape[1] - c.num_tokens
        cos, sin = rotation_table(c.input_size, length, c.axes)
        rotate = functools.partial(_rotated, cos=cos, sin=sin)
        if segment:
            return chosen(self.single, index)(hidden, context, rotate, perturb)
        block = chosen(self.double, index)
        grid = tuple(side // PATCH for side in c.input_size)
        streams = hidden[:, length:], hidden[:, :length]
        image, text = block(*streams, context, rotate, perturb, grid)
        return jnp.concatenate([text, image], axis=1)

    def readout(self, hidden: jax.Array, context: jax.Array) -> jax.Array:
        """The velocity ``[n, H, W, C]``."""
        c = self.config
        return _unpacked(self.final(hidden[:, -c.num_tokens :], context), c.input_size)


@functools.cache
def rotation_table(
    size: tuple[int, int], length: int, axes: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the angles of all tokens, float32 ``[S + T, pairs]``.

    Each pair of features turns by ``position / 10000^(2 i / axis)``, for the three axes
    of a position: 0, row and column (Su et al. 2021, arXiv 2104.09864). Text, which
    comes first, is at the origin.

    Args:
        size: height and width of the latent.
        length: number of text tokens.
        axes: numbers of features for the three axes.
    """
    rows, columns = (side // PATCH for side in size)
    places = np.zeros((length + rows * columns, 3))
    places[length:, 1] = np.repeat(np.arange(rows), columns)
    places[length:, 2] = np.tile(np.arange(columns), rows)
    angles = [
        places[:, axis, None] * 10000.0 ** (-np.arange(0, count, 2) / count)
        for axis, count in enumerate(axes)
    ]
    phase = np.concatenate(angles, axis=1)
    tables = np.cos(phase).astype(np.float32), np.sin(phase).astype(np.float32)
    for table in tables:
        table.setflags(write=False)  # it is shared by all callers
    return tables


def _rotated(heads: jax.Array, cos: np.ndarray, sin: np.ndarray) -> jax.Array:
    """Neighboring features of ``[n, tokens, heads, head_dim]`` turned as pairs."""
    pairs = heads.astype(jnp.float32).reshape(*heads.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    c, s = (jnp.asarray(table)[None, :, None] for table in (cos, sin))
    turned = jnp.stack([a * c - b * s, a * s + b * c], axis=-1)
    return turned.reshape(heads.shape).astype(heads.dtype)


def _packed(x: jax.Array) -> jax.Array:
    """``[n, H, W, C]`` to ``[n, T, C 2 2]``; features by channel, row, column."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // PATCH, PATCH, width // PATCH, PATCH, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(n, height * width // PATCH**2, channels * PATCH**2)


def _unpacked(tokens: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The inverse of ``_packed``."""
    height, width = size
    x = tokens.reshape(
        len(tokens), height // PATCH, width // PATCH, -1, PATCH, PATCH
    ).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(len(tokens), height, width, -1)
