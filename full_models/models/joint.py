"""Joint attention of text and image, and prompts as labels: of SD3 and Flux."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from full_models.models.attention import Implementation, attention
from full_models.models.family import DType
from full_models.models.layers import (
    MLP,
    XAVIER,
    Linear,
    TimeEmbedding,
    layer_norm,
    modulate,
)
from gmm_guidance._runtime.pytree import one_line_repr
from gmm_guidance.blocks.perturbation import (
    BlockPerturbation,
    add_branch,
    perturbed_attention,
    shuffled,
)

STEPS = 1000  # the networks count a time in [0, 1] in thousandths
Heads = tuple[jax.Array, jax.Array, jax.Array]
Rotate = Callable[[jax.Array], jax.Array]
Network = TypeVar("Network", bound="PromptedNetwork")


class Shape(Protocol):
    """What a block has to know of the config of its network."""

    @property
    def width(self) -> int:
        """Features of a token."""
        ...

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        ...

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalized."""
        ...

    @property
    def compute_dtype(self) -> DType:
        """Type of matrix products."""
        ...

    @property
    def attention(self) -> Implementation:
        """Implementation of attention."""
        ...


class EmbeddedPrompts(Protocol):
    """Prompts as text encoders return them.

    Attributes:
        context: states of the tokens of each prompt, ``[N, S, C]``.
        negative_context: those of the negative prompt, ``[S, C]``.
        pooled: a vector for each prompt, ``[N, P]``.
        negative_pooled: that of the negative prompt, ``[P]``.
    """

    context: Any
    negative_context: Any
    pooled: Any
    negative_pooled: Any


def rms_norm(x: jax.Array, scale: nnx.Param) -> jax.Array:
    """Unit mean square of features, times a learned scale; float32, epsilon 1e-6."""
    x = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    features = scale[...].astype(jnp.float32)
    return x * inverse * jnp.expand_dims(features, range(x.ndim - 1))


class HeadNorms(nnx.Module):
    """The norms of queries and keys, over the features of a head."""

    def __init__(self, shape: Shape):
        features = shape.width // shape.num_heads
        self.norm_q = nnx.Param(jnp.ones(features))
        self.norm_k = nnx.Param(jnp.ones(features))


class Maps(nnx.Module):
    """The linear maps of attention for one stream, and its norms.

    Args:
        shape: the config.
        has_output: whether the stream takes the result of its queries.
        rngs: Flax random streams.
    """

    def __init__(self, shape: Shape, *, has_output: bool = True, rngs: nnx.Rngs):
        self.num_heads, self.dtype = shape.num_heads, shape.compute_dtype
        width = shape.width
        make = functools.partial(
            Linear, dtype=self.dtype, kernel_init=XAVIER, rngs=rngs
        )
        self.qkv = make(width, 3 * width)
        self.norms = HeadNorms(shape) if shape.qk_norm else None
        self.proj = make(width, width) if has_output else None

    def heads(self, x: jax.Array) -> Heads:
        """Queries, keys and values ``[n, T, heads, head_dim]`` of ``[n, T, D]``."""
        query, key, value = self._split(self.qkv(x), 3)
        return self._normed(query, 0), self._normed(key, 1), value

    def keys_and_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Those of ``heads`` without the product for queries."""
        width = x.shape[-1]
        key_value = jax.tree.map(lambda a: a[..., width:], self.qkv)
        key, value = self._split(key_value(x), 2)
        return self._normed(key, 1), value

    def values(self, x: jax.Array) -> jax.Array:
        """The values of ``heads`` alone."""
        width = x.shape[-1]
        last = jax.tree.map(lambda a: a[..., 2 * width :], self.qkv)
        return self._split(last(x), 1)[0]

    def out(self, mixed: jax.Array) -> jax.Array:
        """Mixed values ``[n, T, heads, head_dim]`` to ``[n, T, D]``."""
        assert self.proj is not None
        return self.proj(mixed.reshape(*mixed.shape[:2], -1))

    def _split(self, x: jax.Array, parts: int) -> list[jax.Array]:
        n, tokens, width = x.shape
        split = x.reshape(n, tokens, parts, self.num_heads, -1)
        return [split[:, :, i].astype(self.dtype) for i in range(parts)]

    def _normed(self, x: jax.Array, which: int) -> jax.Array:
        if self.norms is None:
            return x
        scale = (self.norms.norm_q, self.norms.norm_k)[which]
        return rms_norm(x, scale).astype(self.dtype)


class Stream(nnx.Module):
    """What a joint block has for one of its two streams.

    Args:
        shape: the config.
        kind: ``"whole"``; ``"dual"``, with a second attention of the stream to itself;
            or ``"read"``, which is attended to and ends.
        rngs: Flax random streams.
    """

    TERMS = {"whole": 6, "dual": 9, "read": 2}

    def __init__(self, shape: Shape, kind: str = "whole", *, rngs: nnx.Rngs):
        width, dtype = shape.width, shape.compute_dtype
        self.terms = self.TERMS[kind]
        self.modulation = Linear(width, self.terms * width, dtype=dtype, rngs=rngs)
        self.attn = Maps(shape, has_output=kind != "read", rngs=rngs)
        self.attn2 = Maps(shape, rngs=rngs) if kind == "dual" else None
        self.mlp = MLP(width, 4 * width, dtype, rngs=rngs) if kind != "read" else None

    def modulated(self, condition: jax.Array) -> list[jax.Array]:
        """Shift, scale and (if there are any) gates, each ``[n, D]``."""
        return jnp.split(self.modulation(condition), self.terms, axis=-1)


class JointBlock(nnx.Module):
    """Attention over the tokens of both streams; maps and MLPs of each its own.

    Esser et al. 2024 (arXiv 2403.03206), Fig. 2; the second attention of the image is
    SD3.5-medium's, whose two read the same normed tokens.

    Args:
        shape: the config.
        image: kind of the image's ``Stream``.
        text: kind of the text's.
        rngs: Flax random streams.
    """

    def __init__(
        self, shape: Shape, image: str = "whole", text: str = "whole", *, rngs: nnx.Rngs
    ):
        self.implementation = shape.attention
        self.image = Stream(shape, image, rngs=rngs)
        self.text = Stream(shape, text, rngs=rngs)

    def __call__(
        self,
        image: jax.Array,
        text: jax.Array,
        condition: jax.Array,
        rotate: Rotate = lambda heads: heads,
        perturb: BlockPerturbation | None = None,
        grid: Sequence[int] = (),
    ) -> tuple[jax.Array, jax.Array]:
        """Both streams after the block; text that is only read stays as it is.

        Args:
            image: ``[n, T, D]``.
            text: ``[n, S, D]``.
            condition: ``[n, D]``, activated.
            rotate: turns queries and keys of all tokens, text first, by their places.
            perturb: a perturbation of the block.
            grid: rows and columns of image tokens, for a perturbation.
        """
        image = shuffled(image, perturb)
        terms = self.image.modulated(condition)
        text_terms = self.text.modulated(condition)
        normed = layer_norm(image)
        # Streams that go on after the block.
        streams = [(self.image, terms), (self.text, text_terms)]
        streams = streams[: 1 if self.text.mlp is None else 2]

        def attend() -> list[jax.Array]:
            inner = modulate(normed, *terms[:2])
            text_inner = modulate(layer_norm(text), *text_terms[:2])
            mixed = self._mixed(inner, text_inner, rotate, perturb, grid)
            parts = [mixed[:, -image.shape[1] :], mixed[:, : -image.shape[1]]]
            return [
                terms[2][:, None] * stream.attn.out(part)
                for (stream, terms), part in zip(streams, parts, strict=False)
            ]

        def attend_again() -> list[jax.Array]:
            # Both attentions read the same tokens, before either is added.
            shift, scale, gate = terms[6:]
            assert self.image.attn2 is not None
            second, inner = self.image.attn2, modulate(normed, shift, scale)
            if perturb is not None and perturb.is_identity() and perturb.amount is None:
                mixed = second.values(inner)
            else:
                heads = second.heads(inner)
                mixed = perturbed_attention(self._attend, *heads, perturb, grid)
            return [gate[:, None] * second.out(mixed)]

        hidden = add_branch([image, text][: len(streams)], attend, "attention", perturb)
        if self.image.attn2 is not None:
            hidden[:1] = add_branch(hidden[:1], attend_again, "attention", perturb)

        def feed_forward() -> list[jax.Array]:
            return [
                _through_mlp(x, stream.mlp, terms[3:6])
                for x, (stream, terms) in zip(hidden, streams, strict=True)
            ]

        after = [*add_branch(hidden, feed_forward, "mlp", perturb), text]
        return after[0], after[1]

    def _attend(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return attention(query, key, value, implementation=self.implementation)

    def _mixed(
        self,
        image: jax.Array,
        text: jax.Array,
        rotate: Rotate,
        perturb: BlockPerturbation | None,
        grid: Sequence[int],
    ) -> jax.Array:
        """Mixed values of modulated tokens, text first if its stream goes on."""
        maps, text_maps = self.image.attn, self.text.attn
        ends = self.text.mlp is None
        if perturb is not None and perturb.is_full("identity"):
            values = [] if ends else [text_maps.values(text)]
            return jnp.concatenate([*values, maps.values(image)], axis=1)
        query, key, value = maps.heads(image)
        if ends:
            text_key, text_value = text_maps.keys_and_values(text)
        else:
            text_query, text_key, text_value = text_maps.heads(text)
            query = jnp.concatenate([text_query, query], axis=1)
        key = jnp.concatenate([text_key, key], axis=1)
        value = jnp.concatenate([text_value, value], axis=1)
        return perturbed_attention(
            self._attend,
            rotate(query),
            rotate(key),
            value,
            perturb,
            grid,
            text.shape[1],
        )


def _through_mlp(x: jax.Array, mlp: Any, terms: list[jax.Array]) -> jax.Array:
    shift, scale, gate = terms
    return gate[:, None] * mlp(modulate(layer_norm(x), shift, scale))


def joint_savings(width: int, image: int, text: int) -> dict[str, float]:
    """Operations that each kind of perturbation saves in a joint block.

    Args:
        width: features of a token.
        image: number of image tokens.
        text: number of text tokens.
    """
    d, tokens = width, image + text
    mapping = 4.0 * tokens**2 * d
    return {
        "identity": 4.0 * d**2 * tokens + mapping,
        "identity_image": 4.0 * image**2 * d,
        "drop_attention": 8.0 * d**2 * tokens + mapping,
        "drop_mlp": 16.0 * d**2 * tokens,
    }


class TextMLP(nnx.Module):
    """Two linear maps of a vector with a SiLU between them, in float32."""

    def __init__(self, inner: int, width: int, *, rngs: nnx.Rngs):
        make = functools.partial(Linear, dtype="float32", kernel_init=XAVIER, rngs=rngs)
        self.fc1 = make(inner, width)
        self.fc2 = make(width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[n, inner]`` to ``[n, D]``."""
        return self.fc2(jax.nn.silu(self.fc1(x)))


class PromptedNetwork(nnx.Module):
    """Base of a network whose labels are prompts.

    It has a ``config`` with ``text_width``, ``pooled_width`` and ``family``, and what
    ``_make_text`` makes. The maps of the text do not depend on the time: they are
    applied once, when prompts are bound.
    """

    config: Any

    __repr__ = one_line_repr

    def _make_text(self, *, rngs: nnx.Rngs) -> None:
        c = self.config
        self.time = TimeEmbedding(c.width, rngs=rngs)
        self.pooled = TextMLP(c.pooled_width, c.width, rngs=rngs)
        self.context = Linear(
            c.text_width, c.width, dtype=c.compute_dtype, kernel_init=XAVIER, rngs=rngs
        )
        # Embedded prompts [N + 1, S, D] and [N + 1, D]; the last is the negative one.
        self.prompts: nnx.Param[Any] | None = nnx.data(None)
        self.pooled_prompts: nnx.Param[Any] | None = nnx.data(None)

    @property
    def num_labels(self) -> int:
        """Number of prompts; 0 before ``with_prompts``."""
        return 0 if self.prompts is None else self.prompts.shape[0] - 1

    def with_prompts(self: Network, prompts: EmbeddedPrompts) -> Network:
        """The network with these prompts as its labels; parameters are shared.

        Args:
            prompts: ``N`` prompts of ``S`` tokens, see ``full_models.Prompts``; the
                label ``None`` is the negative one.

        Raises:
            ValueError: for prompts of another family, shape or width, without pooled
                vectors, with values that are not finite, or without any values.
        """
        table, pooled = check_prompts(prompts, self.config)
        text = jax.jit(_embedded)(self.context, self._placed(table))
        vectors = jax.jit(lambda mlp, x: mlp(x))(self.pooled, self._placed(pooled))
        leaves, structure = jax.tree.flatten(self)
        bound = jax.tree.unflatten(structure, leaves)  # arrays are shared
        bound.prompts, bound.pooled_prompts = nnx.Param(text), nnx.Param(vectors)
        return bound

    def _placed(self, array: np.ndarray) -> jax.Array:
        """On the devices of the parameters, whole on each."""
        sharding = self.context.kernel[...].sharding
        if isinstance(sharding, NamedSharding):
            return jax.device_put(array, NamedSharding(sharding.mesh, PartitionSpec()))
        return jnp.asarray(array)

    def _text(self, n: int, label: Any) -> tuple[jax.Array, jax.Array]:
        """Text tokens ``[n, S, D]`` and vectors ``[n, D]`` of labels."""
        if self.prompts is None or self.pooled_prompts is None:
            raise ValueError(
                "the model has no prompts yet; use model.with_prompts(prompts), with "
                "the prompts of load_prompts."
            )
        if label is None:
            label = jnp.full(n, self.num_labels, jnp.int32)
        return self.prompts[...][label], self.pooled_prompts[...][label]


def check_prompts(prompts: Any, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Tokens ``[N + 1, S, C]`` and vectors ``[N + 1, P]``, the negative prompt last.

    Raises:
        ValueError: as ``PromptedNetwork.with_prompts``.
    """
    family = getattr(prompts, "family", None) or config.family
    if family != config.family:
        raise ValueError(
            f"prompts must be embedded for {config.family}, got those of {family}; use "
            f"full-models embed-prompts --family {config.family}."
        )
    remedy = "embed the prompts with the text encoders of the model"
    rows = []
    for name, axes, width in (
        ("context", 3, config.text_width),
        ("pooled", 2, config.pooled_width),
    ):
        both = getattr(prompts, name), getattr(prompts, f"negative_{name}")
        if both[0] is None or both[1] is None:
            raise ValueError(
                f"prompts must have {name} and negative_{name}; {remedy}, or pass both."
            )
        array, negative = (np.asarray(part) for part in both)
        if array.ndim != axes or array.shape[-1] != width or not array.shape[0]:
            wanted = "[N, S, " if axes == 3 else "[N, "
            raise ValueError(
                f"{name} must have shape {wanted}{width}], got {array.shape}; {remedy}."
            )
        if negative.shape != array.shape[1:]:
            raise ValueError(
                f"negative_{name} must have the shape {array.shape[1:]} of a row of "
                f"{name}, got {negative.shape}; embed both with the same lengths."
            )
        table = np.concatenate([array, negative[None].astype(array.dtype)])
        flat = table.reshape(len(table), -1).astype(np.float32)
        if not np.isfinite(flat).all():
            raise ValueError(
                f"{name} must be finite, got NaN or infinite values; embed the prompts "
                f"again, T5 in bfloat16 or float32."
            )
        empty = np.flatnonzero(~flat.any(axis=1))
        if empty.size:
            which = "the negative prompt" if empty[0] == len(array) else int(empty[0])
            raise ValueError(
                f"no prompt may be all zeros, got zeros for {name} of {which}; {remedy}"
                f" (the empty text is embedded like any other)."
            )
        rows.append(table)
    return rows[0], rows[1]


def chosen(blocks: Any, index: ArrayLike) -> Any:
    """One block of a stack, by a traced index."""
    return jax.tree.map(
        lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), blocks
    )


def stacked(make: Callable[[nnx.Rngs], Any], count: int, rngs: nnx.Rngs) -> Any:
    """Equal blocks with parameters stacked on a leading axis; none for a count of 0."""
    if not count:
        return nnx.data(None)
    keys = jax.random.split(rngs.params(), count)
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(keys)


def _embedded(context: Any, table: jax.Array) -> jax.Array:
    """``[N, S, C]`` to ``[N, S, D]``, one by one."""
    return jax.lax.map(context, table)
