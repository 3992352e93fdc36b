"""Layers that several families share, on Flax's own."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx


def _operands(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Operands of a product in ``dtype``; its bias in float32."""
    x, kernel, bias = arrays
    return x.astype(dtype), kernel.astype(dtype), bias.astype(jnp.float32)


# Narrow products accumulate in float32 anyway; returning that loses nothing.
Linear = functools.partial(
    nnx.Linear, preferred_element_type=jnp.float32, promote_dtype=_operands
)
Conv = functools.partial(
    nnx.Conv, preferred_element_type=jnp.float32, promote_dtype=_operands
)
GroupNorm = functools.partial(
    nnx.GroupNorm, epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False
)
