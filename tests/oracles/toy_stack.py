"""A tiny ``BlockStack`` whose output moves with its input.

``D(x + c)`` of the stack shifted by ``c`` is ``D(x) + c``, with any blocks dropped:
rules whose coefficients sum to one keep this, others do not.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance.blocks.shared_prefix import run_blocks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyStack:
    """Weights ``[blocks, d, d]``, labels ``[num_labels + 1, d]``, shift ``[d]``."""

    weights: jax.Array
    table: jax.Array
    shift: jax.Array

    @classmethod
    def random(cls, seed=0, num_blocks=4, dim=2, num_labels=2):
        rng = np.random.default_rng(seed)
        arrays = (
            rng.normal(size=(num_blocks, dim, dim)),
            2.0 * rng.normal(size=(num_labels + 1, dim)),
            np.zeros(dim),
        )
        return cls(*(jnp.asarray(a, jnp.float32) for a in arrays))

    def shifted(self, by):
        """The same network for data moved by ``by``."""
        shift = jnp.asarray(by, self.shift.dtype)
        return dataclasses.replace(self, shift=self.shift + shift)

    @property
    def num_blocks(self):
        return self.weights.shape[0]

    @property
    def num_labels(self):
        return self.table.shape[0] - 1

    @property
    def sample_shape(self):
        return self.shift.shape

    def embed(self, x, sigma, label):
        label = self.num_labels if label is None else label
        context = jnp.broadcast_to(self.table[label], x.shape)
        return (x - self.shift[None]) / jnp.sqrt(1.0 + sigma**2), context

    def block(self, index, hidden, context):
        return hidden + jnp.tanh(hidden @ self.weights[index] + context)

    def readout(self, hidden, context, x, sigma):
        offset = (x - self.shift[None]) / (1.0 + sigma**2)
        return self.shift[None] + offset + sigma / jnp.sqrt(1.0 + sigma**2) * hidden

    def __call__(self, x, sigma, label):
        return run_blocks(self, x, sigma, label)
