"""Tensors of PyTorch files, read one at a time, without PyTorch.

Such a file holds a pickle, which is a program that may call anything. Here nothing is
called: storages, tensors in them and dictionaries are built by code of this module, and
whatever else the file asks for is left out.
"""

from __future__ import annotations

import functools
import math
import os
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from full_models.weights.table import Stored, StoredTensor, listed
from gmm_guidance._runtime.schema import brief, damaged

# Where training codes keep the weights: averages first, by the words of their names.
_AVERAGE = re.compile(r"(?<![a-z])(ema|swa|shadow|averaged?|avg)(?![a-z])")
_ROOTS = ("ema", "model", "state_dict")
_MOST_INSTRUCTIONS = 1_000_000  # of a pickle; one of 1,000 tensors has about 40,000
_MOST_PICKLED = 64 << 20  # bytes
_LOCAL_HEADER = 30
_CHUNK = 1 << 22
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
_Scalar = str | bytes | int | float | bool | None
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

    No code of the file is run. The weights are the file's own dictionary if it holds
    tensors, or else one of its entries: that of an average (``ema``, ``model_ema``,
    ``ema_state_dict`` and the like), else ``model``, ``state_dict``, or the only one
    that holds tensors. Objects in other entries, such as the arguments of the training,
    are passed over.

    Args:
        path: the file.
        root: the entry that holds the weights, instead of that choice; of an entry
            within another, both with a slash between.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, foreign, of the format before PyTorch 1.6,
            has objects among the weights, places tensors outside of their storage, or
            has no dictionary of tensors where it is looked for.
    """
    return open_torch(path, root)[0]


def open_torch(path: str | os.PathLike, root: str | None) -> tuple[Stored, str]:
    """As ``read_torch``, with the name of the entry; empty for the file's own."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            content, entries = _read_table(archive, path)
    except _DAMAGE as error:
        raise ValueError(_what_is_wrong(path, error)) from error
    state, name = _state_dict(content, root, path)
    stored = {}
    for key, value in state.items():
        if isinstance(value, View):
            if not isinstance(key, str):
                raise ValueError(
                    f"{path}: names of tensors must be text, got {_short(key)}."
                )
            stored[key] = _tensor(key, value, entries, path)
    return stored, name


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
    for name in {tables[0], f"{folder}byteorder"} & infos.keys():
        if infos[name].file_size > _MOST_PICKLED:
            raise damaged(path, f"{name} is larger than {_MOST_PICKLED >> 20} MB")
        if infos[name].CRC == 0:  # as torch.save writes them if it is to compute none
            infos[name].CRC = None  # type: ignore[assignment]
    if f"{folder}byteorder" in infos:
        order = archive.read(infos[f"{folder}byteorder"])
        if order != b"little":
            raise ValueError(
                f"{path} must hold little-endian numbers, got {order[:20]!r}; load it "
                f"with torch and save it on another machine."
            )
    prefix = f"{folder}data/"
    entries = {
        name.removeprefix(prefix): info
        for name, info in infos.items()
        if name.startswith(prefix)
    }
    data = archive.read(infos[tables[0]])
    try:
        return _read_pickle(data), entries
    except Exception as error:  # a damaged pickle can fail in any way
        raise damaged(path, f"its table of tensors (data.pkl): {brief(error)}") from (
            error
        )


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


def _state_dict(
    content: Any, root: str | None, path: Path
) -> tuple[dict[Any, Any], str]:
    """The dictionary that holds the weights, and the name of its entry."""
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must hold a dictionary of tensors, got {_kind(content)}; save "
            f"model.state_dict()."
        )
    keys = listed(map(_short, content))
    if root is not None:
        found: Any = content
        above: list[str] = []
        for part in root.split("/"):
            if not isinstance(found, dict) or part not in found:
                inside = f" in {'/'.join(above)!r}" if above else ""
                raise ValueError(
                    f"{path} has no entry {part!r}{inside}; it has {keys}."
                )
            found, above = found[part], [*above, part]
        return _checked_state(found, f"entry {root!r} of {path}", keys), root
    if _is_state(content):
        return content, ""
    entries = [k for k, v in content.items() if isinstance(k, str) and _is_state(v)]
    average = [k for k in content if isinstance(k, str) and _AVERAGE.search(k.lower())]
    average = [k for k in average if isinstance(content[k], dict)]
    known = [k for k in _ROOTS if isinstance(content.get(k), dict | list)]
    if len(average) > 1 and "ema" not in average:
        raise ValueError(
            f"{path} has several averages of the weights: "
            f"{listed(map(_short, average))}. Name one: root=..."
        )
    choice = [k for k in known if k == "ema"] + average + known
    choice += entries if len(entries) == 1 else []
    if not choice and any(isinstance(v, _NO_ENTRY) for v in content.values()):
        return _checked_state(content, str(path), keys), ""
    if not choice:
        raise ValueError(
            f"{path} must hold tensors, or have an entry {', '.join(_ROOTS)}; it "
            f"has {keys}. Name the one that holds the weights: root=..."
        )
    where = f"entry {choice[0]!r} of {path}"
    return _checked_state(content[choice[0]], where, keys), choice[0]


def _is_state(content: Any) -> bool:
    """Whether this is a dictionary of tensors; counters may lie between them."""
    return (
        isinstance(content, dict)
        and any(isinstance(value, View) for value in content.values())
        and all(isinstance(value, View | _Scalar) for value in content.values())
    )


def _checked_state(state: Any, where: str, keys: str) -> dict[Any, Any]:
    if _is_state(state):
        return state
    values = state.values() if isinstance(state, dict) else [state]
    asked = next((v for v in values if isinstance(v, Inert | _Global)), None)
    if asked is not None:
        raise ValueError(
            f"{where}: the file asks to run {'.'.join(asked)[:200]} among the weights, "
            f"which this reader does not do: only tensors in dictionaries are read. If "
            f"you trust the file, load it with torch and save its state dict alone: "
            f"torch.save(model.state_dict(), path)."
        )
    raise ValueError(
        f"{where} must be a dictionary of tensors, got {_kind(state)}. The file "
        f"has {keys}; name the one that holds the weights: root=..."
    )


def _kind(content: Any) -> str:
    if isinstance(content, View):
        return "a tensor"
    if isinstance(content, Inert | _Global):
        return "an object"
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    tensors = [isinstance(value, View) for value in content.values()]
    others = [
        _short(k) for k, is_view in zip(content, tensors, strict=True) if not is_view
    ]
    return (
        f"one that also holds {listed(others)}"
        if any(tensors)
        else (f"one of {listed(others)}" if others else "an empty one")
    )


def _short(key: Any) -> str:
    text = repr(key)
    return text if len(text) <= 60 else f"{text[:60]}..."


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
    if math.prod(view.shape) > storage.size:  # repeated by strides of 0
        raise ValueError(
            f"{path} is damaged or of another kind: {name} of shape "
            f"{view.shape} repeats the {storage.size} numbers of its storage."
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
            if not compressed and length != entry.file_size:
                _check_entry(path, entry)
            data = read_bytes(path, entry, start, length)
            if not compressed and length == entry.file_size:
                _compare(entry, zlib.crc32(data.data))
        except _DAMAGE as error:
            raise ValueError(_what_is_wrong(path, error)) from error
        if data.size != length:
            raise ValueError(
                f"{path} is truncated: {name} must have {length} bytes, found "
                f"{data.size}; fetch or write the file again."
            )
        return _placed(data.view(dtype), view)

    return read


@functools.lru_cache(256)  # a storage of many tensors is read whole once
def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    total = 0
    for start in range(0, entry.file_size, _CHUNK):
        length = min(_CHUNK, entry.file_size - start)
        total = zlib.crc32(_read_stored(path, entry, start, length).data, total)
    _compare(entry, total)


def _compare(entry: zipfile.ZipInfo, found: int) -> None:
    if entry.CRC not in (0, found):  # 0 where torch.save was told to compute none
        raise zipfile.BadZipFile(f"{entry.filename} has another checksum")


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


class Inert(NamedTuple):
    """Stands for an object that is neither made nor needed.

    Attributes:
        name: what the file would call to make it.
    """

    name: str


class _Global(NamedTuple):
    """A name that the file refers to."""

    module: str
    name: str


def _read_pickle(data: bytes) -> Any:
    """Dictionaries, lists, numbers, text and ``View``s of a pickle.

    The instructions are carried out here and not by ``pickle``: nothing is called, each
    takes a bounded time, and the memory is in proportion to the pickle.

    Raises:
        ValueError: if it is damaged, or has too many instructions.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # what lies below each mark
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    argument: Any
    for count, (code, argument, _) in enumerate(pickletools.genops(data)):
        if count > _MOST_INSTRUCTIONS:
            raise ValueError(f"it has more than {_MOST_INSTRUCTIONS} instructions")
        match code.name:
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                below.append(stack)
                stack = []
            case "POP":
                stack.pop()
            case "POP_MARK":
                above_mark()
            case "DUP":
                stack.append(stack[-1])
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(code.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                items = above_mark()
                stack.append(tuple(items))
            case "LIST" | "FROZENSET":
                items = above_mark()
                stack.append(items)
            case "DICT":
                items = above_mark()
                stack.append({})
                _set_items(stack[-1], items)
            case "APPEND":
                value = stack.pop()
                _appended(stack[-1], [value])
            case "APPENDS" | "ADDITEMS":
                items = above_mark()
                _appended(stack[-1], items)
            case "SETITEM":
                items = stack[-2:]
                del stack[-2:]
                _set_items(stack[-1], items)
            case "SETITEMS":
                items = above_mark()
                _set_items(stack[-1], items)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_Global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if not (isinstance(name, str) and isinstance(module, str)):
                    raise ValueError("a name that is no text")
                stack.append(_Global(module, name))
            case "PERSID":
                raise ValueError("a reference in words")
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_made(function, arguments, code.name == "NEWOBJ"))
            case "NEWOBJ_EX":
                _, arguments, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(_made(function, arguments, True))
            case "INST":
                above_mark()
                stack.append(Inert(argument.replace(" ", ".", 1)))
            case "OBJ":
                function, *arguments = above_mark()
                stack.append(_made(function, tuple(arguments), True))
            case "BUILD":
                stack.pop()  # attributes, of which nothing is needed
                if not isinstance(stack[-1], dict | Inert):
                    raise ValueError("it alters what is no object")
            case name if name in _VALUES:
                stack.append(argument)
            case name:
                raise ValueError(f"the instruction {name}")
    raise ValueError("no end")


_NO_ENTRY = (View, Inert, _Global)  # of the weights themselves

# Instructions that put their own argument on the stack.
_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING "
    "SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8".split()
)


def _appended(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Inert):
        raise ValueError("it appends to what is no list")


def _set_items(target: Any, items: list[Any]) -> None:
    if len(items) % 2 or not isinstance(target, dict | Inert):
        raise ValueError("it sets items of what is no dictionary")
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Others, such as a tuple that holds itself twice, may take forever to hash.
            if isinstance(key, _Scalar):
                target[key] = value


def _made(function: Any, arguments: Any, is_new: bool) -> Any:
    """What a call gives, if it is one of those that make tensors and dictionaries."""
    if isinstance(function, Inert):
        return function
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise ValueError("it calls what is no function")
    known = _KNOWN.get(function)
    if known is not None and not is_new:
        return known(*arguments)
    if known is not None or function in _STORAGE_TYPES:
        raise ValueError(f"it makes a {function.name}")
    return Inert(f"{function.module}.{function.name}")


def _mapping(items: Any = ()) -> dict[Any, Any]:
    """An ``OrderedDict``: dictionaries keep their order anyway."""
    made: dict[Any, Any] = {}
    for pair in items:
        _set_items(made, list(pair))
    return made


def _view(storage, offset, shape, strides, *details) -> View | Inert:
    """``torch._utils._rebuild_tensor(_v2)``."""
    metadata = details[2] if len(details) > 2 else None
    numbers = (offset, *shape, *strides)
    if isinstance(storage, Inert):
        return storage
    if (
        not isinstance(storage, Storage)
        or not isinstance(shape, tuple)
        or not isinstance(strides, tuple)
        or len(shape) != len(strides)
        or not all(type(n) is int and 0 <= n < 2**63 for n in numbers)
    ):
        raise ValueError("a tensor without a storage, or with an impossible shape")
    if metadata:
        raise ValueError(
            "a tensor has pending operations; apply them (resolve_conj, resolve_neg) "
            "before saving"
        )
    return View(storage, offset, shape, strides)


def _first(data, *details) -> Any:
    """``torch._utils._rebuild_parameter`` and ``..._with_state``."""
    return data


def _of_subclass(function, kind, arguments, state) -> Any:
    """``torch._tensor._rebuild_from_type_v2``, of tensors with attributes."""
    return _made(function, arguments, False)


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _mapping,
    ("torch._utils", "_rebuild_tensor"): _view,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_subclass,
}
_STORAGE_TYPES = {("torch", name): dtype for name, (dtype, _) in _STORAGES.items()}


def _storage(reference: Any) -> Any:
    """The storage that a reference out of the pickle stands for."""
    if not (isinstance(reference, tuple) and len(reference) == 5):
        raise ValueError("a reference to nothing")
    kind, storage, key, _, size = reference
    if kind != "storage" or not isinstance(storage, _Global):
        raise ValueError("a reference to what is no storage")
    if not isinstance(key, str) or type(size) is not int or not 0 <= size < 2**63:
        raise ValueError("a storage of an impossible size")
    dtype = _STORAGE_TYPES.get(storage)
    if dtype is None:  # refused only where it holds weights
        return Inert(f"{storage.module}.{storage.name}")
    return Storage(key, dtype, size)
