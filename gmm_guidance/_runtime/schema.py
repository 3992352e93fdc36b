"""Reading JSON and TOML that others may have written: bounded, and checked by a schema.

A schema is a type, such as a ``msgspec.Struct`` whose fields have ranges. Whatever is
wrong with a file is one kind of error: "FILE is damaged or of another kind: WHAT".
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

T = TypeVar("T")

#: Whole numbers of files, which become sizes of arrays and loops.
Count = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
Index = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Object = dict[str, Any]

_SEAL = "sha256"  # of the other fields
_MOST_BYTES = 64 << 20  # of a text; the largest of ours, the manifests, have a few
_MOST_SHOWN = 200
_LFS = re.compile(rb"version https://git-lfs[^\n]*\n(?:.*\n)*?size (\d+)")
_HTML = re.compile(rb"\s*<(!doctype html|html|head|\?xml)", re.IGNORECASE)


def read_json(path: str | os.PathLike, schema: type[T]) -> T:
    """Read a JSON file of the type ``schema``.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        ValueError: if it is larger than 64 MB, no JSON, or does not fit the schema.
    """
    return parse_json(read_text(path), schema, path)


def parse_json(text: str, schema: type[T], origin: object) -> T:
    """Parse JSON of the type ``schema``; raises ``ValueError`` as ``read_json``."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(origin, f"no JSON ({brief(error)})") from error
    return checked(found, schema, origin)


def sealed(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a JSON file with a checksum of all of them."""
    return {**fields, _SEAL: _digest(fields)}


def unsealed(found: Any, origin: object) -> dict[str, Any]:
    """The fields of ``sealed``, as they were written.

    Raises:
        ValueError: if the checksum is another, or missing.
    """
    if not isinstance(found, dict) or _SEAL not in found:
        raise damaged(origin, "it has no checksum")
    fields = {name: value for name, value in found.items() if name != _SEAL}
    if found[_SEAL] != _digest(fields):
        raise damaged(origin, "its content has another checksum")
    return fields


def _digest(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_toml(path: str | os.PathLike, schema: type[T]) -> T:
    """Read a TOML file of the type ``schema``; raises as ``read_json``."""
    try:
        found = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it must be TOML ({brief(error)})") from error
    return checked(found, schema, path)


def checked(value: Any, schema: type[T], origin: object) -> T:
    """A parsed value as the type ``schema``.

    Raises:
        ValueError: naming the first field that does not fit.
    """
    try:
        return msgspec.convert(value, schema)
    except (
        msgspec.ValidationError,
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise damaged(origin, brief(error)) from error


def read_text(path: str | os.PathLike) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        ValueError: if it is larger than 64 MB, or not text.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise damaged(path, "not a file")
    if path.stat().st_size > _MOST_BYTES:
        raise damaged(path, f"larger than {_MOST_BYTES >> 20} MB")
    data = path.read_bytes()
    if (kind := other_kind(data)) is not None:
        raise damaged(path, kind)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise damaged(path, f"no text in UTF-8 ({error})") from error


def other_kind(start: bytes) -> str | None:
    """What a file is that was saved in place of another, by its first bytes.

    Returns:
        A Git LFS pointer or a web page in words; ``None`` for anything else.
    """
    if (pointer := _LFS.match(start)) is not None:
        size = int(pointer[1][:18]) / 1e9
        return (
            f"a pointer of Git LFS in place of the file itself ({size:.2g} GB); run "
            f"git lfs pull"
        )
    if _HTML.match(start) is not None:
        return (
            "a web page in place of the file itself; download it again by its direct "
            "address, signed in where that is needed"
        )
    return None


def damaged(origin: object, what: str) -> ValueError:
    """The error for a file that cannot be what it is taken for."""
    return ValueError(f"{origin} is damaged or of another kind: {what}.")


def brief(error: BaseException) -> str:
    """An error in one short line; its text may quote the file."""
    text = f"{error or type(error).__name__}".rstrip(".")
    return f"{text[:_MOST_SHOWN]}..." if len(text) > _MOST_SHOWN else text
