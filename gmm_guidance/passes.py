"""Passes, and the evaluator that computes a set of them at least cost.

A weak pass equals the full pass of the same label up to its first dropped block. So
the full passes run as rows of one batch, and each weak pass joins them there as one
more row, which stands still at its dropped blocks:

    blocks      0 .. first           first .. L
    rows        uncond, cond         uncond, cond, weak

Rows live on their own leading axis ``[row, n, ...]``: merging them into the sample
axis would move activations between devices when the samples are sharded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gmm_guidance.denoiser import BlockStack, Denoiser


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pass:
    """One evaluation that a guidance rule asks for.

    Attributes:
        label: the condition, integers of shape ``[n]``, or ``None`` for no condition.
        drop: blocks to leave out, ascending indices ``[k]`` padded at the end with
            ``num_blocks``; or ``[n, k]``, a set for each sample; or ``None``.
        model: another denoiser to evaluate, or ``None`` for the one being guided.
    """

    label: Any
    drop: jax.Array | None = None
    model: Any = None


def is_block_stack(model: Any) -> bool:
    """Whether the model exposes its blocks."""
    return isinstance(model, BlockStack)


def evaluate_passes(
    model: Denoiser, x: jax.Array, sigma: jax.Array, passes: Sequence[Pass]
) -> jax.Array:
    """Evaluate passes on the same samples, sharing what they have in common.

    Values equal those of separate evaluations; on the CPU bit for bit, as long as the
    matrix product of the platform treats each row of a batch alike.

    Args:
        model: the denoiser being guided.
        x: noisy samples, array of shape ``[n, ...]``.
        sigma: noise level, a scalar or ``[n]``.
        passes: what to evaluate.

    Returns:
        Denoised samples, one row for each pass in their order: ``[row, n, ...]``.

    Raises:
        TypeError: if a pass drops blocks of a model that is no ``BlockStack``.
    """
    if not passes:
        raise ValueError("passes must name at least one evaluation, got none.")
    outputs: list[Any] = [None] * len(passes)
    for other in _distinct([p.model for p in passes]):
        rows = [i for i, p in enumerate(passes) if p.model is other]
        target = model if other is None else other
        values = _evaluate_on(target, x, sigma, [passes[i] for i in rows])
        for i, value in zip(rows, values, strict=True):
            outputs[i] = value
    return jnp.stack(outputs)


def _evaluate_on(
    model: Any, x: jax.Array, sigma: jax.Array, passes: Sequence[Pass]
) -> list[jax.Array]:
    """All passes of one model."""
    if any(p.drop is not None for p in passes) and not is_block_stack(model):
        raise TypeError(
            f"this guidance rule drops blocks, but {type(model).__name__} is not a "
            f"BlockStack (num_blocks, embed, block, readout). Use a rule that drops "
            f"none (CFG, AutoGuidance), or give the model these methods."
        )
    full_labels = _distinct([p.label for p in passes if p.drop is None])
    if not is_block_stack(model):
        by_label = _evaluate_labels(model, x, sigma, full_labels)
        return [by_label[_index(full_labels, p.label)] for p in passes]

    joining = [p for p in passes if p.drop is not None]
    joining = [p for p in joining if _contains(full_labels, p.label)]
    rows = _evaluate_rows(model, x, sigma, full_labels, joining)
    outputs = []
    for p in passes:
        if p.drop is None:
            outputs.append(rows[_index(full_labels, p.label)])
        elif _contains(full_labels, p.label):
            outputs.append(rows[len(full_labels) + _index(joining, p)])
        else:  # no full pass of this label to share with
            outputs.append(_evaluate_dropped(model, x, sigma, p))
    return outputs


def _evaluate_labels(model, x, sigma, labels) -> Sequence[jax.Array]:
    if len(labels) > 1 and hasattr(model, "denoise_rows"):
        return model.denoise_rows(x, sigma, labels)
    return [model(x, sigma, label) for label in labels]


def _evaluate_dropped(model: BlockStack, x, sigma, p: Pass) -> jax.Array:
    """One weak pass on its own."""
    drop = p.drop
    hidden, context = model.embed(x, sigma, p.label)

    def block(i, hidden):
        return _block_or_hold(model, i, hidden, context, _is_dropped(drop, i))

    hidden = jax.lax.fori_loop(0, model.num_blocks, block, hidden)
    return model.readout(hidden, context, x, sigma)


def _block_or_hold(model, index, hidden, context, dropped):
    """Block ``index``, except where dropped: for the whole batch, or by sample."""
    if dropped.ndim == 0:
        return jax.lax.cond(
            dropped, lambda h: h, lambda h: model.block(index, h, context), hidden
        )
    return _select(dropped, hidden, model.block(index, hidden, context))


def _evaluate_rows(
    model: BlockStack,
    x: jax.Array,
    sigma: jax.Array,
    labels: Sequence[Any],
    joining: Sequence[Pass],
) -> jax.Array:
    """Full passes of all labels, then the weak passes that join: ``[row, ...]``."""
    if not labels:
        return jnp.zeros((0,))
    embedded = [model.embed(x, sigma, label) for label in labels]
    hidden, context = jax.tree.map(lambda *rows: jnp.stack(rows), *embedded)
    block = jax.vmap(model.block, in_axes=(None, 0, 0))
    readout = jax.vmap(model.readout, in_axes=(0, 0, None, None))
    num_full = len(labels)

    if not joining:
        # Static bounds: this loop is a scan, and so can be differentiated.
        hidden = jax.lax.fori_loop(
            0, model.num_blocks, lambda i, h: block(i, h, context), hidden
        )
        return readout(hidden, context, x, sigma)

    drops = _stack_drops(
        [p.drop for p in joining if p.drop is not None], model.num_blocks
    )
    base = jnp.asarray([_index(labels, p.label) for p in joining], jnp.int32)
    first = jnp.min(drops, axis=tuple(range(1, drops.ndim)))
    order = jnp.argsort(first)  # rows join in the order of their first dropped block
    first, drops, base = first[order], drops[order], base[order]

    start: Any = 0
    for joined in range(len(joining) + 1):
        is_last = joined == len(joining)
        stop = model.num_blocks if is_last else first[joined]
        step = _row_step(block, context, drops[:joined], num_full)
        hidden = jax.lax.fori_loop(start, stop, step, hidden)
        if not is_last:
            hidden = _append_row(hidden, base[joined])
            context = _append_row(context, base[joined])
        start = stop
    values = readout(hidden, context, x, sigma)
    back = jnp.argsort(order)  # the weak rows in the order they were asked for
    return jnp.concatenate([values[:num_full], values[num_full:][back]])


def _row_step(block, context, drops, num_full):
    """The loop body over rows of which the last ``len(drops)`` are weak passes."""
    num_weak = drops.shape[0]

    def all_rows(i, hidden):
        return block(i, hidden, context)

    def per_sample(i, hidden):
        new = block(i, hidden, context)
        held = jnp.any(drops == i, axis=-1)
        full = jnp.zeros((num_full, held.shape[1]), bool)
        return _select(jnp.concatenate([full, held]), hidden, new)

    def shared(i, hidden):
        # The rows that move are gathered in front, so that a dropped block costs
        # nothing; which of the programs runs depends on how many they are.
        held = jnp.concatenate(
            [jnp.zeros(num_full, bool), jnp.any(drops == i, axis=-1)]
        )
        moving = jnp.argsort(held, stable=True)

        def run(count):
            if count == num_weak:
                return lambda h: block(i, h, context)
            if count == 0:
                rows: Any = slice(0, num_full)
            else:
                rows = moving[: num_full + count]

            def some(h):
                part = jax.tree.map(lambda a: a[rows], (h, context))
                new = block(i, *part)
                return jax.tree.map(lambda a, b: a.at[rows].set(b), h, new)

            return some

        count = num_weak - jnp.sum(held)
        return jax.lax.switch(count, [run(c) for c in range(num_weak + 1)], hidden)

    if num_weak == 0:
        return all_rows
    return shared if drops.ndim == 2 else per_sample


def _stack_drops(drops: Sequence[jax.Array], num_blocks: int) -> jax.Array:
    """Index sets of one common length: ``[row, k]`` or ``[row, n, k]``."""
    if len({d.ndim for d in drops}) > 1:
        raise ValueError(
            "passes must either all drop blocks for the whole batch or all by sample."
        )
    width = max(d.shape[-1] for d in drops)
    return jnp.stack(
        [
            jnp.pad(
                d,
                [(0, 0)] * (d.ndim - 1) + [(0, width - d.shape[-1])],
                constant_values=num_blocks,
            )
            for d in drops
        ]
    )


def _append_row(rows: Any, source: jax.Array) -> Any:
    def append(array):
        row = jax.lax.dynamic_index_in_dim(array, source, keepdims=True)
        return jnp.concatenate([array, row])

    return jax.tree.map(append, rows)


def _is_dropped(drop: Any, index: jax.Array) -> jax.Array:
    return jnp.any(drop == index, axis=-1)


def _select(held: jax.Array, old: Any, new: Any) -> Any:
    """``old`` where held; ``held`` covers the leading axes."""

    def select(a, b):
        return jnp.where(held.reshape(held.shape + (1,) * (a.ndim - held.ndim)), a, b)

    return jax.tree.map(select, old, new)


def _distinct(items: Sequence[Any]) -> list[Any]:
    """Items without repetition, by identity: arrays have no truth value of equality."""
    result: list[Any] = []
    for item in items:
        if not _contains(result, item):
            result.append(item)
    return result


def _contains(items: Sequence[Any], item: Any) -> bool:
    return any(other is item for other in items)


def _index(items: Sequence[Any], item: Any) -> int:
    return next(i for i, other in enumerate(items) if other is item)
