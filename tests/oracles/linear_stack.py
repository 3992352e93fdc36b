"""A ``BlockStack`` whose blocks each add a known term to a denoiser.

``D = x / 2 + sum_j terms[j](x, sigma)``: leaving block ``j`` out removes its term, and
so ``D_c - D_weak`` is the sum of the dropped terms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gmm_guidance.blocks.shared_prefix import run_blocks


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TermStack:
    """``terms`` are functions ``(x [n, d], sigma) -> [n, d]``, one for each block."""

    terms: tuple[Callable, ...]
    dim: int = 1

    @property
    def num_blocks(self):
        return len(self.terms)

    @property
    def sample_shape(self):
        return (self.dim,)

    def embed(self, x, sigma, label):
        return 0.5 * x, (x, jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1]))

    def block(self, index, hidden, context):
        return hidden + jax.lax.switch(index, self.terms, *context)

    def readout(self, hidden, context, x, sigma):
        return hidden

    def __call__(self, x, sigma, label=None):
        return run_blocks(self, x, sigma, label)


def affine(matrix, offset, mean):
    """The term ``matrix (x - mean) + offset``."""
    matrix, offset, mean = (jnp.asarray(a, jnp.float32) for a in (matrix, offset, mean))
    return lambda x, sigma: (x - mean[None]) @ matrix.T + offset[None]
