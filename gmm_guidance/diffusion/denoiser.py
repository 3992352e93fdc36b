"""The denoiser protocol: the library's one currency.

``denoiser(x, sigma, label) -> D`` is the posterior mean of the clean sample for ``x =
x0 + sigma * noise``. Any callable with this signature is a denoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax


class Denoiser(Protocol):
    """The posterior mean ``E[x0 | x, label]`` under noise of level ``sigma``.

    Optional attributes that the library uses where they exist: ``sample_shape``, the
    shape of one sample; ``num_labels``, the number of classes, and ``null_label``,
    whether the label of that number means "no condition" (by default it does);
    ``sigma_range``, the
    lowest and highest noise level that sampling needs (see ``default_schedule``);
    ``denoise_rows(x, sigma, labels)``, several labels at once, where that is cheaper
    than one by one.
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


class Renoised(NamedTuple):
    """A guided value whose noise is taken from another prediction.

    A first-order step leads to ``denoised + sigma_next / sigma (x - renoise)``, so that
    ``Renoised(D, D)`` is the same as ``D``. Supported by ``Euler`` and
    ``DPMSolverPP2M``.

    Attributes:
        denoised: the guided denoiser value, ``[n, ...]``.
        renoise: the prediction from which the noise is taken, ``[n, ...]``.
    """

    denoised: jax.Array
    renoise: jax.Array


#: What a guidance rule returns and a solver takes.
Guided = jax.Array | Renoised


def map_denoised(change: Callable[[jax.Array], jax.Array], guided: Guided) -> Guided:
    """Change the guided value and keep the prediction from which its noise is taken."""
    if isinstance(guided, Renoised):
        return guided._replace(denoised=change(guided.denoised))
    return change(guided)
