"""Errors of hooks of users, said where and why: class, hook, and the remedy."""

from __future__ import annotations

import functools
import inspect
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp

_INSIDE = (sysconfig.get_paths()["purelib"], str(Path(__file__).parents[1]))
_NEED_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerIntegerConversionError,
)


def name_of(model: Any) -> str:
    """The name of a function, or of the class of an object."""
    if isinstance(model, functools.partial):
        return name_of(model.func)
    if inspect.isfunction(model) or inspect.ismethod(model):
        return model.__qualname__
    return type(model).__name__


def shapes_of(tree: Any) -> Any:
    """A pytree with types and shapes in place of arrays, for messages."""
    return jax.tree.map(_array_type, tree)


def _array_type(array: Any) -> str:
    dtype = getattr(array, "dtype", type(array).__name__)
    return f"{dtype}{list(jnp.shape(array))}"


@contextmanager
def explaining_branches() -> Iterator[None]:
    """Say where a traced program needs a value that it does not have.

    Raises:
        TypeError: in place of JAX's error, with the function and line that ask for it.
    """
    try:
        yield
    except _NEED_VALUES as error:
        where = _place(error.__traceback__)
        raise TypeError(
            f"{where} needs the value of an array while the program is traced: in an "
            f"if, a loop, float() or int(). Noise level, samples and labels have no "
            f"values there. Use jnp.where or jax.lax.cond; a rule that depends on the "
            f"noise level by steps defines at(position), where it is a number."
        ) from error


def _place(traceback: TracebackType | None) -> str:
    """The innermost function of the user in a traceback, or of anyone."""
    frames = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append((code.co_qualname, code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    own = [frame for frame in frames if not frame[1].startswith(_INSIDE)]
    # The first frame may be the call of the library itself.
    name, path, line = own[-1] if own else frames[-1]
    return f"{name} ({Path(path).name}, line {line})"
