"""Checksums of arrays, computed where the arrays are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def checksums(arrays: Mapping[str, Any]) -> dict[str, str]:
    """A checksum of 64 bits of each array, in hexadecimal digits.

    A change of any one element changes it, whatever the element's type. It does not
    depend on how the array is divided over devices, and all processes get the same.

    Args:
        arrays: arrays by name; not JAX random keys.
    """
    sums = jax.device_get(_sums(dict(arrays)))
    return {name: f"{int(a):08x}{int(b):08x}" for name, (a, b) in sums.items()}


@jax.jit
def _sums(arrays: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
    return {name: _sum(array) for name, array in arrays.items()}


@jax.jit  # within the other: traced once for arrays of the same shape
def _sum(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two sums modulo 2^32 of mixed bits.

    At a given position both terms are bijective in the element's bits.
    """
    words = _words(array)
    place = _mix(_positions(words.shape))
    mixed = _mix(words ^ place)
    scaled = mixed * (place | np.uint32(1))
    return jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(scaled, dtype=jnp.uint32)


def _words(array: jax.Array) -> jax.Array:
    """The bits of an array as ``uint32``; wide types get one more axis."""
    if jnp.iscomplexobj(array):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    narrow = {1: jnp.uint8, 2: jnp.uint16}
    unsigned = narrow.get(array.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """Flat indices modulo 2^32, made without reshaping: shards stay where they are."""
    result = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        result += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return result


def _mix(bits: jax.Array) -> jax.Array:
    """Murmur3's finaliser: bijective, and each bit out depends on each bit in."""
    bits = bits ^ (bits >> np.uint32(16))
    bits = bits * np.uint32(0x85EBCA6B)
    bits = bits ^ (bits >> np.uint32(13))
    bits = bits * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> np.uint32(16))
