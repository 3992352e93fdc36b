"""``Pinned``: a stack of blocks whose samples stay where they are on a mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from gmm_guidance.blocks.process_stack import WrappedStack
from gmm_guidance.blocks.stack import run_segment_block
from gmm_guidance.sharding.batches import shard_batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pinned(WrappedStack):
    """A ``BlockStack`` that says where its activations lie, which the model does not.

    Left to itself the compiler lets divided parameters divide the features of the
    activations, and sends these about. Pinned, it gathers the parameters of a block.

    Attributes:
        model: the stack; activations have samples on their leading axis.
        mesh: of ``MeshConfig``.
    """

    model: Any
    mesh: Mesh = dataclasses.field(metadata={"static": True})

    def embed(self, x: jax.Array, sigma: ArrayLike, label: Any) -> Any:
        """The model's, placed on the mesh, as are the other members."""
        return self._pin(self.model.embed(self._pin(x), sigma, label))

    def block(self, index: ArrayLike, hidden: Any, context: Any) -> Any:
        """The model's block between placements."""
        hidden, context = self._pin((hidden, context))
        return self._pin(self.model.block(index, hidden, context))

    def segment_block(
        self,
        segment: int,
        index: ArrayLike,
        hidden: Any,
        context: Any,
        perturb: Any = None,
    ) -> Any:
        """The model's block of a segment between placements, perhaps perturbed."""
        hidden, context = self._pin((hidden, context))
        new = run_segment_block(self.model, segment, index, hidden, context, perturb)
        return self._pin(new)

    def readout(self, hidden: Any, context: Any, x: jax.Array, sigma: ArrayLike) -> Any:
        """The model's readout of placed states."""
        hidden, context, x = self._pin((hidden, context, x))
        return self._pin(self.model.readout(hidden, context, x, sigma))

    def _pin(self, tree: Any) -> Any:
        return jax.tree.map(lambda a: shard_batch(a, self.mesh), tree)
