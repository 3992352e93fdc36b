"""Checkpoints of a training run: written beside it, whole or not there, checked."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance._runtime.checksums import checksums
from gmm_guidance._runtime.directory_lock import DirectoryLock
from gmm_guidance._runtime.orbax_quiet import (
    DamagedError,
    brief,
    orbax,
    reading,
    without_log,
)
from gmm_guidance._runtime.tensor_files import differences, named_leaves

# What orbax appends to the name of a folder that it has not finished.
_UNFINISHED = ".orbax-checkpoint-tmp"


class Checkpoints:
    """Checkpoints of a training run in a folder; the last few are kept.

    Saving returns once the arrays are copied, and files are written while training goes
    on. A checkpoint appears under its name when all of it is written; each array and
    the description have checksums, so that a damaged checkpoint is never used.

    A context, which holds the folder for this run and waits for the writing at its end.
    In runs of several processes each makes
    the same calls with the same folder.

    Args:
        folder: where they lie, a folder of their own, made with the first of them;
            ``None`` to keep nothing.
        description: JSON-like; what a run must agree with to be continued.
        keep: how many are kept, at least 1. With two, a damaged one costs some steps.
        seconds_between: of ``save_if_due``.

    Raises:
        ValueError: if the folder is a file, or has other content.
        BlockingIOError: on entry, if another process trains with it.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None,
        description: dict[str, Any],
        *,
        keep: int = 2,
        seconds_between: float = 10.0,
    ):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}.")
        self.folder = None if folder is None else Path(folder)
        self._absolute = Path(folder or "").absolute()  # as orbax wants it
        self._description = json.loads(json.dumps(description))
        self._keep = keep
        self._seconds_between = seconds_between
        self._manager: Any = None
        self._quiet = contextlib.ExitStack()
        self._held = contextlib.ExitStack()
        self._broken = False
        # Not the time of day, which may be set back.
        self._saved_at = time.monotonic()
        if self.folder is not None:
            _check_folder(self.folder)

    def save(self, step: int, tree: Any) -> None:
        """Save a tree of arrays; does nothing if that step is stored already.

        The arrays may be overwritten or donated as soon as this returns.

        Args:
            step: steps done, more than in the checkpoints there.
            tree: arrays.

        Raises:
            OSError: if the folder cannot be written, perhaps of the checkpoint before.
            ValueError: if a later step is stored.
        """
        if self.folder is None:
            return
        manager = self._open()
        stored = manager.all_steps()
        if step in stored:
            return
        if stored and max(stored) > step:
            raise ValueError(
                f"steps must ascend, but {self.folder} has step {max(stored)} and is "
                f"to get {step}. Restore it first, or delete it to start anew."
            )
        arrays = {name: _array(name, leaf) for name, leaf in named_leaves(tree).items()}
        record = {
            "description": self._description,
            "step": step,
            "arrays": _kinds(arrays),
            "checksums": checksums(arrays),
        }
        args = orbax().args
        items = args.Composite(
            tree=args.StandardSave(_filled(arrays)),
            record=args.JsonSave({"record": record, "sha256": _hash(record)}),
        )
        with self._writing():
            manager.save(step, args=items, force=True)
        self._saved_at = time.monotonic()

    def save_if_due(self, step: int, tree: Any) -> bool:
        """Save if the last time is long enough ago; returns whether it did.

        Raises:
            OSError: as ``save``.
            ValueError: as ``save``.
        """
        if self.folder is None:
            return False
        due = time.monotonic() - self._saved_at > self._seconds_between
        if jax.process_count() > 1:
            # Clocks differ, and all processes must come to the same decision.
            due = bool(_multihost().broadcast_one_to_all(np.asarray(due)))
        if due:
            self.save(step, tree)
        return due

    def restore(self, like: Callable[[int], Any]) -> tuple[int, Any] | None:
        """The newest checkpoint that is intact, as step and tree; ``None`` without any.

        A damaged one is named in a ``UserWarning`` and deleted, once an older one is
        found to be intact.

        Args:
            like: given the step, a tree of arrays or shapes (``jax.ShapeDtypeStruct``);
                where they have a sharding, arrays are restored to it.

        Raises:
            PermissionError: if the files may not be read.
            ValueError: if the checkpoints are of another run, or all damaged.
        """
        if self.folder is None:
            return None
        damaged: dict[int, str] = {}
        for step in reversed(stored_steps(self.folder)):
            try:
                tree = self._read(step, like)
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            for newer, reason in damaged.items():
                warnings.warn(
                    f"checkpoint of step {newer} in {self.folder} is damaged "
                    f"({reason}); going back to step {step}.",
                    stacklevel=2,
                )
            discard(self.folder, damaged)
            return step, tree
        if damaged:
            reasons = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
            raise ValueError(
                f"all checkpoints in {self.folder} are damaged ({reasons}). Delete it "
                f"to start anew."
            )
        return None

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            OSError: if the folder cannot be written.
        """
        if self._manager is not None:
            with self._writing():
                self._manager.wait_until_finished()

    def remove(self) -> None:
        """Delete the checkpoints: the run is complete."""
        self._close()
        if self.folder is None:
            return
        discard(self.folder, stored_steps(self.folder))
        if jax.process_index() == 0:
            for path in self.folder.glob(f"*{_UNFINISHED}"):
                shutil.rmtree(path)
            with contextlib.suppress(OSError):  # hidden files of others
                self.folder.rmdir()
        _await_others()

    def __enter__(self) -> Checkpoints:
        if self.folder is not None and jax.process_index() == 0:
            # Beside it: the folder goes with the run.
            lock = DirectoryLock(self.folder.parent, f".{self.folder.name}.lock")
            try:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                self._held.enter_context(lock)
            except BlockingIOError:
                raise
            except OSError as error:
                raise OSError(
                    f"{self.folder} must be writable, but its place is not "
                    f"({error.strerror}). Free some space, or name another folder."
                ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._held:
            try:
                self._close()
            except OSError as failure:
                if error is None:
                    raise
                # What ended the run comes first; this must not go unsaid.
                error.add_note(str(failure))

    def _open(self) -> Any:
        if self._manager is None:
            ocp = orbax()
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
                save_root_metadata=False,
            )
            self._quiet.enter_context(without_log())
            with self._writing():
                self._manager = ocp.CheckpointManager(self._absolute, options=options)
        return self._manager

    def _close(self) -> None:
        manager, self._manager = self._manager, None
        if self._broken:
            return  # its threads may still have something to say, or wait for ever
        with self._quiet:
            if manager is not None:
                with self._writing():
                    manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Errors of orbax, which have many types, as one that names the folder."""
        try:
            yield
        except BaseException as error:
            self._broken = True
            if not isinstance(error, Exception):
                raise
            raise OSError(
                f"{self.folder} must be writable, but writing a checkpoint failed "
                f"({brief(error)}). Free some space, or name another folder."
            ) from error

    def _read(self, step: int, like: Callable[[int], Any]) -> Any:
        record = self._read_record(step)
        differing = differences(self._description, record["description"])
        if differing:
            raise ValueError(
                f"{self.folder} is a checkpoint of another run: "
                f"{'; '.join(differing)}. Delete it to start anew, or name another."
            )
        wanted = like(step)
        arrays = self._read_arrays(step, record, named_leaves(wanted))
        return jax.tree.unflatten(jax.tree.structure(wanted), arrays)

    def _read_record(self, step: int) -> dict[str, Any]:
        with reading():
            found = self._read_item(step, record=orbax().args.JsonRestore())
            record = found["record"]
            if found["sha256"] != _hash(record) or record["step"] != step:
                raise DamagedError("its description has another checksum")
        return record

    def _read_arrays(
        self, step: int, record: dict[str, Any], wanted: dict[str, Any]
    ) -> list[jax.Array]:
        shapes = {name: _abstract(leaf) for name, leaf in wanted.items()}
        differing = differences(_kinds(shapes), record["arrays"])
        if differing:
            raise DamagedError("; ".join(differing[:3]))
        with reading():
            item = orbax().args.StandardRestore(_filled(shapes))
            arrays = dict(self._read_item(step, tree=item))
            for name, shape in shapes.items():
                if not shape.size:
                    arrays[name] = jnp.zeros(
                        shape.shape, shape.dtype, device=shape.sharding
                    )
            found = checksums({name: arrays[name] for name in wanted})
            bad = [name for name in wanted if found[name] != record["checksums"][name]]
            if bad:
                raise DamagedError(
                    f"{len(bad)} of {len(wanted)} arrays have another checksum, "
                    f"{bad[0]} among them"
                )
        return [arrays[name] for name in wanted]

    def _read_item(self, step: int, **items: Any) -> Any:
        ocp = orbax()
        path = self._absolute / str(step)
        handler = ocp.CompositeCheckpointHandler()
        with without_log(), ocp.Checkpointer(handler) as reader:
            found = reader.restore(path, args=ocp.args.Composite(**items))
        (name,) = items
        return found[name]


def stored_steps(folder: str | os.PathLike) -> list[int]:
    """Steps of the checkpoints in a folder, ascending, whole or damaged.

    Args:
        folder: of ``Checkpoints``; none are in a folder that does not exist.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if _is_step(name))


def discard(folder: str | os.PathLike, steps: Iterable[int]) -> None:
    """Delete checkpoints of a folder.

    Args:
        folder: of ``Checkpoints`` that have saved nothing yet.
        steps: whose checkpoints are deleted.

    Raises:
        OSError: if they cannot be.
    """
    if jax.process_index() == 0:
        for step in steps:
            # Renamed first: half a checkpoint must not bear a whole one's name.
            doomed = Path(folder) / f"{step}{_UNFINISHED}"
            shutil.rmtree(doomed, ignore_errors=True)
            (Path(folder) / str(step)).rename(doomed)
            shutil.rmtree(doomed)
    _await_others()


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"the checkpoint {folder} must be a folder, but is a file. Delete it to "
            f"start anew, or name another."
        )
    if not folder.is_dir():
        return
    # It is deleted in the end; nothing of others may be in it.
    foreign = sorted(
        path.name
        for path in folder.iterdir()
        if not (_is_step(path.name) or _UNFINISHED in path.name)
        and not path.name.startswith(".")
    )
    if foreign:
        raise ValueError(
            f"the checkpoint {folder} must be a folder of its own, but has "
            f"{foreign[0]!r}. Name another."
        )


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == str(int(name))


def _array(name: str, leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array):
        return leaf
    array = jnp.array(leaf)  # a copy: NumPy arrays may be overwritten
    if isinstance(leaf, np.ndarray) and array.dtype != leaf.dtype:
        raise ValueError(
            f"arrays must be of a type that JAX has, but {name} is {leaf.dtype}; "
            f"convert it, or set jax_enable_x64."
        )
    return array


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, type and place of an array to be read."""
    sharding = getattr(leaf, "sharding", None) or jnp.zeros(()).sharding
    leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _filled(arrays: dict[str, Any]) -> dict[str, Any]:
    """Those that have elements: orbax refuses others."""
    return {name: array for name, array in arrays.items() if array.size}


def _kinds(arrays: dict[str, Any]) -> dict[str, str]:
    return {name: f"{a.dtype.name} {tuple(a.shape)}" for name, a in arrays.items()}


def _hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _await_others() -> None:
    if jax.process_count() > 1:
        _multihost().sync_global_devices("gmm_guidance._runtime.checkpoints")


def _multihost() -> Any:
    return importlib.import_module("jax.experimental.multihost_utils")
