"""One run in a directory at a time."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
from pathlib import Path
from typing import IO, Any


class DirectoryLock:
    """A context that holds a directory for this process.

    The kernel ends the hold with the process, however that ends: no stale lock is left
    behind, and no clock decides. (Where the system has no ``flock``, as on Windows,
    nothing is held.)

    Args:
        directory: which there is.
        name: of the file in it by which it is held.

    Raises:
        BlockingIOError: on entry, if another process holds it, naming that.
        OSError: if the directory cannot be written.
    """

    def __init__(self, directory: Path, name: str = ".lock"):
        self.directory = directory
        self.path = directory / name
        self._file: IO[str] | None = None

    def __enter__(self) -> DirectoryLock:
        file = self._held_file()
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file
        return self

    def __exit__(self, *details: Any) -> None:
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()

    def _held_file(self) -> IO[str]:
        while True:
            file = self.path.open("a+")
            try:
                with contextlib.suppress(ImportError):
                    fcntl = importlib.import_module("fcntl")
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                file.close()
                raise BlockingIOError(
                    f"{self.directory} is in use by another process ({holder}); wait "
                    f"for it, or choose another directory."
                ) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    return file
            file.close()  # its holder removed it between opening and holding it
