"""Perturbations of chosen blocks, of which leaving blocks out is one.

A block ``h + attention(h) + MLP(h)`` is weakened in one of these ways, each named by
its formula. ``amount`` softens most of them: ``None`` is the full perturbation, which
also saves what it makes superfluous; a number is traced and saves nothing.

================  ======================================  ======================
kind              the block becomes                       amount (off value)
================  ======================================  ======================
``drop``          ``h``                                   part left out (0)
``drop_attention``  ``h + MLP``                           part left out (0)
``drop_mlp``      ``h + attention``                       part left out (0)
``drop_cross``    without cross-attention                 part left out (0)
``identity``      attention map := identity               part of identity (0)
``identity_image``  identity among the image tokens       part of identity (0)
``blur``          queries towards their mean              part of the mean (0)
``grid_blur``     queries blurred on the token grid       sigma in tokens (0)
``temper``        logits multiplied by tau                tau (1)
``shuffle``       tokens permuted on entry                range of moves (0)
================  ======================================  ======================

Where text tokens take part in the attention, ``identity`` and ``temper`` act on all
tokens; ``identity_image``, ``blur``, ``grid_blur`` and ``shuffle`` on those of the
image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance._runtime.checks import as_float

#: Kinds of a transformer block of one stream: attention, then an MLP.
ATTENTION_KINDS = frozenset(
    {"drop_attention", "drop_mlp", "identity", "blur", "grid_blur", "temper", "shuffle"}
)
#: Kinds of a block in which image and text tokens attend to one another.
JOINT_KINDS = ATTENTION_KINDS | {"identity_image"}
#: Kinds of a transformer block with cross-attention to the text.
CROSS_KINDS = ATTENTION_KINDS | {"drop_cross"}
Tree = TypeVar("Tree")
_LIMITS = {"grid_blur": np.inf, "temper": np.inf}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Perturbation:
    """How a weak pass differs from the full pass.

    Attributes:
        kind: ``"drop"``, or a kind that the blocks of the model have; see above.
        blocks: the perturbed blocks, ascending indices ``[k]`` padded at the end with
            ``num_blocks``; or ``[n, k]``, a set for each sample.
        amount: strength, a scalar: a part in [0, 1], for ``grid_blur`` a standard
            deviation >= 0 in tokens, for ``temper`` the factor >= 0 of the logits.
            ``None`` is the full perturbation: part 1, the mean query, factor 0.
        key: random key of ``shuffle``; each block folds its index in.

    Raises:
        ValueError: for an amount out of range, or a shuffle without a key.
    """

    kind: str = dataclasses.field(metadata={"static": True})
    blocks: Any
    amount: Any = None
    key: Any = None

    def __post_init__(self):
        check_amount(self.kind, self.amount)
        if self.kind == "shuffle" and self.key is None:
            raise ValueError(
                "a shuffle needs a random key; give key=, in a rule random.key()."
            )

    @property
    def is_removal(self) -> bool:
        """Whether the blocks are left out, and so not computed."""
        return self.kind == "drop" and self.amount is None


def check_amount(kind: str, amount: Any) -> None:
    """Raise ``ValueError`` for an amount, where known, that is out of range."""
    number, high = as_float(amount), _LIMITS.get(kind, 1.0)
    if number is not None and not 0.0 <= number <= high:
        limits = ">= 0" if high == np.inf else "in [0, 1]"
        raise ValueError(f"amount of {kind!r} must be {limits}, got {number}.")


def check_kind(model: Any, kind: str) -> None:
    """Raise ``ValueError`` unless the blocks of a model have a kind of perturbation."""
    known = ["drop", *sorted(getattr(model, "perturbations", ()))]
    if kind not in known:
        name = type(getattr(model, "backbone", model)).__name__
        raise ValueError(
            f"the blocks of {name} have no perturbation {kind!r}, which this guidance "
            f"rule asks for; they have {', '.join(known)}."
        )


def saved_fraction(model: Any, kind: str, amount: Any = None) -> np.ndarray:
    """The fraction of each block's cost that a perturbation saves, ``[num_blocks]``.

    A model may define ``perturbation_savings``, a mapping from kinds to a number or to
    ``[num_blocks]`` numbers in [0, 1]; other kinds save nothing. A perturbation with an
    amount computes everything.
    """
    if kind == "drop" or amount is not None:
        saved: Any = float(amount is None)
    else:
        savings: Mapping[str, Any] = getattr(model, "perturbation_savings", {})
        saved = savings.get(kind, 0.0)
    num_blocks = model if isinstance(model, int) else model.num_blocks
    return np.broadcast_to(np.asarray(saved, float), (num_blocks,))


def attention_savings(
    width: int, mlp_width: int, tokens: int, modulation: int = 0, text: int = 0
) -> dict[str, float]:
    """``perturbation_savings`` of a block of attention and MLP, by its products.

    Args:
        width: features of a token.
        mlp_width: features inside the MLP.
        tokens: number of tokens.
        modulation: numbers that a block makes of its condition, once for a sample.
        text: number of text tokens of a cross-attention between the two; 0 for none.
    """
    mapping = 2 * width + 2 * tokens  # queries and keys; logits and mixing: per feature
    attention, mlp = mapping + 2 * width, 2 * mlp_width
    cross = 2 * width + 2 * text + 2 * width * text / tokens if text else 0
    whole = attention + mlp + cross + modulation / tokens
    saved = {
        "identity": mapping,
        "drop_attention": attention,
        "drop_cross": cross,
        "drop_mlp": mlp,
    }
    return {kind: part / whole for kind, part in saved.items() if part}


class BlockPerturbation(NamedTuple):
    """A perturbation at one block, for ``segment_block``.

    Attributes:
        kind: as in ``Perturbation``.
        amount: strength, a scalar; ``None`` is the full perturbation.
        key: random key of this block, for ``shuffle``.
    """

    kind: str
    amount: Any = None
    key: Any = None

    def is_full(self, kind: str) -> bool:
        """Whether this is the full perturbation of a kind, which saves its part."""
        return self.kind == kind and self.amount is None

    def is_identity(self) -> bool:
        """Whether attention maps, or parts of them, become the identity."""
        return self.kind in ("identity", "identity_image")


def add_branch(
    hidden: Tree,
    branch: Callable[[], Tree],
    name: str,
    perturb: BlockPerturbation | None,
) -> Tree:
    """``hidden + branch()``, unless the perturbation leaves that branch out.

    Args:
        hidden: the residual stream, or a tree of streams.
        branch: computes what is added.
        name: ``"attention"``, ``"mlp"`` or ``"cross"``.
        perturb: the perturbation of the block, or ``None``.
    """
    if perturb is not None and perturb.is_full(f"drop_{name}"):
        return hidden
    full = jax.tree.map(jnp.add, hidden, branch())
    if perturb is None or perturb.kind != f"drop_{name}":
        return full
    return blend(full, hidden, perturb.amount)


class _Attention(Protocol):
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, /
    ) -> jax.Array: ...


def perturbed_attention(
    attention: _Attention,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    perturb: BlockPerturbation | None,
    grid: Sequence[int] = (),
    text: int = 0,
) -> jax.Array:
    """Self-attention, perturbed.

    Args:
        attention: the function of queries, keys and values ``[n, T, heads, head_dim]``;
            with text tokens, scaled dot-product attention.
        query: queries, perhaps without those of the text.
        key: keys.
        value: values.
        perturb: the perturbation of the block, or ``None``; kinds that do not concern
            the attention map change nothing.
        grid: sizes of the grid of image tokens, rows first; a line of tokens by
            default.
        text: number of text tokens, which come first among keys and values.
    """
    if perturb is None:
        return attention(query, key, value)
    kind, amount = perturb.kind, perturb.amount
    lead = query.shape[1] - key.shape[1] + text  # queries of the text
    if perturb.is_identity():
        weak = value[:, text - lead :]
        if kind == "identity_image" and text:
            weak = _without_other_images(attention, query, key, value, text, lead)
        if amount is None:
            return weak
        return blend(attention(query, key, value), weak, amount)
    if kind == "temper":
        query = query * _like(0.0 if amount is None else amount, query)
    elif kind in ("blur", "grid_blur"):
        image = query[:, lead:]
        if kind == "grid_blur" and amount is not None:
            image = _blur(image, amount, grid or image.shape[1:2])
        else:
            mean = jnp.broadcast_to(jnp.mean(image, axis=1, keepdims=True), image.shape)
            image = mean if amount is None else blend(image, mean, amount)
        query = jnp.concatenate([query[:, :lead], image], axis=1) if lead else image
    return attention(query, key, value)


def _without_other_images(
    attention: _Attention,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    text: int,
    lead: int,
) -> jax.Array:
    """Attention in which an image token sees the text and itself alone."""
    image = query[:, lead:].astype(jnp.float32) / np.sqrt(query.shape[-1])
    keys = key.astype(jnp.float32)
    of_text = jnp.einsum("nqhd,nkhd->nqhk", image, keys[:, :text])
    own = jnp.sum(image * keys[:, text:], axis=-1, keepdims=True)
    share = jax.nn.softmax(jnp.concatenate([of_text, own], axis=-1), axis=-1)
    share = share.astype(value.dtype)
    mixed = jnp.einsum("nqhk,nkhd->nqhd", share[..., :text], value[:, :text])
    mixed = mixed + share[..., text:] * value[:, text:]
    if not lead:
        return mixed
    return jnp.concatenate([attention(query[:, :lead], key, value), mixed], axis=1)


def shuffled(
    tokens: jax.Array, perturb: BlockPerturbation | None, text: int = 0
) -> jax.Array:
    """Tokens ``[n, T, D]``, permuted if the perturbation is a shuffle.

    One permutation for all samples. With an amount ``u`` the tokens are sorted by
    ``(1 - u) place + u random``, both uniform in [0, 1): 0 = off. The first ``text``
    tokens stay in place.
    """
    if perturb is None or perturb.kind != "shuffle":
        return tokens
    if text:
        image = shuffled(tokens[:, text:], perturb)
        return jnp.concatenate([tokens[:, :text], image], axis=1)
    count = tokens.shape[1]
    random = jax.random.uniform(perturb.key, (count,), jnp.float32)
    if perturb.amount is not None:
        place = jnp.arange(count, dtype=jnp.float32) / count
        random = blend(place, random, perturb.amount)
    return tokens[:, jnp.argsort(random)]


def blend(full: Any, weak: Any, amount: Any) -> Any:
    """From ``full`` to ``weak``: exactly ``full`` at amount 0. Trees of arrays."""
    return jax.tree.map(lambda a, b: a + _like(amount, a) * (b - a), full, weak)


def _like(amount: Any, array: jax.Array) -> jax.Array:
    return jnp.asarray(amount).astype(array.dtype)


def _blur(query: jax.Array, sigma: Any, grid: Sequence[int]) -> jax.Array:
    """Gaussian blur over the grid, weights renormalized at its edges.

    So a growing sigma leads to the mean query without a jump.
    """
    n, tokens, *rest = query.shape
    values = query.reshape(n, *grid, *rest)
    for axis, size in enumerate(grid, start=1):
        distance = np.subtract.outer(np.arange(size), np.arange(size))
        # At sigma 0 only the token itself: no 0 / 0.
        width = jnp.maximum(jnp.asarray(sigma, jnp.float32), 1e-3)
        weights = jnp.exp(-0.5 * jnp.square(jnp.asarray(distance, jnp.float32) / width))
        weights = (weights / jnp.sum(weights, 1, keepdims=True)).astype(query.dtype)
        values = jnp.moveaxis(jnp.tensordot(weights, values, (1, axis)), 0, axis)
    return values.reshape(n, tokens, *rest)
