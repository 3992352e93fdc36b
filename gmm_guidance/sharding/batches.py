"""Batches on a mesh: each process brings, and takes home, its own samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gmm_guidance.sharding.mesh import batch_sharding, num_batch_parts
from gmm_guidance.sharding.placement import put


def shard_batch(values: Any, mesh: Mesh) -> jax.Array:
    """Arrays ``[n, ...]`` with samples divided over the mesh.

    Args:
        values: the whole batch, the same in each process; n a multiple of the mesh's
            batch parts. Under a transformation, the division is a constraint.
        mesh: of ``MeshConfig``.
    """
    sharding = batch_sharding(mesh)
    if isinstance(values, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(values, sharding)
    if isinstance(values, jax.Array) and values.sharding == sharding:
        return values
    return put(values, sharding)


def batch_parts(mesh: Mesh) -> list[int]:
    """The parts of a batch that this process computes, ascending.

    Part i of P holds samples ``[i n / P, (i + 1) n / P)``.
    """
    count = num_batch_parts(mesh)
    # One sample in each part shows where the parts lie.
    where = batch_sharding(mesh).addressable_devices_indices_map((count,))
    return sorted({index[0].indices(count)[0] for index in where.values() if index})


def local_part(batch: jax.Array) -> np.ndarray:
    """The samples that this process computed, in the order of ``batch_parts``."""
    if batch.is_fully_addressable:
        return np.asarray(batch)
    parts = {
        shard.index[0].indices(batch.shape[0])[0]: shard.data
        for shard in batch.addressable_shards
    }
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def run_divided(
    run: Callable[[Any], Any],
    batch: Any,
    mesh: Mesh,
    sample_axes: tuple[int | None, ...],
) -> tuple[Any, ...]:
    """Run a function of one batch with its samples divided over a mesh.

    A batch that the mesh does not divide evenly is filled up with copies of its last
    sample, whose results are dropped.

    Args:
        run: a function of the batch that returns a tuple.
        batch: pytree of arrays ``[n, ...]``.
        mesh: of ``MeshConfig``.
        sample_axes: axis of the samples in each output (of its arrays); ``None`` for an
            output of all samples together.

    Returns:
        The outputs of ``run``, for n samples.

    Raises:
        ValueError: if several processes cannot divide the batch evenly.
    """
    count, parts = len(jax.tree.leaves(batch)[0]), num_batch_parts(mesh)
    filling = -count % parts
    if filling and jax.process_count() > 1:
        raise ValueError(
            f"with several processes each batch must be a multiple of the {parts} "
            f"parts of the mesh, got {count} samples; change num_samples or batch_size."
        )

    def fill(values: jax.Array) -> jax.Array:
        last = jnp.broadcast_to(values[-1:], (filling, *values.shape[1:]))
        return jnp.concatenate([values, last])

    if filling:
        batch = jax.tree.map(fill, batch)
    outputs = run(jax.tree.map(lambda a: shard_batch(a, mesh), batch))
    if not filling:
        return outputs
    return tuple(
        output if axis is None else _first_samples(output, count, axis)
        for output, axis in zip(outputs, sample_axes, strict=True)
    )


def _first_samples(tree: Any, count: int, axis: int) -> Any:
    return jax.tree.map(lambda a: a[(slice(None),) * axis + (slice(count),)], tree)
