"""Checks of arguments at the boundary: one for each kind of argument.

Every public entry checks its arguments here before anything is traced. Values are
checked where they are known; of traced arrays only shape and type are.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# -- values that may be traced --------------------------------------------------------


def as_concrete(value: Any) -> np.ndarray | None:
    """The value as a NumPy array; ``None`` while traced, or in other processes.

    A tuple or list is traced if one of its numbers is.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
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


def as_floats(value: Any) -> jax.Array:
    """As floats of at least 32 bits: integers would turn a noise level of 0.5 into 0.

    Half types would overflow in the square of a noise level, and bfloat16 could not
    even count to 1000.
    """
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(jnp.result_type(float))
    narrow = jnp.finfo(array.dtype).bits < 32
    return array.astype(jnp.float32) if narrow else array


# -- one check for each kind of argument ----------------------------------------------


def check_key(key: Any) -> None:
    """Raise unless ``key`` is one JAX random key.

    Raises:
        TypeError: for anything else, a raw seed for example.
        ValueError: for an array of keys.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (
        jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
        or (key.shape == (2,) and dtype == jnp.uint32)
    ):
        raise TypeError(
            f"key must be a JAX random key, got {shown(key)}; make one with "
            f"jax.random.key(seed)."
        )
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) and key.shape != ():
        raise ValueError(
            f"key must be a single key, got an array of keys of shape {key.shape}; "
            f"use jax.vmap to run over several."
        )


def key_of_seed(seed: Any) -> jax.Array:
    """A random key of all 64 bits of a seed; below 2**32 that of ``jax.random.key``.

    Raises:
        TypeError: for anything but a whole number.
        ValueError: for one that is negative or has more than 64 bits.
    """
    seed = check_count("seed", seed, 0)
    if seed >= 2**64:
        raise ValueError(f"seed must be below 2**64, got {seed}.")
    key = jax.random.key(seed % 2**32)
    return jax.random.fold_in(key, seed >> 32) if seed >> 32 else key


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least ``least``, as a Python integer.

    Raises:
        TypeError: for anything but an integer.
        ValueError: for a smaller one.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {shown(value)}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def as_samples(
    value: Any, shape: tuple[int, ...] | None = None, name: str = "x"
) -> jax.Array:
    """Samples ``[n, ...]`` as floats of at least 32 bits.

    Args:
        value: the samples.
        shape: shape of one sample, where it is known.
        name: name of the argument.

    Raises:
        TypeError: for anything but real numbers.
        ValueError: for another shape, or no sample.
    """
    array = as_numbers(value, name)
    wanted = "..." if shape is None else ", ".join(str(size) for size in shape)
    fits = array.ndim >= 1 if shape is None else array.shape[1:] == tuple(shape)
    if not (fits and array.ndim and array.shape[0]):
        raise ValueError(
            f"{name} must have shape [n, {wanted}] with n at least 1, got "
            f"{array.shape}."
        )
    return as_floats(array)


def as_sigma(value: Any, dtype: Any, *, least: float | None = None) -> jax.Array:
    """One noise level, a scalar of a floating type.

    Args:
        value: the noise level.
        dtype: the type wanted.
        least: lowest value allowed; ``None`` for any above 0.

    Raises:
        TypeError: for anything but a real number.
        ValueError: for an array, or a value that is not finite or too low.
    """
    array = as_numbers(value, "sigma")
    if array.ndim:
        raise ValueError(
            f"sigma must be one number, got shape {array.shape}; use jax.vmap for "
            f"several noise levels."
        )
    level = as_concrete(array)
    if level is not None:
        above = level > 0 if least is None else level >= least
        if not (above and np.isfinite(level)):
            limit = "> 0" if least is None else f">= {least:g}"
            raise ValueError(f"sigma must be finite and {limit}, got {level}.")
    return jnp.asarray(value, dtype)


def as_labels(
    label: Any,
    shape: tuple[int, ...],
    num_labels: int | None,
    *,
    null_allowed: bool = True,
    name: str = "label",
) -> jax.Array | None:
    """Labels as int32 of a shape, ``None`` for no condition.

    Args:
        label: ``None``, an integer, or integers of this shape.
        shape: shape of the samples that they are of.
        num_labels: number of classes, where it is known; ``num_labels`` itself means
            "no condition".
        null_allowed: whether ``num_labels`` is accepted.
        name: name of the argument.

    Raises:
        ValueError: for anything else.
    """
    if label is None:
        return None
    array = label if isinstance(label, jax.Array) else np.asarray(label)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be an integer, got dtype {array.dtype}: {shown(label)}."
        )
    if array.shape not in ((), shape):
        raise ValueError(
            f"{name} must be None, an integer, or integers of shape {shape}, one for "
            f"each sample, got shape {array.shape}."
        )
    values = as_concrete(array)
    if values is not None:
        last = np.iinfo(np.int32).max if num_labels is None else num_labels
        highest = last if null_allowed or num_labels is None else last - 1
        bad = values[(values < 0) | (values > highest)]
        if bad.size:
            null = f" or {num_labels} for no condition" if null_allowed else ""
            allowed = (
                "at least 0" if num_labels is None else f"in 0..{num_labels - 1}{null}"
            )
            raise ValueError(
                f"{name} must be {allowed}, got {np.unique(bad)[:5].tolist()}."
            )
    return jnp.broadcast_to(jnp.asarray(array, jnp.int32), shape)


def check_finite(values: np.ndarray, name: str, remedy: str) -> None:
    """Raise ``ValueError`` if a row of ``[n, ...]`` holds NaN or infinity."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} must be finite; {int((~finite).sum())} of {len(values)} hold NaN "
            f"or infinity, the first at index {int(np.argmin(finite))}. {remedy}"
        )


def as_path(path: Any, name: str = "path") -> Path:
    """A path, with ``~`` as the home folder.

    Raises:
        TypeError: for anything but text or a path.
        ValueError: for an empty path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name} must be text or a path, got {shown(path)}.")
    if not os.fspath(path):
        raise ValueError(f"{name} must not be empty; '.' is the current folder.")
    return Path(path).expanduser()


# -- configurations -------------------------------------------------------------------


def plain_numbers(config: Any) -> None:
    """Turn NumPy scalars in the fields of a frozen dataclass into Python numbers.

    They compare equal, but are no JSON.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(config, field.name, value.item())


def check_real(name: str, value: Any) -> float:
    """A finite number as a Python float.

    Raises:
        TypeError: for anything but a real number.
        ValueError: if it is not finite.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {shown(value)}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}.")
    return float(value)


def shown(value: Any) -> str:
    """A value for a message: its class, and itself where it is short."""
    kind = type(value).__name__
    if isinstance(value, (np.ndarray, jax.Array)):
        return f"{kind} of shape {value.shape}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    return f"{kind} {text}" if len(text) <= 60 else kind


def as_numbers(value: Any, name: str) -> Any:
    """An array of real numbers, of NumPy unless it is one of JAX.

    Raises:
        TypeError: for anything else.
    """
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if not (
        jnp.issubdtype(array.dtype, jnp.floating)
        or jnp.issubdtype(array.dtype, jnp.integer)
    ):
        raise TypeError(f"{name} must be real numbers, got {shown(value)}.")
    return array
