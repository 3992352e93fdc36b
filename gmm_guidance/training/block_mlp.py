"""``BlockMLP``: a small residual network for points, of several kinds of block.

With the data's mean ``m`` and scale ``s``, the network sees ``(x - m) / sqrt(sigma^2 +
s^2)`` and ``ln(sigma) / 4`` (Karras et al. 2022, arXiv 2206.00364, Table 1), and its
output F is a ``ScaledPrediction``, so that input and target are of order one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from gmm_guidance._runtime.pytree import one_line_repr
from gmm_guidance.blocks.perturbation import (
    ATTENTION_KINDS,
    BlockPerturbation,
    add_branch,
    attention_savings,
    perturbed_attention,
    shuffled,
)
from gmm_guidance.blocks.process_stack import ProcessStack
from gmm_guidance.diffusion.parameterization import ScaledPrediction
from gmm_guidance.diffusion.process import VE

BlockKind = Literal["prenorm", "plain", "adaln_zero", "attention"]
_HEADS = 4


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Shape, kind and scale of a ``BlockMLP``.

    Attributes:
        dim: dimension of a sample, at least 1.
        num_labels: number of classes; label ``num_labels`` means "no condition".
        width: features of the residual stream, at least 1.
        num_blocks: residual blocks, at least 1.
        num_frequencies: pairs of sine and cosine that encode the noise level.
        data_scale: root mean square standard deviation of the data, > 0.
        data_mean: mean of the data, ``dim`` numbers; the origin when empty.
        prediction: what the network predicts, ``"edm"``, ``"epsilon"``, ``"velocity"``
            or ``"x0"``; see ``ScaledPrediction``.
        block: kind of the residual blocks. ``"prenorm"``: a LayerNorm at the start of
            each, time and label added inside, and a last LayerNorm. ``"plain"``: no
            norms, time and label enter at the input, as in small DDPM code.
            ``"adaln_zero"``: norms modulated by time and label, and gates that start
            at zero, as in DiT (Peebles & Xie 2023, arXiv 2212.09748), with an MLP only.
            ``"attention"``: pre-norm transformer blocks, self-attention over the
            coordinates of a sample as tokens and an MLP; ``width`` is a multiple of 4.

    Raises:
        ValueError: for values out of these ranges.
    """

    dim: int
    num_labels: int = 1
    width: int = 64
    num_blocks: int = 8
    num_frequencies: int = 16
    data_scale: float = 1.0
    data_mean: tuple[float, ...] = ()
    prediction: Literal["edm", "epsilon", "velocity", "x0"] = "edm"
    block: BlockKind = "prenorm"

    def __post_init__(self):
        for name in ("dim", "num_labels", "width", "num_blocks", "num_frequencies"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}."
                )
        if self.data_mean and len(self.data_mean) != self.dim:
            raise ValueError(
                f"data_mean must have {self.dim} numbers, got {len(self.data_mean)}."
            )
        if not 0 < self.data_scale < math.inf:
            raise ValueError(f"data_scale must be > 0, got {self.data_scale}.")
        check_block(self.block, self.width)
        self.scaled_prediction()  # checks the prediction

    def scaled_prediction(self) -> ScaledPrediction:
        """The prediction for data of this mean and scale."""
        return ScaledPrediction(self.prediction, self.data_scale, self.data_mean)


def check_block(block: str, width: int) -> None:
    """Raise ``ValueError`` for an unknown kind of block, or a width it cannot have."""
    if block not in _KINDS:
        raise ValueError(f"block must be one of {', '.join(_KINDS)}, got {block!r}.")
    if block == "attention" and width % _HEADS:
        raise ValueError(
            f"width must be a multiple of {_HEADS} for attention blocks (heads), got "
            f"{width}."
        )


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, use_bias=False, use_scale=False, rngs=rngs)


def _zeros(width: int, out: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(width, out, kernel_init=nnx.initializers.zeros, rngs=rngs)


class PreNormBlock(nnx.Module):
    """``h + W2 silu(W1 norm(h) + Wc context)``."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = _norm(width, rngs)
        self.inner = nnx.Linear(width, width, rngs=rngs)
        self.condition = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.outer = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, hidden: jax.Array, context: jax.Array) -> jax.Array:
        """The next state, ``[n, width]``."""
        inner = self.inner(self.norm(hidden)) + self.condition(context)
        return hidden + self.outer(nnx.silu(inner))


class PlainBlock(nnx.Module):
    """``h + W2 silu(W1 h)``."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(width, width, rngs=rngs)
        self.outer = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, hidden: jax.Array, context: jax.Array) -> jax.Array:
        """The next state, ``[n, width]``; the context is not used."""
        return hidden + self.outer(nnx.silu(self.inner(hidden)))


class AdaLNZeroBlock(nnx.Module):
    """``h + gate W2 silu(W1 (norm(h) (1 + scale) + shift))``, modulated by context.

    Scale, shift and gate start at zero, so that a new block is the identity.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = _norm(width, rngs)
        self.modulation = _zeros(width, 3 * width, rngs)
        self.inner = nnx.Linear(width, width, rngs=rngs)
        self.outer = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, hidden: jax.Array, context: jax.Array) -> jax.Array:
        """The next state, ``[n, width]``."""
        shift, scale, gate = jnp.split(self.modulation(context), 3, axis=-1)
        inner = self.inner(self.norm(hidden) * (1.0 + scale) + shift)
        return hidden + gate * self.outer(nnx.silu(inner))


class AttentionBlock(nnx.Module):
    """``h + attention(norm(h) + Wc context)``, then ``h + MLP(norm(h))``."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = _norm(width, rngs)
        self.condition = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(_HEADS, width, decode=False, rngs=rngs)
        self.inner = nnx.Linear(width, width, rngs=rngs)
        self.outer = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self,
        hidden: jax.Array,
        context: jax.Array,
        perturb: BlockPerturbation | None = None,
    ) -> jax.Array:
        """The next state, ``[n, dim, width]``."""

        def attend():
            tokens = self.norm(hidden) + self.condition(context)[:, None]
            if perturb is None:
                return self.attention(tokens)
            layer = self.attention
            query, key, value = (
                project(tokens) for project in (layer.query, layer.key, layer.value)
            )
            plain = nnx.dot_product_attention
            return layer.out(perturbed_attention(plain, query, key, value, perturb))

        def feed_forward():
            return self.outer(nnx.silu(self.inner(self.norm(hidden))))

        hidden = shuffled(hidden, perturb)
        hidden = add_branch(hidden, attend, "attention", perturb)
        return add_branch(hidden, feed_forward, "mlp", perturb)


class _Kind(NamedTuple):
    """What a kind of block asks of the network around it."""

    block: Callable[..., Any]
    at_input: bool = False  # time and label enter at the input, not in the blocks
    has_norm: bool = True  # before the output
    modulated: bool = False  # DiT's last layer: modulated, and zero at the start
    tokens: bool = False  # a token for each coordinate


_KINDS: dict[str, _Kind] = {
    "prenorm": _Kind(PreNormBlock),
    "plain": _Kind(PlainBlock, at_input=True, has_norm=False),
    "adaln_zero": _Kind(AdaLNZeroBlock, modulated=True),
    "attention": _Kind(AttentionBlock, tokens=True),
}


class BlockMLP(nnx.Module):
    """A residual network for points, conditioned on noise level and label.

    A ``Backbone``, which ``as_stack`` makes a ``Denoiser`` and a ``BlockStack``.
    Parameters of the blocks are stacked on their leading axis. A new network has LeCun
    normal kernels and zero biases, Flax's defaults; ``"adaln_zero"`` has gates,
    modulation and output of zero.

    Args:
        config: shape, kind and scale.
        rngs: Flax random streams; ``nnx.Rngs(jax.random.key(0))``.
    """

    __repr__ = one_line_repr

    def __init__(self, config: NetworkConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, kind = config.width, _KINDS[config.block]
        size = 1 if kind.tokens else config.dim
        self.embed_sample = nnx.Linear(size, width, rngs=rngs)
        self.embed_noise = nnx.Linear(2 * config.num_frequencies, width, rngs=rngs)
        self.embed_label = nnx.Embed(config.num_labels + 1, width, rngs=rngs)
        keys = jax.random.split(rngs.params(), config.num_blocks)
        self.blocks = jax.vmap(lambda key: kind.block(width, rngs=nnx.Rngs(key)))(keys)
        self.norm = _norm(width, rngs)
        if kind.tokens:
            self.embed_position = nnx.Embed(config.dim, width, rngs=rngs)
        if kind.modulated:
            self.modulation = _zeros(width, 2 * width, rngs)
        output = _zeros if kind.modulated else nnx.Linear
        self.output = output(width, size, rngs=rngs)

    @property
    def num_blocks(self) -> int:
        """Depth of the stack."""
        return self.config.num_blocks

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return self.config.num_labels

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Noise levels of the default schedule, from the data's scale and mean."""
        scale, mean = self.config.data_scale, self.config.data_mean
        extent = math.hypot(scale, max(map(abs, mean), default=0.0))
        return 0.0005 * scale, 20.0 * extent

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, ``(dim,)``."""
        return (self.config.dim,)

    def as_stack(self) -> ProcessStack:
        """The network as a ``Denoiser`` and a ``BlockStack``."""
        return ProcessStack(self, VE(), self.config.scaled_prediction())

    def embed(
        self, x_t: jax.Array, time: jax.Array, label: Any
    ) -> tuple[jax.Array, jax.Array]:
        """State entering block 0, and context ``[n, width]``, of ``x_t`` ``[n, dim]``.

        The state is ``[n, width]``, or ``[n, dim, width]`` with attention. The time is
        sigma, ``[n]``.
        """
        config, kind = self.config, _KINDS[self.config.block]
        sigma = time[:, None].astype(x_t.dtype)
        mean = jnp.asarray(config.data_mean or (0.0,) * config.dim, x_t.dtype)
        root = jnp.sqrt(sigma**2 + config.data_scale**2)
        inputs = 1.0 / root * (x_t - mean[None])
        # Frequencies up to one period per 0.1 in ln(sigma) / 4.
        frequencies = jnp.geomspace(0.5, 30.0, config.num_frequencies, dtype=x_t.dtype)
        phase = jnp.log(sigma) / 4.0 * frequencies[None]
        features = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)
        if label is None:
            label = jnp.full(x_t.shape[:1], config.num_labels, jnp.int32)
        context = self.embed_noise(features) + self.embed_label(label)
        if kind.tokens:
            positions = self.embed_position(jnp.arange(config.dim))[None]
            return self.embed_sample(inputs[..., None]) + positions, nnx.silu(context)
        hidden = self.embed_sample(inputs)
        return hidden + context if kind.at_input else hidden, nnx.silu(context)

    @property
    def perturbations(self) -> frozenset[str]:
        """Kinds of perturbation besides dropping: those of attention, if it has any."""
        return ATTENTION_KINDS if _KINDS[self.config.block].tokens else frozenset()

    @property
    def perturbation_savings(self) -> dict[str, float]:
        """Fraction of the products of a block that each kind saves."""
        c = self.config
        return attention_savings(c.width, c.width, c.dim, c.width)

    def segment_block(
        self,
        segment: int,
        index: ArrayLike,
        hidden: jax.Array,
        context: jax.Array,
        perturb: BlockPerturbation | None = None,
    ) -> jax.Array:
        """The state after block ``index``, perhaps perturbed."""
        chosen = jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False),
            self.blocks,
        )
        if perturb is None:
            return chosen(hidden, context)
        return chosen(hidden, context, perturb)

    def readout(self, hidden: jax.Array, context: jax.Array) -> jax.Array:
        """The prediction F, ``[n, dim]``."""
        kind = _KINDS[self.config.block]
        if kind.has_norm:
            hidden = self.norm(hidden)
        if kind.modulated:
            shift, scale = jnp.split(self.modulation(context), 2, axis=-1)
            hidden = hidden * (1.0 + scale) + shift
        output = self.output(hidden)
        return output[..., 0] if kind.tokens else output

    def predict(
        self, x_t: jax.Array, time: jax.Array, label: Any, keep: Any = None
    ) -> jax.Array:
        """A forward pass for training: F, ``[n, dim]``.

        One scan over the blocks, whose gradient costs no more than itself.

        Args:
            x_t: noisy samples ``[n, dim]``.
            time: sigma ``[n]``.
            label: integers ``[n]`` or ``None``.
            keep: whether each sample passes through each block, ``[num_blocks, n]``;
                all if ``None``.
        """
        hidden, context = self.embed(x_t, time, label)

        def step(hidden, layer):
            block, kept = layer
            after = block(hidden, context)
            if kept is not None:
                shape = (-1,) + (1,) * (hidden.ndim - 1)
                after = jnp.where(kept.reshape(shape), after, hidden)
            return after, None

        hidden, _ = jax.lax.scan(step, hidden, (self.blocks, keep))
        return self.readout(hidden, context)
