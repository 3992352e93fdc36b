"""Several passes through the blocks together, each only as far as it must.

A row is one pass. Full rows run through every block. A weak row joins at its first
perturbed block, where it copies the state of the full row of its label, leaves out its
dropped blocks, and runs through the rest. Which rows run at a block is a table of data,
so any dropped blocks run in one compiled program: one loop for each segment of equal
blocks.

Rows with a perturbation other than removal run at their perturbed blocks by themselves,
after the plain rows, which are computed as without them. The kinds in use shape the
program, by one body of a block for each; blocks, amounts and keys are data.

The rows of a block run one by one on a CPU, each in the shapes, and so with the
rounding, that it has alone; elsewhere as one batch, which keeps a wide device full.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance.blocks.perturbation import BlockPerturbation, blend
from gmm_guidance.blocks.stack import (
    run_embed,
    run_readout,
    run_segment_block,
    segments_of,
)

_REMOVAL = ("drop", False)


class WeakRows(NamedTuple):
    """Perturbations of the weak rows.

    Attributes:
        blocks: perturbed blocks, ``[weak, k]`` or ``[weak, n, k]``, padded with the
            number of blocks.
        kinds: the kind of each row, and whether it has an amount; static.
        amounts: ``[weak]``.
        keys: random keys ``[weak]``, or ``None`` if no row has one.
    """

    blocks: jax.Array
    kinds: tuple[tuple[str, bool], ...]
    amounts: Any = None
    keys: Any = None


class _Table(NamedTuple):
    """What happens at each block: ``[L, rows]`` and ``[L]`` integers.

    ``order`` has the running rows first, ``running`` says how many; ``joins`` has the
    joining weak rows first, ``joining`` says how many; likewise the perturbed weak
    rows, which are not among the running ones.
    """

    order: jax.Array
    running: jax.Array
    joins: jax.Array
    joining: jax.Array
    perturbed: Any = None
    perturbing: Any = None


def run_blocks(model: Any, x: jax.Array, sigma: jax.Array, label: Any) -> jax.Array:
    """One plain pass through all blocks: the definition of a ``BlockStack``'s value."""
    embedded = run_embed(model, x, sigma, label)
    rows: Any = jax.tree.map(lambda a: a[None], embedded)
    return read_rows(model, run_full(model, *rows), rows[1], x, sigma)[0]


def run_full(model: Any, hidden: Any, context: Any) -> Any:
    """Run rows through all blocks.

    Args:
        model: the ``BlockStack``.
        hidden: embedded states, leading axis ``row``.
        context: contexts, likewise.

    Returns:
        States after the last block. The bounds of all loops are static, so that they
        can be differentiated.
    """
    count = _count(hidden)

    def step(block, index, hidden):
        def one_by_one(hidden, context):
            def visit(row, hidden):
                new = block(_take(hidden, row), _take(context, row))
                return _put(hidden, row, new)

            return jax.lax.fori_loop(0, count, visit, hidden)

        return jax.lax.platform_dependent(
            hidden, context, cpu=one_by_one, default=jax.vmap(block)
        )

    return _each_block(model, step, hidden)


def run_joined(
    model: Any,
    hidden: Any,
    context: Any,
    weak_rows: WeakRows,
    base: np.ndarray,
    idle: np.ndarray,
) -> tuple[Any, Any]:
    """Run full rows, and weak rows that join them, through all blocks.

    Args:
        model: the ``BlockStack``.
        hidden: embedded states of the full rows, leading axis ``row``.
        context: their contexts, likewise.
        weak_rows: how each weak row differs.
        base: the full row that each weak row joins, ``[weak]``.
        idle: full rows of which only the embedding is needed, ``[full]``: their weak
            rows run separately from block 0.

    Returns:
        States after the last block and contexts, full rows first, then weak rows.
    """
    num_full = _count(hidden)
    source = jnp.asarray(base, jnp.int32)
    hidden, context = jax.tree.map(
        lambda a: jnp.concatenate([a, a[source]]), (hidden, context)
    )
    drops = weak_rows.blocks
    removes = np.array([kind == _REMOVAL for kind in weak_rows.kinds])
    table = _make_table(drops, removes, model.num_blocks, idle, idle[base])
    least = num_full - int(idle.sum())  # rows that run at every block

    def step(block, index, hidden):
        def join(j, hidden):
            weak = table.joins[index, j]
            return _put(hidden, num_full + weak, _take(hidden, source[weak]))

        def row_block(row, hidden, context):
            new = block(hidden, context)
            if drops.ndim == 2:
                return new
            weak = row - num_full
            held = jnp.any(drops[weak] == index, axis=-1) & (weak >= 0)
            return _select(held, hidden, new)

        hidden = jax.lax.fori_loop(0, table.joining[index], join, hidden)
        hidden = jax.lax.platform_dependent(
            hidden,
            context,
            table.order[index],
            table.running[index],
            cpu=functools.partial(_one_by_one, row_block),
            default=functools.partial(_as_batch, row_block, least),
        )
        if table.perturbed is None:
            return hidden
        run = functools.partial(_perturbed_row, block, index, weak_rows)

        def visit(j, hidden):
            weak = table.perturbed[index, j]
            row = num_full + weak
            new = run(weak, _take(hidden, row), _take(context, row))
            return _put(hidden, row, new)

        return jax.lax.fori_loop(0, table.perturbing[index], visit, hidden)

    return _each_block(model, step, hidden), context


def _perturbed_row(
    block: Callable[..., Any],
    index: Any,
    rows: WeakRows,
    weak: Any,
    hidden: Any,
    context: Any,
) -> Any:
    """The block of one weak row with its perturbation, of which one body runs."""
    kinds = sorted(set(rows.kinds) - {_REMOVAL})

    def branch(kind, has_amount, hidden, context, amount, key):
        if kind == "drop":  # in part: any block
            return blend(block(hidden, context), hidden, amount)
        amount = amount if has_amount else None
        return block(hidden, context, BlockPerturbation(kind, amount, key))

    key = None
    if rows.keys is not None:
        key = jax.random.fold_in(rows.keys[weak], index)
    operands = hidden, context, rows.amounts[weak], key
    branches = [functools.partial(branch, *kind) for kind in kinds]
    places = [kinds.index(k) if k in kinds else 0 for k in rows.kinds]
    new = jax.lax.switch(jnp.asarray(places)[weak], branches, *operands)
    if rows.blocks.ndim == 2:
        return new
    held = jnp.any(rows.blocks[weak] == index, axis=-1)
    return _select(held, new, block(hidden, context))


def read_rows(
    model: Any, hidden: Any, context: Any, x: jax.Array, sigma: jax.Array
) -> jax.Array:
    """Readout of all rows, which share ``x`` and ``sigma``: ``[row, n, ...]``."""
    readout = functools.partial(run_readout, model)

    def one_by_one(hidden, context, x, sigma):
        # A loop: unrolled, rows would share what depends on x alone, and the compiler
        # would contract the rest differently from a single pass.
        count = _count(hidden)
        x, sigma = (jnp.broadcast_to(a, (count, *jnp.shape(a))) for a in (x, sigma))
        return jax.lax.map(lambda row: readout(*row), (hidden, context, x, sigma))

    together = jax.vmap(readout, in_axes=(0, 0, None, None))
    return jax.lax.platform_dependent(
        hidden, context, x, sigma, cpu=one_by_one, default=together
    )


def _each_block(model: Any, step: Callable[..., Any], hidden: Any) -> Any:
    """``step(block, index, hidden)`` for all blocks, in one loop for each segment.

    ``block(hidden, context)`` is the block of that index, counted through all segments,
    for one row.
    """
    start = 0
    for segment, size in enumerate(segments_of(model)):

        def body(index, hidden, segment=segment, start=start):
            def block(hidden, context, perturb=None):
                within = index - start if start else index
                return run_segment_block(
                    model, segment, within, hidden, context, perturb
                )

            return step(block, index, hidden)

        hidden = jax.lax.fori_loop(start, start + size, body, hidden)
        start += size
    return hidden


def _one_by_one(row_block, hidden, context, order, running):
    """The block of the first ``running`` rows of ``order``."""

    def visit(j, hidden):
        row = order[j]
        new = row_block(row, _take(hidden, row), _take(context, row))
        return _put(hidden, row, new)

    return jax.lax.fori_loop(0, running, visit, hidden)


def _as_batch(row_block, least, hidden, context, order, running):
    """As ``_one_by_one``, in a program for each number of rows from ``least`` on."""

    def of_first(count, hidden):
        rows = order[:count]
        part = jax.tree.map(lambda a: a[rows], (hidden, context))
        new = jax.vmap(row_block)(rows, *part)
        return jax.tree.map(lambda a, b: a.at[rows].set(b), hidden, new)

    counts = range(least, order.shape[0] + 1)
    branches = [functools.partial(of_first, count) for count in counts]
    return jax.lax.switch(running - least, branches, hidden)


def _make_table(
    drops: jax.Array,
    removes: np.ndarray,
    num_blocks: int,
    idle: np.ndarray,
    alone: np.ndarray,
) -> _Table:
    """``removes``: the weak rows whose chosen blocks are left out, ``[weak]``."""
    blocks = jnp.arange(num_blocks)[:, None]
    first = jnp.min(drops, axis=tuple(range(1, drops.ndim)))
    first = jnp.minimum(first, num_blocks - 1)  # where it drops none, it still joins
    joins = (blocks == first[None]) & ~alone[None]
    runs = (blocks >= first[None]) | alone[None]
    if drops.ndim == 2:  # by sample instead, the row runs and samples are held
        runs &= ~jnp.any(drops[None] == blocks[:, :, None], axis=-1)
    perturbed: tuple[jax.Array, ...] = ()
    if not removes.all():
        chosen = jnp.any(drops[None] == _expand(blocks, drops[None]), axis=-1)
        if drops.ndim == 3:
            chosen = jnp.any(chosen, axis=-1)
        chosen &= ~removes[None]
        runs &= ~chosen
        perturbed = _places_first(chosen), jnp.sum(chosen, 1)
    full = jnp.broadcast_to(~idle[None], (num_blocks, len(idle)))
    runs = jnp.concatenate([full, runs], axis=1)
    return _Table(
        _places_first(runs),
        jnp.sum(runs, 1),
        _places_first(joins),
        jnp.sum(joins, 1),
        *perturbed,
    )


def _places_first(chosen: jax.Array) -> jax.Array:
    """Indices of the chosen in order, then zeros; a sort would compile slowly."""
    rank = jnp.cumsum(chosen, axis=1) - 1
    places = jnp.arange(chosen.shape[1])
    hit = chosen[:, None, :] & (rank[:, None, :] == places[None, :, None])
    return jnp.sum(jnp.where(hit, places[None, None, :], 0), axis=2)


def _count(rows: Any) -> int:
    return jax.tree.leaves(rows)[0].shape[0]


def _take(rows: Any, index: Any) -> Any:
    return jax.tree.map(
        lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), rows
    )


def _put(rows: Any, index: Any, row: Any) -> Any:
    return jax.tree.map(
        lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, index, 0), rows, row
    )


def _select(held: jax.Array, chosen: Any, otherwise: Any) -> Any:
    """By sample; held ``[n]``."""
    return jax.tree.map(
        lambda a, b: jnp.where(_expand(held, a), a, b), chosen, otherwise
    )


def _expand(held: jax.Array, like: jax.Array) -> jax.Array:
    return held.reshape(held.shape + (1,) * (like.ndim - held.ndim))
