"""The closed-form denoiser of a Gaussian mixture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
from jax.typing import ArrayLike

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.mixture.parameters import Label


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExactDenoiser:
    """The closed-form denoiser of a Gaussian mixture.

    ``None`` and the null label ``mixture.num_labels`` both mean "no condition".
    """

    mixture: GaussianMixture

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, ``(d,)``."""
        return (self.mixture.dim,)

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return self.mixture.num_labels

    def __call__(self, x: jax.Array, sigma: ArrayLike, label: Label) -> jax.Array:
        """``E[x0 | x, label]``, Eq. 4 of the mixture's module: shape ``[n, d]``."""
        return self.mixture.denoise(x, sigma, label)

    def denoise_rows(
        self, x: jax.Array, sigma: ArrayLike, labels: Sequence[Label]
    ) -> jax.Array:
        """Several labels at little more than the cost of one: ``[row, n, d]``."""
        return self.mixture.denoise_rows(x, sigma, labels)
