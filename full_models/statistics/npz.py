"""Arrays of .npz files, each looked at or read alone; damage is one kind of error."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

_DAMAGE = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
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
        for name in file.namelist():
            if name.endswith(".npy"):
                with file.open(name) as stream:
                    found[name.removesuffix(".npy")] = _header(stream)
        return found


def read_array(path: Path, name: str) -> np.ndarray:
    """One array. Raises as ``headers``; also if it is absent or of Python objects."""
    with _opened(path) as file, file.open(f"{name}.npy") as stream:
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
    except _DAMAGE as error:
        raise ValueError(
            f"{path} is damaged or no .npz file ({error}); write it again with "
            f"numpy.savez."
        ) from error
