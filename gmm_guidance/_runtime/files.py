"""Atomic writes, folder locks and JSON conversion."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np

_CHUNK = 1 << 22


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which replaces ``path`` unless an error is raised."""
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=".partial-", suffix=path.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, default_mode())
        to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder, which becomes ``path`` unless an error is raised.

    Args:
        path: absent, or an empty folder; missing parents are created.

    Raises:
        OSError: if it cannot be written, or if another process has filled ``path`` in
            the meantime; the temporary folder is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".partial-"))
    try:
        yield temporary
        # Temporary folders start out private; a folder's files must also be reachable.
        mode = default_mode()
        temporary.chmod(mode | (mode & 0o444) >> 2)
        if path.is_dir():
            path.rmdir()  # fails unless it is empty
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked_folder(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Hold a folder for this process by a lock file inside it.

    The kernel releases the lock when the process ends, so no stale lock remains.

    Args:
        folder: an existing folder.
        name: name of the lock file.

    Raises:
        BlockingIOError: if another process holds the folder; the message names it.
        OSError: if the folder cannot be written.
    """
    path = folder / name
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        holder = path.read_text().strip() if path.exists() else ""
        raise BlockingIOError(
            f"{folder} is in use by another process ({holder or 'unknown'}); wait for "
            f"it, or choose another directory."
        ) from None
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: nobody can hold it then
        lock.release()


def to_disk(path: Path) -> None:
    """Flush a file to the disk: a rename must not survive a power cut without it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text file atomically; missing parents are created."""
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
    """Permissions of a new file; those of temporary files are private."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def jsonable(value: Any) -> Any:
    """Convert arrays, NumPy scalars and containers to JSON types; NaN becomes null."""
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
