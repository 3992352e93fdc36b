"""Scales that vary with the noise level."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_concrete, as_float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SigmaCurve:
    """A scale over the noise level, wherever a rule takes a scale.

    Linear in ``log sigma`` between the nodes, constant beyond the first and the last.

    Args:
        sigmas: nodes > 0, ascending, ``[S]``.
        values: the scale at the nodes, ``[S]``.

    Raises:
        ValueError: if shapes differ, nodes are not ascending and positive, or a value
            is not finite.
    """

    sigmas: ArrayLike
    values: ArrayLike

    def __post_init__(self):
        if not isinstance(self.sigmas, np.ndarray | jax.Array | tuple | list):
            return  # a placeholder of a pytree transformation
        levels, values = as_concrete(self.sigmas), as_concrete(self.values)
        if levels is None or values is None:
            return
        if levels.ndim != 1 or levels.shape != values.shape:
            raise ValueError(
                f"sigmas and values must have the same shape [S], got {levels.shape} "
                f"and {values.shape}."
            )
        if not (levels[0] > 0 and (np.diff(levels) > 0).all()):
            raise ValueError(f"sigmas must be positive and ascending, got {levels}.")
        if not np.isfinite(values).all():
            raise ValueError(f"values must be finite, got {values}.")


def scale_at(scale: Any, sigma: jax.Array) -> Any:
    """A scale at a noise level: a curve's value, anything else as it is."""
    if not isinstance(scale, SigmaCurve):
        return scale
    dtype = jnp.result_type(float)
    levels = jnp.log(jnp.asarray(scale.sigmas, dtype))
    return jnp.interp(jnp.log(sigma), levels, jnp.asarray(scale.values, dtype))


def known_scale_at(scale: Any, sigma: float) -> float | None:
    """The same as a Python float where it is known before tracing, else ``None``."""
    if not isinstance(scale, SigmaCurve):
        return as_float(scale)
    levels, values = as_concrete(scale.sigmas), as_concrete(scale.values)
    if levels is None or values is None:
        return None
    return float(np.interp(np.log(sigma), np.log(levels), values))
