"""Arrays in .npz files, each read on its own, and mapped where that is possible.

An .npz is a zip of .npy files. Those of ``numpy.savez`` are stored as they are, so that
an array of any size can be mapped into memory and read in slices; those of
``numpy.savez_compressed`` have to be read whole.
"""

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
_LOCAL_HEADER = struct.Struct("<26x2H")  # lengths of the name and of the extra field
_ENCRYPTED = 1


class Header(NamedTuple):
    """What an array is, before it is read."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def headers(path: Path) -> dict[str, Header]:
    """Shape, order and type of each array in an .npz file, by name.

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
    """One array, in memory.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, has no such array, or one of Python objects.
    """
    with _opened(path) as file, file.open(f"{name}.npy") as stream:
        return npy.read_array(stream, allow_pickle=False)


def map_array(path: Path, name: str) -> np.ndarray:
    """One array, read from the file where it is used; in memory if it is compressed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, has no such array, or one of Python objects.
    """
    with _opened(path) as file:
        info = file.getinfo(f"{name}.npy")
        stored = info.compress_type == zipfile.ZIP_STORED
        encrypted = info.flag_bits & _ENCRYPTED
        mapped = _mapped(path, info) if stored and not encrypted else None
    return read_array(path, name) if mapped is None else mapped


def _mapped(path: Path, info: zipfile.ZipInfo) -> np.ndarray | None:
    with path.open("rb") as stream:
        stream.seek(info.header_offset)
        # The lengths here may differ from those of the zip's directory.
        lengths = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
        stream.seek(sum(lengths), 1)
        header = _header(stream)
        if header.dtype.hasobject or 0 in header.shape:  # neither can be mapped
            return None
        return np.memmap(
            path,
            header.dtype,
            "r",
            stream.tell(),
            header.shape,
            "F" if header.fortran_order else "C",
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
    """The file; whatever is wrong with it is one kind of error."""
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
