"""One run in a directory at a time."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import IO, Any

_NAME = ".lock"


class DirectoryLock:
    """A context that holds a directory for this process.

    The kernel ends the hold with the process, however that ends: no stale lock is left
    behind, and no clock decides.

    Raises:
        BlockingIOError: on entry, if another process holds it, naming that.
        OSError: if the directory cannot be written.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._file: IO[str] | None = None

    def __enter__(self) -> DirectoryLock:
        path = self.directory / _NAME
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise BlockingIOError(
                f"{self.directory} is in use by another process ({holder}); wait for "
                f"it, or choose another directory with --out."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file
        return self

    def __exit__(self, *details: Any) -> None:
        if self._file is not None:
            self._file.close()
