"""Tensors of PyTorch files, read one at a time, without PyTorch.

Such a file holds a pickle, which is a program that may call anything. Here it may only
name storages, place tensors in them and build dictionaries; a file that names anything
else is refused.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from full_models.weights.table import Stored, StoredTensor, listed

# Where training codes keep the weights, in order of preference.
_ROOTS = ("ema", "model", "state_dict")
# Wrappers of a module that put their name before all of its keys.
_WRAPPERS = ("module.", "_orig_mod.")
_LOCAL_HEADER = 30
# How zip files that are truncated, encrypted or changed fail.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    UnicodeDecodeError,
)
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# PyTorch's storages, and their types as NumPy and safetensors spell them.
_STORAGES = {
    "FloatStorage": ("float32", "F32"),
    "DoubleStorage": ("float64", "F64"),
    "HalfStorage": ("float16", "F16"),
    "BFloat16Storage": ("bfloat16", "BF16"),
    "LongStorage": ("int64", "I64"),
    "IntStorage": ("int32", "I32"),
    "ShortStorage": ("int16", "I16"),
    "CharStorage": ("int8", "I8"),
    "ByteStorage": ("uint8", "U8"),
    "BoolStorage": ("bool", "BOOL"),
}


def read_torch(path: str | os.PathLike, root: str | None = None) -> Stored:
    """The tensors of a file of ``torch.save`` (``.pt``, ``.pth``, ``.ckpt``, ``.bin``).

    No code of the file is run: one that asks for more than tensors in dictionaries is
    refused. The weights are the file's own dictionary if it holds tensors only, or else
    its entry ``ema``, ``model`` or ``state_dict``, the first of them that exists. A
    prefix ``module.`` or ``_orig_mod.`` of all names is dropped.

    Args:
        path: the file.
        root: the entry that holds the weights, instead of that choice.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, foreign, of the format before PyTorch 1.6,
            asks to run code, places tensors outside of their storage, or has no
            dictionary of tensors where it is looked for.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            content, entries = _read_table(archive, path)
    except _DAMAGE as error:
        raise ValueError(_what_is_wrong(path, error)) from error
    state = _without_wrappers(_state_dict(content, root, path), path)
    return {name: _tensor(name, view, entries, path) for name, view in state.items()}


def _read_table(
    archive: zipfile.ZipFile, path: Path
) -> tuple[Any, dict[str, zipfile.ZipInfo]]:
    """The content of the file's pickle, and its storages by key."""
    infos = {info.filename: info for info in archive.infolist()}
    tables = [name for name in infos if name.split("/")[1:] == ["data.pkl"]]
    if len(tables) != 1:
        raise ValueError(
            f"{path} is a zip file, but not one of torch.save: it must hold one "
            f"data.pkl, found {len(tables)}."
        )
    folder = tables[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in infos:
        order = archive.read(f"{folder}byteorder")
        if order != b"little":
            raise ValueError(
                f"{path} must hold little-endian numbers, got {order!r}; load it with "
                f"torch and save it on another machine."
            )
    prefix = f"{folder}data/"
    entries = {
        name.removeprefix(prefix): info
        for name, info in infos.items()
        if name.startswith(prefix)
    }
    return _read_pickle(archive.read(tables[0]), str(path)), entries


def _what_is_wrong(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        start = file.read(len(_LEGACY))
    if start == _LEGACY:
        return (
            f"{path} has the format that torch.save wrote before version 1.6, which is "
            f"not read here; load it with torch and torch.save it again."
        )
    if start.startswith(b"PK"):
        return f"{path} is truncated or damaged ({error}); fetch it again."
    return f"{path} is no file of torch.save: it must be a zip file ({error})."


def _state_dict(content: Any, root: str | None, path: Path) -> dict[Any, Any]:
    """The dictionary that holds the weights."""
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must hold a dictionary of tensors, got {_kind(content)}; save "
            f"model.state_dict()."
        )
    keys = listed([repr(key) for key in content])
    if root is not None:
        if root not in content:
            raise ValueError(f"{path} has no entry {root!r}; it has {keys}.")
        state, where = content[root], f"entry {root!r} of {path}"
    elif _all_tensors(content):
        return content
    else:
        found = [name for name in _ROOTS if name in content]
        if not found:
            raise ValueError(
                f"{path} must hold tensors, or have an entry {', '.join(_ROOTS)}; it "
                f"has {keys}. Name the one that holds the weights: root=..."
            )
        state, where = content[found[0]], f"entry {found[0]!r} of {path}"
    if not _all_tensors(state):
        raise ValueError(
            f"{where} must be a dictionary of tensors, got {_kind(state)}. The file "
            f"has {keys}; name the one that holds the weights: root=..."
        )
    return state


def _all_tensors(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(value, View) for value in content.values())
    )


def _kind(content: Any) -> str:
    if isinstance(content, View):
        return "a tensor"
    if isinstance(content, Inert):
        return "an object"
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    others = [repr(k) for k, value in content.items() if not isinstance(value, View)]
    return f"one that also holds {listed(others)}" if others else "an empty one"


def _without_wrappers(state: dict[Any, View], path: Path) -> dict[str, View]:
    foreign = [repr(name) for name in state if not isinstance(name, str)]
    if foreign:
        raise ValueError(
            f"{path}: names of tensors must be text, got {listed(foreign)}."
        )
    while True:
        wrapper = next(
            (w for w in _WRAPPERS if all(name.startswith(w) for name in state)), None
        )
        if wrapper is None:
            return state
        state = {name.removeprefix(wrapper): view for name, view in state.items()}


def _tensor(
    name: str, view: View, entries: dict[str, zipfile.ZipInfo], path: Path
) -> StoredTensor:
    storage, dtype = view.storage, jnp.dtype(view.storage.dtype)
    entry = entries.get(storage.key)
    if entry is None:
        raise ValueError(
            f"{path} is damaged: {name} lies in the entry data/{storage.key}, which is "
            f"missing; fetch or write the file again."
        )
    if storage.size * dtype.itemsize > entry.file_size:
        raise ValueError(
            f"{path} is damaged: {name} needs a storage of "
            f"{storage.size * dtype.itemsize} bytes, but data/{storage.key} has "
            f"{entry.file_size}; fetch or write the file again."
        )
    if view.offset + view.span() > storage.size:
        raise ValueError(
            f"{path} is damaged: {name} of shape {view.shape} ends at number "
            f"{view.offset + view.span()} of a storage of {storage.size}; fetch or "
            f"write the file again."
        )
    return StoredTensor(
        view.shape,
        dict(_STORAGES.values())[storage.dtype],
        _reader(name, view, entry, path),
    )


def _reader(
    name: str, view: View, entry: zipfile.ZipInfo, path: Path
) -> Callable[[], np.ndarray]:
    dtype = jnp.dtype(view.storage.dtype)

    def read() -> np.ndarray:
        start, length = view.offset * dtype.itemsize, view.span() * dtype.itemsize
        compressed = entry.compress_type != zipfile.ZIP_STORED
        read_bytes = _read_compressed if compressed else _read_stored
        try:
            data = read_bytes(path, entry, start, length)
        except _DAMAGE as error:
            raise ValueError(_what_is_wrong(path, error)) from error
        if data.size != length:
            raise ValueError(
                f"{path} is truncated: {name} must have {length} bytes, found "
                f"{data.size}; fetch or write the file again."
            )
        return _placed(data.view(dtype), view)

    return read


def _read_stored(
    path: Path, entry: zipfile.ZipInfo, start: int, length: int
) -> np.ndarray:
    """Bytes of an entry that is stored as it is: nothing else is read."""
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        header = file.read(_LOCAL_HEADER)
        if len(header) != _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
            raise zipfile.BadZipFile(f"no entry {entry.filename} at its place")
        name, extra = np.frombuffer(header[26:30], "<u2").tolist()
        file.seek(entry.header_offset + _LOCAL_HEADER + name + extra + start)
        return np.fromfile(file, np.uint8, length)


def _read_compressed(
    path: Path, entry: zipfile.ZipInfo, start: int, length: int
) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(entry) as file:
        file.seek(start)
        return np.frombuffer(file.read(length), np.uint8)


def _placed(numbers: np.ndarray, view: View) -> np.ndarray:
    """The tensor, from its first to its last number in the file."""
    if 0 in view.shape:
        return np.empty(view.shape, numbers.dtype)
    steps = [step * numbers.dtype.itemsize for step in view.strides]
    tensor = np.lib.stride_tricks.as_strided(numbers, view.shape, steps)
    return np.ascontiguousarray(tensor).reshape(view.shape)


# The pickle.


class Storage(NamedTuple):
    """Contiguous numbers in an entry of the file.

    Attributes:
        key: name of the entry.
        dtype: type of the numbers, as NumPy spells it.
        size: count of the numbers.
    """

    key: str
    dtype: str
    size: int


class View(NamedTuple):
    """A tensor as a strided view of a storage.

    Attributes:
        storage: the storage of its numbers.
        offset: index of its first number.
        shape: shape of the tensor.
        strides: distance of neighbors along each axis, in numbers.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def span(self) -> int:
        """Length of the stretch of the storage from its first to its last number."""
        if 0 in self.shape:
            return 0
        return 1 + sum(
            (n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)
        )


def _read_pickle(data: bytes, origin: str) -> Any:
    """Dictionaries, lists, numbers, text and ``View``s of a pickle.

    Args:
        data: the pickle.
        origin: the file, for messages.

    Raises:
        ValueError: if it asks to run anything but what makes tensors and dictionaries,
            or is damaged.
    """
    try:
        return _Unpickler(io.BytesIO(data), origin).load()
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(
            f"{origin}: its table of tensors (data.pkl) is damaged ({error}); fetch "
            f"or write the file again."
        ) from error


class _Refused(Exception):
    """The file asks for more than tensors."""


# Whatever a pickle can name or build has a ``__setstate__`` or no attributes to set, so
# that its BUILD instruction cannot alter anything.


class _Mapping(dict):
    """An ``OrderedDict``: dictionaries keep their order anyway."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Drop attributes (``_metadata``, the versions of a model's modules)."""


class Inert:
    """Stands for an object of which nothing is needed."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Drop its attributes."""


class _Function:
    """A function that the file may call."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("the file asks to alter a function; it is none of torch.save.")


class _StorageType(NamedTuple):
    dtype: str


def _view(storage, offset, shape, strides, *details) -> View:
    """``torch._utils._rebuild_tensor(_v2)``."""
    metadata = details[2] if len(details) > 2 else None
    shape, strides = tuple(shape), tuple(strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} with strides {strides}")
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides)):
        raise ValueError(f"a tensor of shape {shape} with strides {strides}")
    if metadata:
        raise _Refused(
            f"the file holds a tensor with pending operations ({metadata}); apply them "
            f"(resolve_conj, resolve_neg) before saving."
        )
    return View(storage, offset, shape, strides)


def _parameter(data, *details) -> Any:
    """``torch._utils._rebuild_parameter`` and ``..._with_state``."""
    return data


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Function(_Mapping),
    ("torch._utils", "_rebuild_tensor"): _Function(_view),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_view),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
    ("argparse", "Namespace"): Inert,
} | {("torch", name): _StorageType(dtype) for name, (dtype, _) in _STORAGES.items()}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, origin: str):
        super().__init__(file)
        self._origin = origin

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(
                f"{self._origin}: the file asks to run {module}.{name}, which this "
                f"reader does not do: only tensors in dictionaries are read. If you "
                f"trust the file, load it with torch and save its state dict alone: "
                f"torch.save(model.state_dict(), path)."
            ) from None

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage, key, _, size = pid
        if kind != "storage" or not isinstance(storage, _StorageType):
            raise ValueError(f"a reference to {kind!r}")
        if not isinstance(key, str) or not isinstance(size, int) or size < 0:
            raise ValueError(f"a storage of {size!r} numbers")
        return Storage(key, storage.dtype, size)
