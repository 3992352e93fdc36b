"""``RunFolder``: an output directory that is complete or absent, of one run."""

from __future__ import annotations

import contextlib
import errno
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

import gmm_guidance as gg
from gmm_guidance._runtime.files import atomic_folder, jsonable
from gmm_guidance._runtime.tensor_files import differences

RECORD = "run.json"


class RunFolder:
    """A context for the files of a run.

    What is written to ``path`` appears in ``out`` when the context ends well, and
    vanishes when it does not. Entered before anything is computed, so that a directory
    that cannot be written is an error at once.

    Args:
        out: the directory; absent or empty.
        description: what the run depends on; stored in ``run.json`` under "run".

    Raises:
        FileExistsError: on entry, if ``out`` holds another run, whose differences are
            named, the same run, or foreign files.
        OSError: on entry, if it cannot be written.
    """

    path: Path

    def __init__(self, out: Path, description: dict[str, Any]):
        self.out = Path(out)
        self.description = json.loads(json.dumps(jsonable(description), default=str))
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> RunFolder:
        _check_vacant(self.out, self.description)
        try:
            self.path = self._stack.enter_context(atomic_folder(self.out))
        except OSError as error:
            raise OSError(
                f"the output directory {self.out} must be writable ({error.strerror}); "
                f"choose another with --out."
            ) from error
        return self

    def record(self, results: dict[str, Any]) -> None:
        """Write the description and the results to ``run.json``."""
        record = {"run": self.description, **jsonable(results)}
        (self.path / RECORD).write_text(json.dumps(record, indent=1) + "\n")

    def files(self) -> list[Path]:
        """The files of the directory."""
        return sorted(path for path in self.out.rglob("*") if path.is_file())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"the disk of {self.out} is full; nothing was left there. Free some "
                f"space, or choose another directory with --out",
            ) from error


def machine() -> dict[str, Any]:
    """Device and versions, on which the last bits of results depend."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "gmm_guidance": gg.__version__,
    }


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
    raise FileExistsError(f"{out} already holds this run; delete it to run it again.")
