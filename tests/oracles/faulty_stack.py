"""A ``BlockStack`` that is the exact denoiser plus one known error for each block.

``D = D* + sum_j amplitude_j f_j(x)``, so that leaving block j out removes exactly its
error: ``D_c - D_weak = amplitude_j f_j``. Works for samples of any shape by means of a
denoiser that acts on flattened samples.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gmm_guidance import GaussianMixture
from gmm_guidance.blocks.shared_prefix import run_blocks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FaultyStack:
    """Amplitudes ``[L]``; waves differ in frequency unless ``same`` is set."""

    mixture: GaussianMixture
    amplitudes: jax.Array
    same: bool = dataclasses.field(default=False, metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def num_blocks(self):
        return self.amplitudes.shape[0]

    @property
    def num_labels(self):
        return self.mixture.num_labels

    @property
    def sample_shape(self):
        return self.shape or (self.mixture.dim,)

    def wave(self, index, x):
        turn = 1.0 if self.same else jnp.asarray(index, x.dtype) + 1.0
        return jnp.sin(0.7 * turn * x / jnp.sqrt(1.0 + 0.01 * x**2) + 0.3 * turn)

    def embed(self, x, sigma, label):
        flat = x.reshape(x.shape[0], -1)
        clean = self.mixture.denoise(flat, sigma, label).reshape(x.shape)
        return clean, (x,)

    def block(self, index, hidden, context):
        return hidden + self.amplitudes[index] * self.wave(index, context[0])

    def readout(self, hidden, context, x, sigma):
        return hidden

    def __call__(self, x, sigma, label):
        return run_blocks(self, x, sigma, label)
