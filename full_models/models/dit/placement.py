"""Where the parameters of a DiT lie on a mesh."""

from __future__ import annotations

from typing import Any, TypeVar

from jax.sharding import Mesh, PartitionSpec

from gmm_guidance.sharding import PathRules, place

Tree = TypeVar("Tree")

# Blocks are stacked on the first axis, which every device walks along: it stays whole.
# "tensor" divides what a product computes on its way in and what it sums on its way
# out, so that one sum over devices ends each half of a block; the fused q, k, v would
# be cut across heads, so there it divides nothing.
DIT_RULES: PathRules = (
    (r"blocks\.mlp\.fc1\.kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks\.mlp\.fc1\.bias", PartitionSpec(None, "tensor")),
    (r"blocks\.mlp\.fc2\.kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"blocks\..*\.kernel", PartitionSpec(None, "fsdp")),
    (r"final\.modulation\.kernel|time\.fc2\.kernel", PartitionSpec("fsdp")),
)


def place_dit(tree: Tree, mesh: Mesh) -> Tree:
    """A DiT, or a tree of several (averages, an optimiser's moments), on a mesh."""
    result: Any = place(tree, mesh, DIT_RULES)
    return result
