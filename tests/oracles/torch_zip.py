"""Files as torch.save writes them, put together by hand: also those it never writes."""

from __future__ import annotations

import dataclasses
import struct
import zipfile
from typing import Any

import numpy as np

STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@dataclasses.dataclass(frozen=True)
class Global:
    """A module's function or class, by name."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    """``function(*args)``, then ``__setstate__(state)``."""

    function: Any
    args: tuple
    state: Any = None


@dataclasses.dataclass(frozen=True)
class New:
    """``cls.__new__(cls)``, then ``__setstate__(state)``."""

    cls: Any
    state: Any


@dataclasses.dataclass(frozen=True)
class Saved:
    """A tensor placed in a storage."""

    key: str
    dtype: str
    size: Any
    offset: Any
    shape: tuple
    strides: tuple
    rebuild: str = "_rebuild_tensor_v2"
    extra: tuple = ()


@dataclasses.dataclass(frozen=True)
class Persistent:
    """A reference out of the pickle."""

    content: Any


def namespace(**fields: Any) -> New:
    """An ``argparse.Namespace``."""
    return New(Global("argparse", "Namespace"), fields)


def write(path, content, storages=None, *, byteorder=b"little", compress=False):
    """Write content (arrays get storages of their own) and further storages by key."""
    storages = dict(storages or {})
    pickled = b"\x80\x02" + _emit(content, storages) + b"."
    return write_raw(path, pickled, storages, byteorder, compress)


def write_raw(path, pickled, storages=None, byteorder=b"little", compress=False):
    """Write a finished pickle and storages."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("archive/data.pkl", pickled)
        if byteorder is not None:
            file.writestr("archive/byteorder", byteorder)
        for key, data in (storages or {}).items():
            file.writestr(f"archive/data/{key}", data)
        file.writestr("archive/version", b"3\n")
    return path


def _emit(value: Any, storages: dict[str, bytes]) -> bytes:
    def emit(inner):
        return _emit(inner, storages)

    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            data = value.encode()
            return b"X" + struct.pack("<I", len(data)) + data
        case tuple():
            return b"(" + b"".join(map(emit, value)) + b"t"
        case list():
            return b"](" + b"".join(map(emit, value)) + b"e"
        case dict():
            items = b"".join(emit(k) + emit(v) for k, v in value.items())
            return b"}(" + items + b"u"
        case Global():
            return b"c" + f"{value.module}\n{value.name}\n".encode()
        case Call():
            made = emit(value.function) + emit(value.args) + b"R"
            return made if value.state is None else made + emit(value.state) + b"b"
        case New():
            return emit(value.cls) + b")\x81" + emit(value.state) + b"b"
        case Persistent():
            return emit(value.content) + b"Q"
        case Saved():
            kind = Global("torch", STORAGES.get(value.dtype, value.dtype))
            storage = Persistent(("storage", kind, value.key, "cpu", value.size))
            args = (storage, value.offset, value.shape, value.strides, *value.extra)
            return emit(Call(Global("torch._utils", value.rebuild), args))
        case np.ndarray():
            key = str(len(storages))
            storages[key] = value.tobytes()
            strides = tuple(s // value.itemsize for s in np.empty_like(value).strides)
            hooks = Call(Global("collections", "OrderedDict"), ())
            return emit(
                Saved(
                    key,
                    value.dtype.name,
                    value.size,
                    0,
                    value.shape,
                    strides,
                    extra=(False, hooks),
                )
            )
    raise TypeError(type(value))
