"""Batches on a mesh: each process brings, and takes home, its own samples."""

from __future__ import annotations

from typing import Any

import jax
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
