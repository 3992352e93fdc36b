"""Arrays of .npz files, each looked at or read alone; damage is one kind of error."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from gmm_guidance._runtime.schema import brief

# No entry compressed by deflate is larger than this times its compressed size.
_MOST_COMPRESSION = 1032
# How NumPy and zipfile fail on damaged files.
DAMAGE = (
    ValueError,
    SyntaxError,  # of a header, by NumPy
    tokenize.TokenError,
    OSError,
    EOFError,
    KeyError,
    TypeError,
    OverflowError,
    RecursionError,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,  # an encrypted file
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class Header(NamedTuple):
    """Shape, order and type of an array."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def headers(path: Path) -> dict[str, Header]:
    """The header of each array in an .npz file, by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or something else.
    """
    with _opened(path) as file:
        found = {}
        for info in file.infolist():
            with file.open(info) as stream:  # compares the name stored twice
                if info.filename.endswith(".npy"):
                    header = _header(stream)
                    _check_size(info, header, stream.tell(), path.stat().st_size)
                    found[info.filename.removesuffix(".npy")] = header
        return found


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays, by name. Raises as ``read_array``."""
    return {name: read_array(path, name) for name in headers(path)}


def read_array(path: Path, name: str) -> np.ndarray:
    """One array. Raises as ``headers``; also if it is absent or of Python objects."""
    with _opened(path) as file, file.open(f"{name}.npy") as stream:
        header = _header(stream)
        info = file.getinfo(f"{name}.npy")
        _check_size(info, header, stream.tell(), path.stat().st_size)
        stream.seek(0)
        return npy.read_array(stream, allow_pickle=False)


def read_batches(path: Path, name: str, size: int) -> Iterator[np.ndarray]:
    """One array in slices of its first axis, of which memory holds one.

    Raises as ``read_array``.
    """
    with _opened(path) as file, file.open(f"{name}.npy") as stream:
        shape, fortran_order, dtype = _header(stream)
        if fortran_order or dtype.hasobject:
            whole = read_array(path, name)
            yield from (whole[i : i + size] for i in range(0, len(whole), size))
            return
        for start in range(0, shape[0], size):
            part = (min(size, shape[0] - start), *shape[1:])
            data = stream.read(int(np.prod(part)) * dtype.itemsize)
            yield np.frombuffer(data, dtype).reshape(part)


def _check_size(
    info: zipfile.ZipInfo, header: Header, start: int, file_size: int
) -> None:
    """Refuse an array that is not as large as its entry, or an entry than its file."""
    if header.dtype.hasobject:
        return  # refused where it is read
    size = math.prod(header.shape) * header.dtype.itemsize
    most = file_size * (_MOST_COMPRESSION if info.compress_type else 1)
    if start + size != info.file_size or info.file_size > most:
        raise ValueError(
            f"{info.filename} of shape {header.shape} has {info.file_size - start} "
            f"bytes of {size}"
        )


def _header(stream: IO[bytes]) -> Header:
    version = npy.read_magic(stream)
    if version == (1, 0):
        return Header(*npy.read_array_header_1_0(stream))
    if version == (2, 0):
        return Header(*npy.read_array_header_2_0(stream))
    raise ValueError(f"arrays of the .npy version {version} are not supported")


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}.")
    try:
        with zipfile.ZipFile(path) as file:
            yield file
    except DAMAGE as error:
        raise ValueError(
            f"{path} is damaged or no .npz file ({brief(error)}); write it again with "
            f"numpy.savez."
        ) from error
