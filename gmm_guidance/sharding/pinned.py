"""``Pinned``: a stack of blocks whose samples stay where they are on a mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from gmm_guidance.blocks.stack import run_blocks
from gmm_guidance.sharding.batches import shard_batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pinned:
    """A ``BlockStack`` that says where its activations lie, which the model does not.

    Left to itself the compiler lets divided parameters divide the features of the
    activations, and sends these about. Pinned, it gathers the parameters of a block.

    Attributes:
        model: the stack; activations have samples on their leading axis.
        mesh: of ``MeshConfig``.
    """

    model: Any
    mesh: Mesh = dataclasses.field(metadata={"static": True})

    def __getattr__(self, name: str) -> Any:
        # num_blocks, num_labels, sample_shape: whatever else the model has.
        if name.startswith("_") or name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def embed(self, x: jax.Array, sigma: ArrayLike, label: Any) -> Any:
        """As the model."""
        return self._pin(self.model.embed(self._pin(x), sigma, label))

    def block(self, index: ArrayLike, hidden: Any, context: Any) -> Any:
        """As the model."""
        hidden, context = self._pin((hidden, context))
        return self._pin(self.model.block(index, hidden, context))

    def readout(self, hidden: Any, context: Any, x: jax.Array, sigma: ArrayLike) -> Any:
        """As the model."""
        hidden, context, x = self._pin((hidden, context, x))
        return self._pin(self.model.readout(hidden, context, x, sigma))

    def __call__(self, x: jax.Array, sigma: ArrayLike, label: Any = None) -> jax.Array:
        """As the model."""
        return run_blocks(self, x, jnp.asarray(sigma), label)

    def _pin(self, tree: Any) -> Any:
        return jax.tree.map(lambda a: shard_batch(a, self.mesh), tree)
