"""Guidance scales: numbers, or curves over the noise level."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_concrete, as_float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SigmaCurve:
    """A scale as a function of the noise level, accepted wherever a rule has a scale.

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


#: One number, which may be traced.
Number = ArrayLike

#: A number, or a curve over the noise level.
Scale = ArrayLike | SigmaCurve


def scale_at(scale: Any, sigma: jax.Array) -> Any:
    """A scale at a noise level: the value of a curve, anything else unchanged."""
    if not isinstance(scale, SigmaCurve):
        return scale
    dtype = jnp.result_type(float)
    levels = jnp.log(jnp.asarray(scale.sigmas, dtype))
    return jnp.interp(jnp.log(sigma), levels, jnp.asarray(scale.values, dtype))


def known_scale_at(scale: Any, sigma: float) -> float | None:
    """``scale_at`` as a Python float if known before tracing, otherwise ``None``."""
    if not isinstance(scale, SigmaCurve):
        return as_float(scale)
    levels, values = as_concrete(scale.sigmas), as_concrete(scale.values)
    if levels is None or values is None:
        return None
    return float(np.interp(np.log(sigma), np.log(levels), values))


def check_scale(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf
) -> None:
    """Raise ``ValueError`` unless a scale is finite and within limits, where known."""
    if isinstance(value, (str, bytes, list, dict)):
        raise TypeError(f"{name} must be a number or a SigmaCurve, got {value!r}.")
    if isinstance(value, SigmaCurve):
        values = as_concrete(value.values)
        numbers = [] if values is None or values.dtype == object else values.tolist()
    else:
        number = as_float(value)
        numbers = [] if number is None else [number]
    for number in numbers:
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {number}.")
        if not low <= number <= high:
            limits = f"in [{low:g}, {high:g}]" if high < math.inf else f">= {low:g}"
            raise ValueError(f"{name} must be {limits}, got {number}.")
