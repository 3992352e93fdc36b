"""Files that are whole or not there, and numbers as JSON has them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

_CHUNK = 1 << 22


class atomic:
    """A context that yields a temporary path and renames it if all went well."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(
            dir=self.path.parent, prefix=".partial-", suffix=self.path.suffix
        )
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: Any, *details: Any) -> None:
        if kind is None:
            os.chmod(self.temporary, default_mode())
            to_disk(self.temporary)
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Not only to the cache: a rename must not survive a power cut without its file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class atomic_folder:
    """A context that yields a temporary folder and renames it if all went well.

    The place must be vacant: absent, or an empty folder. Where a context does not fit,
    ``begin`` is followed by ``keep`` or ``discard``.

    Args:
        path: the place; folders above it are made.

    Raises:
        OSError: if it cannot be written, or, at the end, is not vacant any more; then
            nothing is left.
    """

    def __init__(self, path: Path):
        self.path = path

    def begin(self) -> Path:
        """Make the temporary folder, beside the place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(dir=self.path.parent, prefix=".partial-")
        self.temporary = Path(name)
        return self.temporary

    def keep(self) -> None:
        """Put the folder in its place."""
        # Temporary folders start out private; a folder's files must also be reachable.
        mode = default_mode()
        try:
            self.temporary.chmod(mode | (mode & 0o444) >> 2)
            if self.path.is_dir():
                self.path.rmdir()  # it is empty; if not any more, this fails
            os.replace(self.temporary, self.path)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove the temporary folder, if it was not kept."""
        shutil.rmtree(self.temporary, ignore_errors=True)

    def __enter__(self) -> Path:
        return self.begin()

    def __exit__(self, kind: Any, *details: Any) -> None:
        if kind is None:
            self.keep()
        else:
            self.discard()


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text file; complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(text)
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file; of a folder, of the names and contents of all files in it.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}.")
    digest = hashlib.sha256()
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    for file in [path] if path.is_file() else inside:
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def default_mode() -> int:
    """Permissions of a new file: temporary files start out private."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def jsonable(value: Any) -> Any:
    """Numbers of any kind as JSON has them; NaN becomes null."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, (np.ndarray, jax.Array)):
        return jsonable(np.asarray(value).tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
