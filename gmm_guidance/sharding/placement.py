"""Where parameters lie: rules on their paths, of which models know nothing."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gmm_guidance._runtime.tensor_files import named_leaves

# Regular expressions, searched in a parameter's path ("blocks.mlp.fc1.kernel"), and how
# its axes are divided; the first that is found counts, without one it is replicated.
PathRules = tuple[tuple[str, PartitionSpec], ...]


def placements(tree: Any, mesh: Mesh, rules: PathRules = ()) -> Any:
    """The sharding of each leaf of a tree.

    An axis that the mesh does not divide evenly stays whole.

    Args:
        tree: arrays or shapes.
        mesh: of ``MeshConfig``.
        rules: see ``PathRules``.

    Raises:
        ValueError: if a rule names more axes than its parameter has.
    """
    found = [
        NamedSharding(mesh, _fitted(path, np.shape(leaf), mesh, _rule(path, rules)))
        for path, leaf in named_leaves(tree).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def place(tree: Any, mesh: Mesh, rules: PathRules = ()) -> Any:
    """The tree with its arrays placed by rules; each process passes the same values."""
    return jax.tree.map(put, tree, placements(tree, mesh, rules))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree with arrays that are not on the mesh copied to all of its devices."""

    def move(leaf: Any) -> Any:
        # Python's numbers go everywhere by themselves, and keep their weak types.
        is_array = isinstance(leaf, (jax.Array, np.ndarray, np.generic))
        if not is_array or isinstance(leaf, jax.core.Tracer) or _is_on(leaf, mesh):
            return leaf
        return put(leaf, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(move, tree)


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array on the devices of a sharding; each process passes the same values."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    # Each process fills its own devices: nothing is sent.
    return jax.make_array_from_callback(
        values.shape, sharding, lambda where: values[where]
    )


def _is_on(leaf: Any, mesh: Mesh) -> bool:
    if not isinstance(leaf, jax.Array):
        return False
    sharding = leaf.sharding
    return isinstance(sharding, NamedSharding) and sharding.mesh == mesh


def _rule(path: str, rules: PathRules) -> PartitionSpec:
    for pattern, spec in rules:
        if re.search(pattern, path):
            return spec
    return PartitionSpec()


def _fitted(
    path: str, shape: tuple[int, ...], mesh: Mesh, spec: PartitionSpec
) -> PartitionSpec:
    if len(spec) > len(shape):
        raise ValueError(
            f"a placement rule names {len(spec)} axes ({spec}), but {path} has shape "
            f"{shape}; make the rule's expression narrower."
        )

    def divides(size: int, axes: Any) -> bool:
        names = (axes,) if isinstance(axes, str) else axes or ()
        return size % int(np.prod([mesh.shape[name] for name in names])) == 0

    kept = [
        axes if divides(size, axes) else None
        for size, axes in zip(shape, spec, strict=False)
    ]
    return PartitionSpec(*kept)
