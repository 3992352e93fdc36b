"""The results folder: cells that survive an interruption, and whole outputs.

A cell is one piece of work (a training run, the samples of one rule), stored under the
hash of its complete description. A run that was interrupted finds its finished cells
and goes on; experiments that need the same cell share it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure

import gmm_guidance
from gmm_guidance._runtime.files import atomic, jsonable
from gmm_guidance._runtime.reporter import Reporter

Arrays = dict[str, np.ndarray]


class Workspace:
    """A results folder and the progress shown while it fills.

    Args:
        root: the folder; made if it does not exist.
        reporter: where progress goes.
        fresh: compute every cell anew, ignoring what is stored.
        mesh: devices that divide training runs and samples; cells do not depend on it
            beyond rounding.

    Raises:
        OSError: if the folder cannot be made or written to.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        reporter: Reporter,
        fresh: bool = False,
        mesh: Mesh | None = None,
    ):
        self.root = Path(root)
        self.reporter = reporter
        self.fresh = fresh
        self.mesh = mesh
        self._made: set[Path] = set()
        self.cells = self.root / "cells"
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            handle, probe = tempfile.mkstemp(dir=self.cells)
            os.close(handle)
            os.unlink(probe)
        except OSError as error:
            raise OSError(
                f"the output directory {self.root} must be writable "
                f"({error.strerror}); choose another with --out."
            ) from error

    def cell_path(self, kind: str, description: dict[str, Any], suffix: str) -> Path:
        """Where the cell of this description is stored."""
        full = {"kind": kind, "versions": versions(), **description}
        text = json.dumps(full, sort_keys=True, default=repr)
        digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        return self.cells / f"{kind}-{digest}{suffix}"

    def is_stored(self, path: Path) -> bool:
        """Whether a cell can be taken from its file."""
        return path.exists() and (not self.fresh or path in self._made)

    def mark_made(self, path: Path) -> None:
        """Note that a cell was made in this run, which ``fresh`` need not repeat."""
        self._made.add(path)

    def cell(
        self, kind: str, description: dict[str, Any], compute: Callable[[], Arrays]
    ) -> Arrays:
        """The arrays of a cell: read if stored, else computed and stored."""
        path = self.cell_path(kind, description, ".npz")
        if self.is_stored(path):
            try:
                with np.load(path) as file:
                    return dict(file)
            except (OSError, ValueError, EOFError, KeyError):
                path.unlink()  # damaged: compute it again
        arrays = {k: np.asarray(v) for k, v in compute().items()}
        with atomic(path) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays)
        self._made.add(path)
        return arrays

    def folder(self, experiment: str) -> Path:
        """The folder of an experiment's results."""
        path = self.root / experiment
        path.mkdir(parents=True, exist_ok=True)
        return path


def write_results(
    folder: Path, metrics: dict[str, Any], data: Arrays, figures: dict[str, Figure]
) -> list[Path]:
    """Write numbers, plotted data, then figures (PNG and PDF); returns their paths."""
    paths = [folder / "metrics.json", folder / "data.npz"]
    with atomic(paths[0]) as temporary:
        temporary.write_text(json.dumps(jsonable(metrics), indent=1) + "\n")
    with atomic(paths[1]) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **data)
    for name, figure in figures.items():
        for suffix in (".png", ".pdf"):
            path = folder / f"{name}{suffix}"
            # No date inside: the same numbers give the same file.
            metadata = {"CreationDate": None} if suffix == ".pdf" else None
            with atomic(path) as temporary:
                figure.savefig(temporary, metadata=metadata)
            paths.append(path)
    return paths


def versions() -> dict[str, str]:
    """Versions that results depend on."""
    return {"gmm_guidance": gmm_guidance.__version__, "jax": jax.__version__}
