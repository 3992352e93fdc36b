"""Tensors of PyTorch files, read one at a time, without PyTorch."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from full_models.weights.messages import listed
from full_models.weights.stored import Stored, StoredTensor
from full_models.weights.torch_pickle import Inert, View, read_pickle

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
_NAMES = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
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
    return read_pickle(archive.read(tables[0]), str(path)), entries


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
        view.shape, _NAMES[storage.dtype], _reader(name, view, entry, path)
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
