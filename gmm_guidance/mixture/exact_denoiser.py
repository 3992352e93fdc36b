"""The closed-form denoiser of a Gaussian mixture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_concrete
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

    @property
    def sigma_range(self) -> tuple[float, float] | None:
        """Noise levels from a 50th of the narrowest mode to 20 times the data's extent.

        The extent is the largest root mean square of a coordinate. ``None`` for a
        traced mixture.
        """
        parameters = self.mixture.parameters
        if any(as_concrete(leaf) is None for leaf in jax.tree.leaves(parameters)):
            return None
        variances = np.asarray(parameters.variances, np.float64)
        own = variances
        if parameters.eigenvectors is not None:
            q = np.asarray(parameters.eigenvectors, np.float64)
            own = np.einsum("kij,kj->ki", q**2, variances)
        squares = np.asarray(parameters.means, np.float64) ** 2 + own
        weights = np.exp(np.asarray(parameters.log_weights, np.float64))
        extent = np.sqrt((weights @ squares).max())
        return 0.02 * float(np.sqrt(variances.min())), 20.0 * float(extent)

    def __call__(self, x: jax.Array, sigma: ArrayLike, label: Label) -> jax.Array:
        """``E[x0 | x, label]``, Eq. 4 of the mixture's module: shape ``[n, d]``."""
        return self.mixture.denoise(x, sigma, label)

    def denoise_rows(
        self, x: jax.Array, sigma: ArrayLike, labels: Sequence[Label]
    ) -> jax.Array:
        """Several labels at little more than the cost of one: ``[row, n, d]``."""
        return self.mixture.denoise_rows(x, sigma, labels)
