"""Running several passes through the blocks together, each as far as it must.

A row is one pass. Full rows run through every block. A weak row joins at its first
dropped block, where it copies the state of the full row of its label, stands still at
its dropped blocks, and runs through the rest. Which rows move at a block is a table
of data, so any dropped blocks run in one compiled program.

Two ways to move the rows of a block: one by one (CPU), in which case each is computed
in the shapes, and so with the rounding, that it has alone; or as one batch (elsewhere),
which keeps a wide device full.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class _Table(NamedTuple):
    """What happens at each block: ``[L, rows]`` and ``[L]`` integers.

    ``order`` has the moving rows first, ``moving`` says how many; ``joins`` has the
    joining weak rows first, ``joining`` says how many.
    """

    order: jax.Array
    moving: jax.Array
    joins: jax.Array
    joining: jax.Array


def run_rows(
    model: Any,
    hidden: Any,
    context: Any,
    drops: jax.Array | None = None,
    base: np.ndarray | None = None,
    idle: np.ndarray | None = None,
) -> tuple[Any, Any]:
    """Run full rows, and weak rows that join them, through all blocks.

    Args:
        model: the ``BlockStack``.
        hidden: embedded state of the full rows, leading axis ``row``.
        context: their context, likewise.
        drops: dropped blocks of each weak row, ``[weak, k]`` or ``[weak, n, k]``,
            padded with the number of blocks; ``None`` without weak rows.
        base: the full row that each weak row joins, ``[weak]``.
        idle: full rows that only lend their embedding, ``[full]``: nobody asked for
            them, and weak rows run from block 0 on their own.

    Returns:
        States after the last block and contexts, full rows first, then weak rows.
    """
    num_full = jax.tree.leaves(hidden)[0].shape[0]
    if drops is None or base is None or idle is None:
        # Static bounds: these loops are scans, and so can be differentiated.
        order = jnp.arange(num_full)

        def full_step(i, hidden):
            return _move(model, i, hidden, context, order, num_full, num_full, None)

        return jax.lax.fori_loop(0, model.num_blocks, full_step, hidden), context

    source = jnp.asarray(base, jnp.int32)
    hidden, context = jax.tree.map(
        lambda a: jnp.concatenate([a, a[source]]), (hidden, context)
    )
    table = _make_table(drops, model.num_blocks, idle, idle[base])
    least = num_full - int(idle.sum())  # rows that move at every block

    def step(i, hidden):
        def join(j, hidden):
            weak = table.joins[i, j]
            return _put(hidden, num_full + weak, _take(hidden, source[weak]))

        hidden = jax.lax.fori_loop(0, table.joining[i], join, hidden)
        order, moving = table.order[i], table.moving[i]
        return _move(model, i, hidden, context, order, moving, least, drops)

    return jax.lax.fori_loop(0, model.num_blocks, step, hidden), context


def run_blocks(model: Any, x: jax.Array, sigma: jax.Array, label: Any) -> jax.Array:
    """One plain pass through all blocks: the definition of a ``BlockStack``'s value."""
    embedded = model.embed(x, sigma, label)
    rows: Any = jax.tree.map(lambda a: a[None], embedded)
    hidden, context = run_rows(model, rows[0], rows[1])
    return read_rows(model, hidden, context, x, sigma)[0]


def read_rows(
    model: Any, hidden: Any, context: Any, x: jax.Array, sigma: jax.Array
) -> jax.Array:
    """Readout of all rows, which share ``x`` and ``sigma``: ``[row, n, ...]``."""

    def one_by_one(hidden, context, x, sigma):
        # A loop: unrolled, rows would share what depends on x alone, and the compiler
        # would contract the rest differently from a single pass.
        count = jax.tree.leaves(hidden)[0].shape[0]
        x, sigma = (jnp.broadcast_to(a, (count, *jnp.shape(a))) for a in (x, sigma))
        return jax.lax.map(lambda row: model.readout(*row), (hidden, context, x, sigma))

    together = jax.vmap(model.readout, in_axes=(0, 0, None, None))
    return jax.lax.platform_dependent(
        hidden, context, x, sigma, cpu=one_by_one, default=together
    )


def _make_table(
    drops: jax.Array, num_blocks: int, idle: np.ndarray, alone: np.ndarray
) -> _Table:
    blocks = jnp.arange(num_blocks)[:, None]
    first = jnp.min(drops, axis=tuple(range(1, drops.ndim)))
    first = jnp.minimum(first, num_blocks - 1)  # where it drops none, it still joins
    joins = (blocks == first[None]) & ~alone[None]
    moves = (blocks >= first[None]) | alone[None]
    if drops.ndim == 2:  # by sample instead, the row moves and samples are held
        moves &= ~jnp.any(drops[None] == blocks[:, :, None], axis=-1)
    full = jnp.broadcast_to(~idle[None], (num_blocks, len(idle)))
    moves = jnp.concatenate([full, moves], axis=1)
    return _Table(
        _places_first(moves), jnp.sum(moves, 1), _places_first(joins), jnp.sum(joins, 1)
    )


def _places_first(chosen: jax.Array) -> jax.Array:
    """Indices of the chosen in order, then zeros; a sort would compile slowly."""
    rank = jnp.cumsum(chosen, axis=1) - 1
    places = jnp.arange(chosen.shape[1])
    hit = chosen[:, None, :] & (rank[:, None, :] == places[None, :, None])
    return jnp.sum(jnp.where(hit, places[None, None, :], 0), axis=2)


def _move(model, index, hidden, context, order, moving, least, drops):
    """Block ``index`` of the first ``moving`` rows of ``order``."""
    rows = hidden

    def block(row, hidden, context):
        new = model.block(index, hidden, context)
        if drops is None or drops.ndim == 2:
            return new
        weak = row - (jax.tree.leaves(rows)[0].shape[0] - drops.shape[0])
        held = jnp.any(drops[weak] == index, axis=-1) & (weak >= 0)
        return jax.tree.map(lambda a, b: jnp.where(_expand(held, a), a, b), hidden, new)

    def one_by_one(hidden, context, order, moving):
        def visit(j, hidden):
            row = order[j]
            return _put(
                hidden, row, block(row, _take(hidden, row), _take(context, row))
            )

        return jax.lax.fori_loop(0, moving, visit, hidden)

    def together(hidden, context, order, moving):
        def first_rows(count):
            def run(hidden):
                rows = order[:count]
                part = jax.tree.map(lambda a: a[rows], (hidden, context))
                new = jax.vmap(block)(rows, *part)
                return jax.tree.map(lambda a, b: a.at[rows].set(b), hidden, new)

            return run

        counts = range(least, order.shape[0] + 1)
        return jax.lax.switch(moving - least, [first_rows(c) for c in counts], hidden)

    if isinstance(moving, int):
        # No weak rows: known bounds.
        return jax.lax.platform_dependent(
            hidden,
            context,
            cpu=lambda h, c: jax.lax.fori_loop(
                0,
                moving,
                lambda j, h: _put(h, j, block(j, _take(h, j), _take(c, j))),
                h,
            ),
            default=lambda h, c: jax.vmap(block)(order, h, c),
        )
    return jax.lax.platform_dependent(
        hidden, context, order, moving, cpu=one_by_one, default=together
    )


def _take(rows: Any, index: Any) -> Any:
    return jax.tree.map(
        lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), rows
    )


def _put(rows: Any, index: Any, row: Any) -> Any:
    return jax.tree.map(
        lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, index, 0), rows, row
    )


def _expand(held: jax.Array, like: jax.Array) -> jax.Array:
    return held.reshape(held.shape + (1,) * (like.ndim - held.ndim))
