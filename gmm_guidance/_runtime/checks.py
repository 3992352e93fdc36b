"""Checks of arguments at the boundary, made where values are known at trace time."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def as_concrete(value: Any) -> np.ndarray | None:
    """The value as a NumPy array; ``None`` while traced, or in other processes."""
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    return np.asarray(value)


def as_float(value: Any) -> float | None:
    """A concrete scalar as a Python float; ``None`` for tracers and other objects.

    Pytree transformations rebuild dataclasses with placeholders in their fields, so
    anything that is no number passes unchecked.
    """
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, (bool, int, float, np.number)):
        return float(value)
    if isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 0:
        return float(value)
    return None


def check_key(key: Any) -> None:
    """Raise unless ``key`` is one JAX random key.

    Raises:
        TypeError: for anything else, a raw seed for example.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (
        jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or key.shape == (2,)
    ):
        raise TypeError(
            f"key must be a JAX random key, got {type(key).__name__}; make one with "
            f"jax.random.key(seed)."
        )
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) and key.shape != ():
        raise ValueError(
            f"key must be a single key, got an array of keys of shape {key.shape}; "
            f"use jax.vmap to run over several."
        )
