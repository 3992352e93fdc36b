"""An output directory that is complete or not there, and of one run only."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from gmm_guidance._runtime.files import atomic_folder, jsonable
from gmm_guidance._runtime.tensor_files import differences

RECORD = "run.json"


class RunFolder:
    """Files of a run, gathered under a temporary name and renamed when all is there.

    A context: what is written to ``self.path`` inside of it appears in ``out`` when it
    ends well, and vanishes when it does not. Made before anything is computed, so that
    a directory that cannot be written is an error at once.

    Args:
        out: the directory; absent, or empty.
        description: what the run is; stored in ``run.json`` under "run".

    Raises:
        FileExistsError: if ``out`` holds another run, whose differences are named, the
            same run (which is complete, then), or foreign files.
        OSError: if it cannot be written.
    """

    def __init__(self, out: Path, description: dict[str, Any]):
        self.out = Path(out)
        self.description = json.loads(json.dumps(jsonable(description), default=str))
        _check_vacant(self.out, self.description)
        self._folder = atomic_folder(self.out)
        try:
            self.path = self._folder.begin()
        except OSError as error:
            raise OSError(
                f"the output directory {out} must be writable ({error.strerror}); "
                f"choose another with --out."
            ) from error

    def __enter__(self) -> RunFolder:
        return self

    def finish(self, results: dict[str, Any]) -> list[Path]:
        """Write the record and put everything in place; returns the files."""
        record = {"run": self.description, **jsonable(results)}
        (self.path / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        files = sorted(p.relative_to(self.path) for p in self.path.rglob("*"))
        self._folder.keep()
        return [self.out / file for file in files if (self.out / file).is_file()]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.discard()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"the disk of {self.out} is full; nothing was left there. Free some "
                f"space, or choose another directory with --out",
            ) from error


def _check_vacant(out: Path, description: dict[str, Any]) -> None:
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose another directory with --out.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        found = json.loads((out / RECORD).read_text())["run"]
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(
            f"{out} holds files that are no run of full-models; choose another "
            f"directory with --out."
        ) from None
    differing = differences(description, found)
    if differing:
        raise FileExistsError(
            f"{out} holds the samples of another run: {'; '.join(differing[:6])}. "
            f"Choose another directory with --out, or delete this one."
        )
    raise FileExistsError(
        f"{out} holds this very run, complete; delete it to run it again."
    )
