"""Filling a module from named tensors, each used exactly once, and back.

A layout is a table: for each parameter of the module, the tensors of which it is made
and how. The same table reads and writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from full_models.weights.messages import listed
from full_models.weights.stored import Spec, Stored
from gmm_guidance._runtime.tensor_files import named_leaves
from gmm_guidance.sharding import put

Module = TypeVar("Module")

# What differs between a stored tensor and its part of a parameter.
Transform = Callable[[np.ndarray], np.ndarray]
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True)
class Source:
    """A stored tensor, and how it becomes (a part of) a parameter.

    Attributes:
        name: its key in the file.
        shape: its shape in the file.
        load: from the file's axes to the parameter's.
        store: the inverse of ``load``.
    """

    name: str
    shape: tuple[int, ...]
    load: Transform
    store: Transform


@dataclasses.dataclass(frozen=True)
class Entry:
    """A parameter: a stack of rows, each of tensors joined along the last axis.

    Attributes:
        rows: sources of each row; a single row for a parameter that is not stacked.
        stacked: whether the rows get a leading axis (blocks).
    """

    rows: tuple[tuple[Source, ...], ...]
    stacked: bool = False


@dataclasses.dataclass(frozen=True)
class Known:
    """A stored tensor that is no parameter, but must be what the module computes.

    Attributes:
        shape: its shape in the file.
        value: what it must be, to the rounding of float32; also what is exported.
        same_as: instead of a value, another tensor of the file that it must repeat.
    """

    shape: tuple[int, ...]
    value: Callable[[], np.ndarray] | None = None
    same_as: str | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a module's parameters are stored.

    Attributes:
        entries: by the parameter's path in the module (``blocks.attn.qkv.kernel``).
        known: by the tensor's name.
    """

    entries: Mapping[str, Entry]
    known: Mapping[str, Known] = dataclasses.field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each stored tensor, by name."""
        result = {name: known.shape for name, known in self.known.items()}
        for entry in self.entries.values():
            for row in entry.rows:
                result |= {source.name: source.shape for source in row}
        return result


def fill(
    abstract: Module,
    layout: Layout,
    stored: Stored,
    origin: str,
    dtype: Any = None,
) -> Module:
    """The module with its parameters read from stored tensors.

    Memory: the parameters once, and the largest of them a second time.

    Args:
        abstract: the module with shapes in place of arrays (``jax.eval_shape``);
            arrays go to the ``sharding`` of their shape where it has one.
        layout: its layout.
        stored: the tensors.
        origin: the file, for messages.
        dtype: type of the parameters; float32 by default.

    Raises:
        ValueError: if tensors are missing, unexpected, of another shape or no floating
            point numbers, all of which are listed; or if a known one has another value.
    """
    check_names(layout, stored, origin)
    for name, known in layout.known.items():
        _check_known(name, known, stored, origin)
    dtype = jnp.dtype(dtype or jnp.float32)
    leaves = parameters(abstract)
    if leaves.keys() != layout.entries.keys():
        differing = sorted(leaves.keys() ^ layout.entries.keys())
        raise ValueError(f"the layout and the module disagree on {differing}.")
    arrays = [
        _on_device(
            _build(layout.entries[name], leaf.shape, stored, dtype),
            getattr(leaf, "sharding", None),
        )
        for name, leaf in leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def _on_device(array: np.ndarray, sharding: Any) -> jax.Array:
    """One copy, waited for: else several large parameters are held twice at once."""
    placed = jax.device_put(array) if sharding is None else put(array, sharding)
    return jax.block_until_ready(placed)


def check_names(layout: Layout, stored: Mapping[str, Spec], origin: str) -> None:
    """Refuse tensors that are missing, unexpected, misshapen or not floating-point.

    Args:
        layout: which tensors there must be, and their shapes.
        stored: what there is, by name; nothing is read.
        origin: the file, for messages.

    Raises:
        ValueError: listing them with expected and found shapes.
    """
    expected = layout.shapes()
    missing = [f"{n} {s}" for n, s in expected.items() if n not in stored]
    foreign = [f"{n} {t.shape}" for n, t in stored.items() if n not in expected]
    shapes = [
        f"{n} expected {s}, found {stored[n].shape}"
        for n, s in expected.items()
        if n in stored and stored[n].shape != s
    ]
    types = [
        f"{n} is {t.dtype}"
        for n, t in stored.items()
        if n in expected and t.dtype not in _FLOATS
    ]
    parts = [
        f"{title}: {listed(found)}"
        for title, found in (
            ("missing", missing),
            ("unexpected", foreign),
            ("of another shape", shapes),
            (f"of a type other than {', '.join(_FLOATS)}", types),
        )
        if found
    ]
    if parts:
        raise ValueError(
            f"{origin} does not fit this model. {'. '.join(parts)}. Check that model, "
            f"input size and file belong together."
        )


def parameters(module: Any) -> dict[str, Any]:
    """Parameters of a Flax module by path, in the order of its leaves."""
    leaves = named_leaves(module)
    return {name.removesuffix(".value"): leaf for name, leaf in leaves.items()}


def dump(module: Any, layout: Layout, dtype: Any = None) -> dict[str, np.ndarray]:
    """The stored tensors of a module: the inverse of ``fill``.

    Args:
        module: with arrays.
        layout: as in ``fill``.
        dtype: type of the tensors; that of the parameters by default.
    """
    result: dict[str, np.ndarray] = {}
    for name, leaf in parameters(module).items():
        entry = layout.entries[name]
        array = np.asarray(leaf)
        if dtype is not None:
            array = array.astype(dtype)
        for index, row in enumerate(entry.rows):
            part = array[index] if entry.stacked else array
            result |= _take_apart(row, part)
    for name, known in layout.known.items():
        if known.value is not None:
            result[name] = known.value().reshape(known.shape)
        elif known.same_as is not None:
            result[name] = result[known.same_as].copy()
    return result


def _take_apart(row: tuple[Source, ...], array: np.ndarray) -> dict[str, np.ndarray]:
    result, start = {}, 0
    for source in row:
        # How wide a tensor is once loaded is known from its shape alone.
        width = source.load(np.empty(source.shape, np.bool_)).shape[-1]
        part = array[..., start : start + width] if len(row) > 1 else array
        result[source.name] = np.ascontiguousarray(source.store(part))
        start += width
    return result


def _build(
    entry: Entry, shape: tuple[int, ...], stored: Stored, dtype: Any
) -> np.ndarray:
    if not entry.stacked and len(entry.rows[0]) == 1:  # as it is: no second copy
        (source,) = entry.rows[0]
        part = np.asarray(source.load(stored[source.name].read()), dtype, order="C")
        if part.shape != shape:
            raise ValueError(f"the layout gives {part.shape} where {shape} is needed.")
        return part
    result = np.empty(shape, dtype)
    for index, row in enumerate(entry.rows):
        place = result[index] if entry.stacked else result
        start = 0
        for source in row:
            part = source.load(stored[source.name].read())
            if len(row) > 1:
                place[..., start : start + part.shape[-1]] = part
                start += part.shape[-1]
            else:
                place[...] = part
    return result


def _check_known(name: str, known: Known, stored: Stored, origin: str) -> None:
    found = np.asarray(stored[name].read(), np.float32)
    if known.same_as is not None:
        wanted = np.asarray(stored[known.same_as].read(), np.float32)
        what, tolerance = f"{known.same_as}, of which it is a copy", 0.0
    elif known.value is not None:
        wanted, what = known.value().reshape(known.shape), "the table of this model"
        # Half-precision files hold the table rounded.
        tolerance = 1e-6 if stored[name].dtype in ("F32", "F64") else 1e-2
    else:
        return
    if not np.allclose(found, wanted, rtol=0, atol=tolerance):
        error = float(np.max(np.abs(found - wanted)))
        raise ValueError(
            f"{origin}: {name} must equal {what}, but differs by up to {error:.2g}; "
            f"the file is of another model."
        )
