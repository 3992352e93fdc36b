"""Tables of stored tensors: which ones make up each parameter, and how.

The same table fills a module from a file and writes a module to one; each stored tensor
is used exactly once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance._runtime.tensor_files import named_leaves
from gmm_guidance.sharding import put

Module = TypeVar("Module")
Transform = Callable[[np.ndarray], np.ndarray]
# The name of a stored tensor; for a stack of blocks the names of all blocks, each a
# name or the names of tensors that are joined along the last axis.
Names = str | Sequence[str | Sequence[str]]

_FLOATS = ("F64", "F32", "F16", "BF16")
_MOST_LISTED = 8


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape and type of a stored tensor.

    Attributes:
        shape: its shape.
        dtype: its type as safetensors spells it (``F32``, ``BF16``).
    """

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class StoredTensor(Spec):
    """A tensor of a file, not read yet.

    Attributes:
        read: reads it from the file.
    """

    read: Callable[[], np.ndarray]


Stored = dict[str, StoredTensor]


@dataclasses.dataclass(frozen=True)
class Source:
    """A stored tensor and its conversion to (a part of) a parameter.

    Attributes:
        name: its name in the file.
        shape: its shape in the file.
        load: converts it from the axes of the file to those of the parameter.
        store: the inverse of ``load``.
    """

    name: str
    shape: tuple[int, ...]
    load: Transform
    store: Transform


@dataclasses.dataclass(frozen=True)
class Entry:
    """The tensors of one parameter.

    Attributes:
        rows: for each block of a stack, the sources joined along the last axis; a
            single row for a parameter that is not stacked.
        stacked: whether the parameter has a leading axis of blocks.
    """

    rows: tuple[tuple[Source, ...], ...]
    stacked: bool = False


@dataclasses.dataclass(frozen=True)
class Known:
    """A stored tensor that is no parameter; its values are known and checked.

    Attributes:
        shape: its shape in the file.
        value: computes its values, compared up to the rounding of float32; they are
            also exported.
        same_as: name of another tensor of the file that it must equal, in place of
            ``value``.
    """

    shape: tuple[int, ...]
    value: Callable[[], np.ndarray] | None = None
    same_as: str | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """How the parameters of a module are stored.

    Attributes:
        entries: by the path of the parameter in the module (``blocks.mlp.fc1.kernel``).
        known: by the name of the tensor.
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


def copied(names: Names, shape: tuple[int, ...]) -> Entry:
    """A parameter stored with its own axes."""
    return _entry(names, lambda name: Source(name, shape, _identity, _identity))


def transposed(names: Names, inner: int, outer: int) -> Entry:
    """A matrix ``[inner, outer]`` stored as ``[outer, inner]``."""
    shape = (outer, inner)
    return _entry(names, lambda name: Source(name, shape, np.transpose, np.transpose))


def linear(ours: str, theirs: Names, inner: int, outer: int) -> dict[str, Entry]:
    """Kernel and bias of a linear map, stored by PyTorch's ``Linear``."""
    return {
        f"{ours}.kernel": transposed(_suffixed(theirs, ".weight"), inner, outer),
        f"{ours}.bias": copied(_suffixed(theirs, ".bias"), (outer,)),
    }


def exchanged(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Parameters whose halves along the last axis are stored in the other order."""

    def exchange(array: np.ndarray) -> np.ndarray:
        return np.concatenate(np.split(array, 2, axis=-1)[::-1], axis=-1)

    def source(one: Source) -> Source:
        return dataclasses.replace(
            one,
            load=lambda array: exchange(one.load(array)),
            store=lambda array: one.store(exchange(array)),
        )

    return {
        name: dataclasses.replace(
            entry, rows=tuple(tuple(map(source, row)) for row in entry.rows)
        )
        for name, entry in entries.items()
    }


def conv(ours: str, theirs: str, inner: int, outer: int, size: int) -> dict[str, Entry]:
    """Kernel ``[size, size, inner, outer]`` and bias of PyTorch's ``Conv2d``."""

    def source(name: str) -> Source:
        return Source(
            name,
            (outer, inner, size, size),
            lambda kernel: kernel.transpose(2, 3, 1, 0),
            lambda kernel: kernel.transpose(3, 2, 0, 1),
        )

    return {
        f"{ours}.kernel": _entry(f"{theirs}.weight", source),
        f"{ours}.bias": copied(f"{theirs}.bias", (outer,)),
    }


def patches(ours: str, theirs: str, channels: int, p: int, width: int) -> dict:
    """A linear map of flattened patches, stored as a convolution ``[D, C, p, p]``."""

    def load(kernel: np.ndarray) -> np.ndarray:
        return kernel.transpose(2, 3, 1, 0).reshape(p * p * channels, width)

    def store(kernel: np.ndarray) -> np.ndarray:
        return kernel.reshape(p, p, channels, width).transpose(3, 2, 0, 1)

    weight = Source(f"{theirs}.weight", (width, channels, p, p), load, store)
    bias = copied(f"{theirs}.bias", (width,))
    return {f"{ours}.kernel": Entry(((weight,),)), f"{ours}.bias": bias}


def native_table(module: Any) -> Table:
    """Each parameter as it is, under its path in the module (arrays or shapes)."""
    leaves = parameters(module)
    return Table(
        {name: copied(name, tuple(leaf.shape)) for name, leaf in leaves.items()}
    )


def fill(
    abstract: Module,
    table: Table,
    stored: Stored,
    origin: str,
    dtype: Any = None,
) -> Module:
    """Fill a module with stored tensors.

    Memory: the parameters once, and the largest of them a second time.

    Args:
        abstract: the module with shapes in place of arrays (``jax.eval_shape``); an
            array goes to the ``sharding`` of its shape if it has one.
        table: how its parameters are stored.
        stored: the tensors.
        origin: path of the file, for messages.
        dtype: type of the parameters; float32 by default.

    Raises:
        ValueError: if tensors are missing, unexpected, of another shape or not floating
            point, all of which are listed; or if a known tensor has other values.
    """
    check_names(table, stored, origin)
    for name, known in table.known.items():
        _check_known(name, known, stored, origin)
    dtype = jnp.dtype(dtype or jnp.float32)
    leaves = parameters(abstract)
    if leaves.keys() != table.entries.keys():
        differing = sorted(leaves.keys() ^ table.entries.keys())
        raise ValueError(f"the table and the module disagree on {differing}.")
    arrays = [
        _on_device(
            _build(table.entries[name], leaf.shape, stored, dtype),
            getattr(leaf, "sharding", None),
        )
        for name, leaf in leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def dump(module: Any, table: Table, dtype: Any = None) -> dict[str, np.ndarray]:
    """The stored tensors of a module: the inverse of ``fill``.

    Args:
        module: the module, with arrays.
        table: as in ``fill``.
        dtype: type of the tensors; that of the parameters by default.
    """
    result: dict[str, np.ndarray] = {}
    for name, leaf in parameters(module).items():
        entry = table.entries[name]
        array = np.asarray(leaf)
        if dtype is not None:
            array = array.astype(dtype)
        for index, row in enumerate(entry.rows):
            result |= _take_apart(row, array[index] if entry.stacked else array)
    for name, known in table.known.items():
        if known.value is not None:
            result[name] = known.value().reshape(known.shape)
        elif known.same_as is not None:
            result[name] = result[known.same_as].copy()
    return result


def check_names(table: Table, stored: Mapping[str, Spec], origin: str) -> None:
    """Refuse tensors that are missing, unexpected, misshapen or not floating point.

    Args:
        table: the tensors that must be there, and their shapes.
        stored: the tensors that are there; none is read.
        origin: path of the file, for messages.

    Raises:
        ValueError: listing them with expected and found shapes.
    """
    expected = table.shapes()
    problems = {
        "missing": [f"{n} {s}" for n, s in expected.items() if n not in stored],
        "unexpected": [
            f"{n} {t.shape}" for n, t in stored.items() if n not in expected
        ],
        "of another shape": [
            f"{n} expected {s}, found {stored[n].shape}"
            for n, s in expected.items()
            if n in stored and stored[n].shape != s
        ],
        f"of a type other than {', '.join(_FLOATS)}": [
            f"{n} is {t.dtype}"
            for n, t in stored.items()
            if n in expected and t.dtype not in _FLOATS
        ],
    }
    parts = [f"{title}: {listed(found)}" for title, found in problems.items() if found]
    if parts:
        extra = next((n for n in stored if n not in expected), None)
        hint = (
            ""
            if extra is None
            else (
                f"; heads that sampling does not use are left out by "
                f"ignore=({extra.split('.')[0]!r},)"
            )
        )
        raise ValueError(
            f"{origin} does not fit this model. {'. '.join(parts)}. Check that model, "
            f"input size and file belong together{hint}."
        )


def parameters(module: Any) -> dict[str, Any]:
    """Parameters of a Flax module by path, in the order of its leaves."""
    leaves = named_leaves(module)
    return {name.removesuffix(".value"): leaf for name, leaf in leaves.items()}


def listed(items: Iterable[str]) -> str:
    """The first few items, and how many more there are."""
    items = list(items)
    more = len(items) - _MOST_LISTED
    shown = ", ".join(items[:_MOST_LISTED])
    return f"{shown} and {more} more" if more > 0 else shown or "nothing"


def _identity(array: np.ndarray) -> np.ndarray:
    return array


def _entry(names: Names, source: Callable[[str], Source]) -> Entry:
    if isinstance(names, str):
        return Entry(((source(names),),))
    rows = ([row] if isinstance(row, str) else row for row in names)
    return Entry(tuple(tuple(map(source, row)) for row in rows), stacked=True)


def _suffixed(names: Names, suffix: str) -> Names:
    if isinstance(names, str):
        return names + suffix
    return [
        row + suffix if isinstance(row, str) else [name + suffix for name in row]
        for row in names
    ]


def _on_device(array: np.ndarray, sharding: Any) -> jax.Array:
    """One copy, waited for: else several large parameters are held twice at once."""
    placed = jax.device_put(array) if sharding is None else put(array, sharding)
    return jax.block_until_ready(placed)


def _build(
    entry: Entry, shape: tuple[int, ...], stored: Stored, dtype: Any
) -> np.ndarray:
    if not entry.stacked and len(entry.rows[0]) == 1:  # as it is: no second copy
        (source,) = entry.rows[0]
        part = np.asarray(source.load(stored[source.name].read()), dtype, order="C")
        if part.shape != shape:
            raise ValueError(f"the table gives {part.shape} where {shape} is needed.")
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


def _take_apart(row: tuple[Source, ...], array: np.ndarray) -> dict[str, np.ndarray]:
    result, start = {}, 0
    for source in row:
        # How wide a tensor is once loaded is known from its shape alone.
        width = source.load(np.empty(source.shape, np.bool_)).shape[-1]
        part = array[..., start : start + width] if len(row) > 1 else array
        result[source.name] = np.ascontiguousarray(source.store(part))
        start += width
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
