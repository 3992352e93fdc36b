"""Models made of a sequence of blocks, any of which can be dropped."""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.hooks import shapes_of


class BlockStack(Protocol):
    """A denoiser made of a sequence of residual blocks, any of which can be dropped.

    Dropping a block means that its output is its input. Parameters of the blocks are
    stacked on a leading axis and chosen by a traced index, so that every choice of
    dropped blocks runs in one compiled program. ``hidden`` and ``context`` may be any
    pytrees of arrays with leading axis ``n``.

    Blocks need not be alike. Optional members describe a stack of several kinds:

    - ``segments: tuple[int, ...]``: numbers of equal blocks in a row, whose sum is
      ``num_blocks``; one segment of all blocks if absent. Blocks are numbered through.
    - ``segment_block(segment, index, hidden, context)``: block ``index`` (may be
      traced, counted within the segment) of a segment (a Python integer).
    - ``block_costs``: relative FLOPs of each block, ``[num_blocks]`` numbers.
    - ``perturbations``: kinds of perturbation that the blocks have besides ``"drop"``;
      ``segment_block`` then takes one as ``perturb``, a ``BlockPerturbation`` or
      ``None``. ``perturbation_savings`` maps kinds to the fraction of a block's cost
      that each saves.
    """

    @property
    def num_blocks(self) -> int:
        """Depth of the stack."""
        ...

    def embed(self, x: jax.Array, sigma: jax.Array, label: Any) -> tuple[Any, Any]:
        """The state that enters block 0, and what all blocks are conditioned on."""
        ...

    def block(self, index: ArrayLike, hidden: Any, context: Any) -> Any:
        """The state after block ``index`` (may be traced), of the same structure."""
        ...

    def readout(
        self, hidden: Any, context: Any, x: jax.Array, sigma: jax.Array
    ) -> jax.Array:
        """The denoised samples, from the state that leaves the last block."""
        ...


class Backbone(Protocol):
    """A network in its own parameterization, made of blocks: see ``ProcessStack``.

    It sees noisy samples in the scale of its process and the time of its process, and
    returns its own prediction. Optional: ``segments``, the sizes of runs of equal
    blocks (one of all blocks if absent); ``block_costs``, ``perturbations`` (as in
    ``BlockStack``), ``sample_shape`` and ``num_labels``.
    """

    @property
    def num_blocks(self) -> int:
        """Depth of the stack."""
        ...

    def embed(self, x_t: jax.Array, time: jax.Array, label: Any) -> tuple[Any, Any]:
        """State entering block 0 and context, from ``x_t`` ``[n, ...]``, time ``[n]``.

        The label is ``None`` (no condition) or integers ``[n]``.
        """
        ...

    def segment_block(
        self, segment: int, index: ArrayLike, hidden: Any, context: Any
    ) -> Any:
        """The state after block ``index`` (traced, within the segment)."""
        ...

    def readout(self, hidden: Any, context: Any) -> jax.Array:
        """The prediction, in the shape of ``x_t`` or with twice its channels.

        The further channels are those of a learned variance.
        """
        ...


#: What a model must have to be a ``BlockStack``.
MEMBERS = ("num_blocks", "embed", "block", "readout")


def is_block_stack(model: Any) -> bool:
    """Whether the model exposes its blocks."""
    return all(hasattr(model, name) for name in MEMBERS)


def check_members(model: Any) -> None:
    """Raise ``TypeError`` if a model has some members of a ``BlockStack``, not all."""
    missing = [name for name in MEMBERS if not hasattr(model, name)]
    if missing and len(missing) < len(MEMBERS):
        raise TypeError(
            f"this guidance rule drops blocks, but {type(model).__name__} is no "
            f"BlockStack, since it has no {' and no '.join(missing)}. Define what is "
            f"missing; a Backbone becomes one by ProcessStack(network, process, "
            f"prediction)."
        )


def segments_of(model: Any) -> tuple[int, ...]:
    """Numbers of equal blocks in a row: ``(num_blocks,)`` if the model names none.

    Raises:
        ValueError: if the segments do not add up to the number of blocks.
    """
    segments = tuple(getattr(model, "segments", None) or (model.num_blocks,))
    if sum(segments) != model.num_blocks or min(segments) < 1:
        raise ValueError(
            f"segments must be sizes of at least 1 that add up to num_blocks="
            f"{model.num_blocks}, got {segments}."
        )
    return segments


def relative_costs(model: Any) -> np.ndarray:
    """The fraction of a pass that each block costs, ``[num_blocks]``.

    Args:
        model: a model with ``num_blocks`` and perhaps ``block_costs``; or a number of
            equal blocks.

    Raises:
        ValueError: if the costs are not positive, or not one for each block.
    """
    num_blocks = model if isinstance(model, int) else model.num_blocks
    costs = getattr(model, "block_costs", None)
    costs = np.ones(num_blocks) if costs is None else np.asarray(costs, float)
    if costs.shape != (num_blocks,) or not (costs > 0).all():
        raise ValueError(
            f"block_costs must be {num_blocks} numbers above 0, one for each block, "
            f"got {costs.tolist()}."
        )
    return costs / costs.sum()


def run_segment_block(
    model: Any,
    segment: int,
    index: ArrayLike,
    hidden: Any,
    context: Any,
    perturb: Any = None,
) -> Any:
    """Block ``index``, counted within a segment, of any stack.

    ``perturb`` is ``None``, or a ``BlockPerturbation`` that the stack has.

    Raises:
        TypeError: if the block does not return a state like the one that it was given.
    """
    hook = "segment_block"
    if perturb is not None:
        new = model.segment_block(segment, index, hidden, context, perturb)
    elif hasattr(model, "segment_block"):
        new = model.segment_block(segment, index, hidden, context)
    else:
        hook = "block"
        first = sum(segments_of(model)[:segment])
        new = model.block(index + first if first else index, hidden, context)
    got, wanted = shapes_of(new), shapes_of(hidden)
    if got != wanted:
        raise TypeError(
            f"{type(model).__name__}.{hook} must return the state in the structure, "
            f"shapes and types in which it is given, {wanted}, got {got}. Return the "
            f"new state, converted to the type of the old one."
        )
    return new


def run_embed(
    model: Any, x: jax.Array, sigma: jax.Array, label: Any
) -> tuple[Any, Any]:
    """The state entering block 0 and the context of any stack.

    Raises:
        TypeError: if ``embed`` does not return the two.
    """
    embedded = model.embed(x, sigma, label)
    if not isinstance(embedded, tuple) or len(embedded) != 2:
        got = type(embedded).__name__
        raise TypeError(
            f"{type(model).__name__}.embed must return the tuple (hidden, context), "
            f"got {got}. Return (hidden, ()) if the blocks need no context."
        )
    for leaf in jax.tree.leaves(embedded):
        if jnp.shape(leaf)[:1] != x.shape[:1]:
            raise ValueError(
                f"{type(model).__name__}.embed must return arrays whose leading axis "
                f"is that of x, {x.shape[0]} samples, got one of shape "
                f"{jnp.shape(leaf)}. Broadcast it to all samples."
            )
    return embedded


def run_readout(
    model: Any, hidden: Any, context: Any, x: jax.Array, sigma: jax.Array
) -> jax.Array:
    """The denoised samples of any stack.

    Raises:
        ValueError: if they do not have the shape of ``x``, but for a last axis of twice
            the size, which holds a learned variance.
    """
    value = model.readout(hidden, context, x, sigma)
    doubled = (*x.shape[:-1], 2 * x.shape[-1])
    if jnp.shape(value) not in (x.shape, doubled):
        raise ValueError(
            f"{type(model).__name__}.readout must return denoised samples of the shape "
            f"of x, {x.shape}, got {jnp.shape(value)}."
        )
    return value


def run_block(model: Any, index: ArrayLike, hidden: Any, context: Any) -> Any:
    """Block ``index``, counted through, of a model that defines ``segment_block``.

    Where blocks differ, a switch chooses the segment, so that the index may be traced.
    """
    sizes = segments_of(model)
    if len(sizes) == 1:
        return model.segment_block(0, index, hidden, context)
    starts = (0, *itertools.accumulate(sizes))
    segment = jnp.sum(jnp.asarray(index) >= jnp.asarray(starts[1:-1]))
    branches = [
        lambda index, hidden, context, s=s, start=start: model.segment_block(
            s, index - start, hidden, context
        )
        for s, start in enumerate(starts[:-1])
    ]
    return jax.lax.switch(segment, branches, index, hidden, context)
