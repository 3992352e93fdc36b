"""Atomic writes, folder locks and JSON conversion."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np

from gmm_guidance._runtime.checks import as_path

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
        OSError: if the folder cannot be written, or the lock file leads to a file
            elsewhere, which is left alone.
    """
    path = folder / name
    if os.path.lexists(path):
        _check_lock_file(path, path.lstat())
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BlockingIOError(
            f"{folder} is in use by another process ({_holder(path)}); wait for it, or "
            f"choose another directory."
        ) from None
    try:
        # What may have taken the place of the file meanwhile is not written to. (On
        # Windows a locked file cannot be written at all: there it names nobody.)
        with (
            contextlib.suppress(PermissionError),
            open(path, "r+", opener=_without_links) as file,
        ):
            _check_lock_file(path, os.fstat(file.fileno()))
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield
    finally:
        # While it is held nobody else can hold it; Windows does not remove it then.
        with contextlib.suppress(PermissionError):
            path.unlink(missing_ok=True)
        lock.release()


def _check_lock_file(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise OSError(
            f"the lock file {path} must be a regular file, but is a link or something "
            f"else, which is never written to; delete it."
        )


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))


def _holder(path: Path) -> str:
    """Who holds a lock, as its file says."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        with open(path, opener=_without_links) as file:
            text = file.read(100)
        return "".join(filter(str.isprintable, text)) or "unknown"
    return "unknown"


def to_disk(path: Path) -> None:
    """Flush a file to the disk: a rename must not survive a power cut without it."""
    # Windows flushes only what may be written.
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a UTF-8 file atomically; missing parents are created."""
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
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
