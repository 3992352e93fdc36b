"""A ``BlockStack`` or ``Backbone`` from a list of blocks of any framework."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.pytree import Static, join, one_line_repr
from gmm_guidance.blocks.process_stack import WrappedStack
from gmm_guidance.blocks.shared_prefix import run_full
from gmm_guidance.blocks.stack import relative_costs, run_block


def _call(block: Any, hidden: Any, context: Any) -> Any:
    return block(hidden, context)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockList(WrappedStack):
    """Blocks of several kinds with an input and an output: see ``stack_blocks``.

    Attributes:
        arrays: for each segment of equal blocks, the arrays of its blocks, stacked on a
            leading axis.
        kinds: for each segment, what is no array.
        input: ``embed``.
        output: ``readout``.
    """

    arrays: tuple[list[Any], ...]
    input: Any
    output: Any
    kinds: tuple[Static, ...] = dataclasses.field(metadata={"static": True})
    segments: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    apply: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    sample_shape: tuple[int, ...] | None = dataclasses.field(metadata={"static": True})
    num_labels: int | None = dataclasses.field(metadata={"static": True})
    block_costs: tuple[float, ...] | None = dataclasses.field(metadata={"static": True})

    __repr__ = one_line_repr

    @property
    def num_blocks(self) -> int:
        """Depth of the stack."""
        return sum(self.segments)

    def embed(self, x: jax.Array, sigma: jax.Array, label: Any) -> tuple[Any, Any]:
        """The state that enters block 0 and the context of all blocks."""
        return self.input(x, sigma, label)

    def segment_block(
        self, segment: int, index: ArrayLike, hidden: Any, context: Any
    ) -> Any:
        """The state after block ``index`` (may be traced) of a segment."""
        arrays = [None if a is None else a[index] for a in self.arrays[segment]]
        block = join(arrays, self.kinds[segment])
        return self.apply(block, hidden, context)

    def block(self, index: ArrayLike, hidden: Any, context: Any) -> Any:
        """The state after block ``index``, counted through all segments."""
        return run_block(self, index, hidden, context)

    def readout(self, hidden: Any, context: Any, *sample: jax.Array) -> jax.Array:
        """The output; ``x, sigma`` follow if it is that of a ``BlockStack``."""
        return self.output(hidden, context, *sample)

    def predict(self, x_t: jax.Array, time: jax.Array, label: Any) -> jax.Array:
        """A plain forward pass in the network's own parameterization."""
        rows: Any = jax.tree.map(lambda a: a[None], self.embed(x_t, time, label))
        hidden = run_full(self, *rows)
        hidden, context = jax.tree.map(lambda a: a[0], (hidden, rows[1]))
        return self.readout(hidden, context)


def stack_blocks(
    blocks: Sequence[Any],
    embed: Callable[..., tuple[Any, Any]],
    readout: Callable[..., jax.Array],
    *,
    apply: Callable[[Any, Any, Any], Any] = _call,
    sample_shape: tuple[int, ...] | None = None,
    num_labels: int | None = None,
    block_costs: Sequence[float] | None = None,
) -> BlockList:
    """Make a stack, any block of which can be dropped, from a list of blocks.

    Consecutive blocks of equal structure (class, fields, shapes and types of arrays)
    form a segment: their arrays are stacked on a leading axis, so that one compiled
    loop runs them all. Blocks of different kinds form segments of their own.

    The result is a ``BlockStack`` if ``embed`` and ``readout`` speak of samples ``x``
    and noise levels ``sigma``. If they speak of the network's own input and time, it
    is a ``Backbone``: wrap it in ``ProcessStack(stack, process, prediction)``.

    Args:
        blocks: Flax NNX or Equinox modules, ``jax.tree_util.Partial(module.apply,
            variables)`` for Flax Linen, or any pytrees; plain functions are segments
            of one block each.
        embed: ``embed(x, sigma, label) -> (hidden, context)``: the state that enters
            the first block, and what all blocks are conditioned on. Pytrees of arrays
            with leading axis ``n``; ``()`` is a context without arrays.
        readout: ``readout(hidden, context, x, sigma) -> denoised samples`` for a
            ``BlockStack``, ``readout(hidden, context) -> prediction`` for a
            ``Backbone``.
        apply: ``apply(block, hidden, context) -> hidden``; ``block(hidden, context)``
            by default. For blocks written for one sample, such as most Equinox
            modules: ``lambda block, hidden, context: jax.vmap(block)(hidden,
            context)``.
        sample_shape: shape of one sample, so that ``guided_sample`` need not be told.
        num_labels: number of classes, if labels are to be checked.
        block_costs: relative FLOPs of each block, for ``expected_cost``; equal costs by
            default.

    Returns:
        The stack: a pytree, whose arrays are copies of those of the blocks.

    Raises:
        ValueError: if there are no blocks, or costs are not one for each block.
        TypeError: if a part of a block is neither an array nor hashable, or ``embed``,
            ``readout`` or ``apply`` is not callable.
    """
    for name, value in (("embed", embed), ("readout", readout), ("apply", apply)):
        if not callable(value):
            raise TypeError(f"{name} must be callable, got {type(value).__name__}.")
    if len(blocks) == 0:
        raise ValueError("blocks must have at least one block, got none.")
    parts = [_split(block, index) for index, block in enumerate(blocks)]
    runs = [
        list(run)
        for _, run in itertools.groupby(parts, lambda part: (part[1], part[2]))
    ]
    stack = BlockList(
        arrays=tuple(jax.tree.map(_stack, *(part[0] for part in run)) for run in runs),
        kinds=tuple(run[0][1] for run in runs),
        input=embed,
        output=readout,
        segments=tuple(len(run) for run in runs),
        apply=apply,
        sample_shape=None if sample_shape is None else tuple(sample_shape),
        num_labels=num_labels,
        block_costs=None if block_costs is None else tuple(map(float, block_costs)),
    )
    relative_costs(stack)
    return stack


def _stack(*arrays: Any) -> jax.Array:
    return jnp.stack(arrays)


def _split(block: Any, index: int) -> tuple[list[Any], Static, tuple[Any, ...]]:
    """Arrays of a block, the rest, and the shapes and types of the arrays."""
    leaves, treedef = jax.tree.flatten(block)
    is_array = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]
    arrays = [x if is_ else None for x, is_ in zip(leaves, is_array, strict=True)]
    rest = tuple(None if is_ else x for x, is_ in zip(leaves, is_array, strict=True))
    try:
        hash(rest)
    except TypeError:
        raise TypeError(
            f"every part of a block must be an array or hashable; block {index} "
            f"({type(block).__name__}) has a part that is neither. Register its class "
            f"as a pytree."
        ) from None
    shapes = tuple(None if a is None else (a.shape, a.dtype) for a in arrays)
    return arrays, Static(treedef, rest), shapes
