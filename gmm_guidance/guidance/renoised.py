"""A denoised value whose noise is taken from another prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax


class Renoised(NamedTuple):
    """What a rule may return in place of the guided value.

    A first-order step leads to ``denoised + sigma_next / sigma (x - renoise)``, so that
    ``Renoised(D, D)`` is ``D``. Understood by ``Euler`` and ``DPMSolverPP2M``.

    Attributes:
        denoised: the guided denoiser value.
        renoise: the prediction from which the noise is taken.
    """

    denoised: jax.Array
    renoise: jax.Array


Guided = jax.Array | Renoised


def map_denoised(change: Callable[[jax.Array], jax.Array], guided: Guided) -> Guided:
    """The guided value changed, the noise left as it is."""
    if isinstance(guided, Renoised):
        return guided._replace(denoised=change(guided.denoised))
    return change(guided)
