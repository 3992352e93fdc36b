"""Arrays and their description in one safetensors file, written atomically.

The format holds tensors and text only: loading runs no code of the file. It has no
checksums of its own, so the header also holds one of each array and one of its text.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from gmm_guidance._runtime.checks import as_path
from gmm_guidance._runtime.files import atomic
from gmm_guidance._runtime.schema import Object, damaged, parse_json

CHECKSUMS = "checksums"  # of the header: CRC-32 by name, that of its text under ""


class ForeignFileError(ValueError):
    """A safetensors file that was not written here."""


def save_tree(path: str | os.PathLike, tree: Any, description: dict[str, Any]) -> Path:
    """Write a pytree of arrays with a JSON description; complete or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    arrays = {
        name: np.asarray(leaf, order="C") for name, leaf in named_leaves(tree).items()
    }
    metadata = {"description": json.dumps(description, sort_keys=True)}
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        write_tensors(arrays, temporary, metadata)
    return path


def write_tensors(
    arrays: dict[str, np.ndarray], path: Path, metadata: dict[str, str]
) -> None:
    """Write a safetensors file with checksums in its header.

    Raises:
        OSError: if it cannot be written; safetensors has an error of its own for that.
    """
    sums = {name: _crc(array) for name, array in arrays.items()}
    sums[""] = _crc_of_text(metadata)
    text = json.dumps(sums, sort_keys=True)
    try:
        safetensors.numpy.save_file(arrays, path, {**metadata, CHECKSUMS: text})
        _sort_metadata(path)
    except safetensors.SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(
            number,
            f"{path.parent} must have room and be writable ({os.strerror(number)}); "
            f"free some space, or name another place",
        ) from error


def _sort_metadata(path: Path) -> None:
    """Put the metadata in order: safetensors leaves it to chance, file by file."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # equal but for the padding
            file.seek(8)
            file.write(text.ljust(size))


def read_checksums(metadata: Mapping[str, str], path: Path) -> dict[str, int]:
    """The checksum of each array by the header of a file; empty for others' files.

    Raises:
        ValueError: if the text of the header has another checksum.
    """
    if CHECKSUMS not in metadata:
        return {}
    sums = parse_json(metadata[CHECKSUMS], dict[str, int], path)
    text = {name: value for name, value in metadata.items() if name != CHECKSUMS}
    if sums.pop("", None) != _crc_of_text(text):
        raise damaged(path, "its description has another checksum")
    return sums


def check_array(
    name: str, array: np.ndarray, sums: Mapping[str, int], path: Path
) -> np.ndarray:
    """The array, if its checksum is that of the header.

    Raises:
        ValueError: if it is another; fetch or write the file again.
    """
    if sums and sums.get(name) != _crc(array):
        raise damaged(path, f"{name} has another checksum; write the file again")
    return array


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _crc_of_text(metadata: Mapping[str, str]) -> int:
    return zlib.crc32(json.dumps(dict(metadata), sort_keys=True).encode())


def load_description(path: str | os.PathLike) -> dict[str, Any]:
    """The description in a file's header, without reading its arrays.

    Raises:
        FileNotFoundError: if there is no such file.
        ForeignFileError: if it is none of ours.
        ValueError: if the file is truncated or damaged.
    """
    return _read_header(as_path(path))[0]


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The description and the checksum of each array."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({error}); delete it and "
            f"write it again."
        ) from error
    sums = read_checksums(metadata, path)
    if "description" not in metadata or CHECKSUMS not in metadata:
        raise ForeignFileError(
            f"{path} was not written by gmm_guidance: its header has no description "
            f"with checksums."
        )
    return parse_json(metadata["description"], Object, path), sums


def load_tree(path: str | os.PathLike, like: Any) -> Any:
    """Read arrays into the structure of ``like`` (arrays or shape descriptions).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated or damaged, or its arrays are not those of
            ``like``: the message lists what is missing, unexpected or of another type
            or shape.
    """
    path = as_path(path)
    _, sums = _read_header(path)
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); write it again.") from error
    for name, array in arrays.items():
        check_array(name, array, sums, path)
    expected = named_leaves(like)
    problems = [f"missing {name}" for name in expected if name not in arrays]
    problems += [f"unexpected {name}" for name in arrays if name not in expected]
    problems += [
        f"{name} is {_kind(arrays[name])}, expected {_kind(leaf)}"
        for name, leaf in expected.items()
        if name in arrays and _kind(arrays[name]) != _kind(leaf)
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit: {'; '.join(problems[:5])}"
            + (f"; and {len(problems) - 5} more." if len(problems) > 5 else ".")
        )
    leaves = [jax.numpy.asarray(arrays[name]) for name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by the path that leads to them, in the tree's own order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }


def differences(
    expected: dict[str, Any], found: dict[str, Any], prefix: str = ""
) -> list[str]:
    """Entries in which two descriptions differ, in words."""
    missing = object()
    result = []
    for name in sorted(expected.keys() | found.keys()):
        wanted, actual = expected.get(name, missing), found.get(name, missing)
        if isinstance(wanted, dict) and isinstance(actual, dict):
            result += differences(wanted, actual, f"{prefix}{name}.")
        elif wanted != actual:
            result.append(
                f"{prefix}{name} is {found.get(name)!r}, expected "
                f"{expected.get(name)!r}"
            )
    return result


def _kind(array: Any) -> str:
    return f"{array.dtype} {array.shape}"
