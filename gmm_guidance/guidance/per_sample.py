"""Geometry of each sample on its own, over all axes but the first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner product of each sample, ``[n, 1, ...]``."""
    return jnp.sum(a * b, axis=_axes(a), keepdims=True)


def norm(a: jax.Array) -> jax.Array:
    """Euclidean norm of each sample, ``[n, 1, ...]``."""
    return jnp.sqrt(dot(a, a))


def std(a: jax.Array) -> jax.Array:
    """Standard deviation within each sample, ``[n, 1, ...]``."""
    return jnp.std(a, axis=_axes(a), keepdims=True)


def ratio(a: ArrayLike, b: jax.Array, otherwise: float) -> jax.Array:
    """``a / b``, and another number where ``b`` is zero."""
    is_zero = b == 0.0
    return jnp.where(is_zero, otherwise, a / jnp.where(is_zero, 1.0, b))


def _axes(a: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, a.ndim))
