"""Guidance scales: numbers, or curves over the noise level."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
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
    Nodes and values may be traced: all curves of as many nodes share a program.

    Args:
        sigmas: nodes > 0, ascending, ``[S]``: an array, a tuple or a list.
        values: the scale at the nodes, ``[S]``, likewise.

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
        for name, array in (("sigmas", levels), ("values", values)):
            if isinstance(getattr(self, name), (tuple, list)):
                object.__setattr__(self, name, array.astype(float))

    @classmethod
    def from_function(
        cls,
        function: Callable[[np.ndarray], ArrayLike],
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        num_nodes: int = 128,
    ) -> SigmaCurve:
        """The curve through the values of a function of the noise level.

        Args:
            function: of noise levels ``[S]``, in NumPy or JAX.
            sigma_min: the lowest node, > 0; the curve is constant below.
            sigma_max: the highest node; the curve is constant above.
            num_nodes: nodes, evenly spaced in ``log sigma``, at least 2.

        Raises:
            ValueError: for levels out of order, fewer nodes, or values that are not
                finite or of another shape.
        """
        if not 0 < sigma_min < sigma_max or num_nodes < 2:
            raise ValueError(
                f"nodes must satisfy 0 < sigma_min < sigma_max and be at least 2, got "
                f"{sigma_min}, {sigma_max} and {num_nodes}."
            )
        sigmas = np.geomspace(sigma_min, sigma_max, num_nodes)
        return cls(sigmas, np.asarray(function(sigmas)))


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
    if callable(value):
        raise TypeError(
            f"{name} must be a number or a SigmaCurve, got a function; write "
            f"SigmaCurve.from_function(...) around it."
        )
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
