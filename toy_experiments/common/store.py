"""The store of results: pieces of work that survive an interruption, and whole outputs.

A cell is the result of one function of given arguments (a training run, the samples of
one rule), stored under the hash of the function, its code and its arguments (see
``identity``). An interrupted run finds its finished cells and resumes; experiments that
need the same cell share it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure

import gmm_guidance
from gmm_guidance._runtime.files import atomic, jsonable
from gmm_guidance._runtime.interruption import Interruption
from gmm_guidance._runtime.progress import Reporter
from toy_experiments.common.identity import digest_of
from toy_experiments.common.records import Metrics

Arrays = dict[str, np.ndarray]
Item = TypeVar("Item", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Context:
    """What a computation may use although its result does not depend on it.

    Attributes:
        reporter: where progress goes.
        mesh: devices that divide training runs and samples (results depend on it by
            rounding only), or ``None``.
        checkpoint: where a long computation may keep its state; removed once it is
            complete.
    """

    reporter: Reporter
    mesh: Mesh | None
    checkpoint: Path


@dataclasses.dataclass(frozen=True)
class Format:
    """How the result of a computation is stored as a file.

    Attributes:
        suffix: suffix of the file's name.
        save: writes a result to a path.
        load: reads it; any exception says that the file is damaged.
    """

    suffix: str
    save: Callable[[Path, Any], Any]
    load: Callable[[Path], Any]


def _save_arrays(path: Path, arrays: Arrays) -> None:
    np.savez(path, allow_pickle=False, **arrays)


def _load_arrays(path: Path) -> Arrays:
    # Opened here: NumPy leaves a file that is no archive open.
    with path.open("rb") as opened, np.load(opened) as file:
        return dict(file)


ARRAYS = Format(".npz", _save_arrays, _load_arrays)


class Store:
    """A results folder and the progress shown while it fills.

    Args:
        root: the folder; made if it does not exist.
        reporter: where progress goes.
        fresh: compute every cell again, ignoring those stored by earlier runs.
        mesh: devices that divide training runs and samples.

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
        self._computed: set[Path] = set()
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

    def cell(
        self, function: Callable[..., Any], *arguments: Any, format: Format = ARRAYS
    ) -> Any:
        """The result of ``function(context, *arguments)``: loaded, or computed.

        A damaged file is reported and computed again.

        Args:
            function: a function of a module. Its result must depend on nothing but its
                arguments; a ``Context`` comes before them.
            arguments: plain values, arrays, dataclasses, pytrees.
            format: how the result is stored; a dictionary of arrays by default.

        Raises:
            TypeError: for an argument that cannot be identified.
        """
        name = function.__name__.strip("_")
        digest = digest_of(function, arguments)
        path = self.cells / f"{name}-{digest}{format.suffix}"
        is_old = path not in self._computed
        if path.exists() and not (self.fresh and is_old):
            try:
                return format.load(path)
            except Exception as error:  # whatever a damaged file makes of its reader
                self.reporter.say(
                    f"{path} is damaged ({type(error).__name__}: {error}); computing "
                    f"it again."
                )
        checkpoint = path.with_suffix(".checkpoint")
        if self.fresh and is_old:
            shutil.rmtree(checkpoint, ignore_errors=True)
        context = Context(self.reporter, self.mesh, checkpoint)
        result = function(context, *arguments)
        with atomic(path) as temporary:
            format.save(temporary, result)
        self._computed.add(path)
        return result

    def map(
        self,
        title: str,
        function: Callable[..., Any],
        items: Iterable[Item],
        program: Callable[[Item], Hashable] = lambda item: None,
        show: Callable[..., str] = lambda *item: ", ".join(map(str, item)),
    ) -> dict[Item, Any]:
        """``function(*item)`` of each item, by item, in two threads.

        Programs this small keep one core busy each. Of items that share a compiled
        program the first runs before the others, so that it is compiled once.

        Args:
            title: title of the progress bar.
            function: called with the parts of an item.
            items: tuples.
            program: what tells the program of an item from that of another.
            show: an item in the progress bar.
        """
        items = list(items)
        first = list({program(item): item for item in reversed(items)}.values())[::-1]
        rest = [item for item in items if item not in first]
        found: dict[Item, Any] = {}
        with (
            Interruption() as interruption,
            self.reporter.task(title, len(items)) as task,
            ThreadPoolExecutor(2) as pool,
        ):

            def one(item: Any) -> None:
                interruption.leave()
                found[item] = function(*item)
                task.advance(detail=show(*item))

            try:
                for group in (first, rest):
                    list(pool.map(one, group))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return {item: found[item] for item in items}

    def folder(self, experiment: str) -> Path:
        """The folder of an experiment's results."""
        path = self.root / experiment
        path.mkdir(parents=True, exist_ok=True)
        return path


def write_results(
    folder: Path, metrics: Metrics, data: Arrays, figures: dict[str, Figure]
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
