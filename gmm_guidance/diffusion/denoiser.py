"""The denoiser protocol: the library's one currency.

``denoiser(x, sigma, label) -> D`` is the posterior mean of the clean sample for ``x =
x0 + sigma * noise``. Any callable with this signature is a denoiser.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax


class Denoiser(Protocol):
    """The posterior mean ``E[x0 | x, label]`` under noise of level ``sigma``.

    Optional attributes that the library uses where they exist: ``sample_shape``, the
    shape of one sample; ``num_labels``, the number of classes; ``denoise_rows(x, sigma,
    labels)``, several labels at once, where that is cheaper than one by one.
    """

    def __call__(self, x: jax.Array, sigma: jax.Array, label: Any) -> jax.Array:
        """Denoise.

        Args:
            x: noisy samples, array of shape ``[n, ...]``.
            sigma: noise level > 0, a scalar or ``[n]``.
            label: ``None`` (no condition) or integers of shape ``[n]``.

        Returns:
            Denoised samples, same shape as ``x``.
        """
        ...
