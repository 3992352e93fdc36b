"""Training checkpoints: orbax, with a run description, checksums and fallback.

Orbax writes asynchronously, commits a checkpoint by a rename and keeps the last few. It
reads flipped bits of an array as other numbers, and knows nothing of the run, so each
checkpoint also holds a description of its run and a checksum of each array.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance._runtime.checks import as_path
from gmm_guidance._runtime.files import locked_folder
from gmm_guidance._runtime.tensor_files import differences, named_leaves

# What orbax appends to the name of a folder that it has not finished.
_UNFINISHED = ".orbax-checkpoint-tmp"


class _DamagedError(Exception):
    """A checkpoint that must not be used; the text says why."""


class Checkpoints:
    """Checkpoints of a training run in a folder, of which the last few are kept.

    Saving returns once the arrays are copied; files are written while training
    continues, and a checkpoint appears under its name once it is complete.

    A context manager, which holds the folder for this run and waits for the writing at
    its end. In runs of several processes, all make the same calls with the same folder.

    Args:
        folder: a folder for the checkpoints alone, created with the first of them;
            ``None`` to keep nothing.
        description: JSON-like; what a run must agree with to be resumed.
        keep: number of checkpoints kept. With two, a damaged one costs some steps.
        seconds_between: least time between two checkpoints of ``save_if_due``.

    Raises:
        ValueError: if the folder is a file, or has other content.
        BlockingIOError: on entry, if another process trains with it.
        OSError: on entry, if the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None,
        description: dict[str, Any],
        *,
        keep: int = 2,
        seconds_between: float = 10.0,
    ):
        self.folder = None if folder is None else as_path(folder).absolute()
        self._description = json.loads(json.dumps(description))
        self._keep = keep
        self._seconds_between = seconds_between
        self._manager: Any = None
        self._lock = contextlib.ExitStack()
        self._saved_at = time.monotonic()  # the time of day may be set back
        if self.folder is not None:
            _check_folder(self.folder)

    def save(self, step: int, tree: Any) -> None:
        """Save a tree of arrays, which may be donated as soon as this returns.

        Does nothing if the step is stored already.

        Args:
            step: steps done, more than in the checkpoints there.
            tree: JAX arrays, none of them empty.

        Raises:
            OSError: if the folder cannot be written, perhaps of the checkpoint before.
        """
        if self.folder is None:
            return
        arrays = named_leaves(tree)
        sums = _checksums(arrays)
        record = {
            "description": self._description,
            "step": step,
            "arrays": {n: [_kind(a), int(sums[n])] for n, a in arrays.items()},
        }
        args = _orbax().args
        items = args.Composite(
            tree=args.StandardSave(arrays),
            record=args.JsonSave({"record": record, "sha256": _hash(record)}),
        )
        with self._writing():
            if self._manager is None:
                self._manager = _open(self.folder, self._keep)
            if step not in self._manager.all_steps():
                self._manager.save(step, args=items, force=True)
        self._saved_at = time.monotonic()

    def save_if_due(self, step: int, tree: Any) -> None:
        """Save if the last time is long enough ago; raises as ``save``."""
        if self.folder is None:
            return
        due = time.monotonic() - self._saved_at > self._seconds_between
        if jax.process_count() > 1:  # clocks differ: process 0 decides
            due = bool(_multihost().broadcast_one_to_all(np.asarray(due)))
        if due:
            self.save(step, tree)

    def restore(self, like: Callable[[int], Any]) -> tuple[int, Any] | None:
        """Read the newest intact checkpoint, as step and tree; ``None`` without any.

        A damaged one is named in a ``UserWarning``, and deleted once an older one is
        found to be intact.

        Args:
            like: given the step, a tree of arrays or ``jax.ShapeDtypeStruct``; arrays
                are restored to their shardings.

        Raises:
            PermissionError: if the files may not be read.
            ValueError: if the checkpoints are of another run, or all damaged.
        """
        if self.folder is None:
            return None
        damaged: dict[int, str] = {}
        for step in reversed(stored_steps(self.folder)):
            try:
                tree = self._read(self.folder / str(step), step, like)
            except _DamagedError as error:
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
                f"to train from the start."
            )
        return None

    def wait(self) -> None:
        """Wait until all checkpoints are written; raises as ``save``."""
        if self._manager is not None:
            with self._writing():
                self._manager.wait_until_finished()

    def remove(self) -> None:
        """Delete all checkpoints: the run is complete."""
        self._close()
        if self.folder is None:
            return
        discard(self.folder, stored_steps(self.folder))
        if jax.process_index() == 0:
            for path in self.folder.glob(f"*{_UNFINISHED}"):
                shutil.rmtree(path)
            with contextlib.suppress(OSError):  # it has other, hidden files
                self.folder.rmdir()
        _await_processes()

    def __enter__(self) -> Checkpoints:
        if self.folder is not None and jax.process_index() == 0:
            # The lock file lies next to the folder, which is deleted in the end.
            name = f".{self.folder.name}.lock"
            try:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                self._lock.enter_context(locked_folder(self.folder.parent, name))
            except BlockingIOError:
                raise
            except OSError as error:
                raise self._unwritable(error.strerror) from error
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with self._lock:
            try:
                self._close()
            except OSError as failure:
                if error is None:
                    raise
                error.add_note(str(failure))  # what ended the run comes first

    def _close(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            with self._writing():
                manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise the errors of orbax, which have many types, as ``OSError``."""
        try:
            yield
        except Exception as error:
            self._manager = None  # its threads may be stuck
            raise self._unwritable(_brief(error)) from error

    def _unwritable(self, reason: Any) -> OSError:
        return OSError(
            f"the checkpoint folder {self.folder} must be writable, but writing failed "
            f"({reason}). Free some space, or name another folder."
        )

    def _read(self, path: Path, step: int, like: Callable[[int], Any]) -> Any:
        args = _orbax().args
        found = _read_item(path, record=args.JsonRestore())
        with _damage():
            record = found["record"]
            if found["sha256"] != _hash(record) or record["step"] != step:
                raise _DamagedError("its description has another checksum")
        differing = differences(self._description, record["description"])
        if differing:
            raise ValueError(
                f"{self.folder} is a checkpoint of another run: "
                f"{'; '.join(differing)}. Delete it to train from the start, or name "
                f"another folder."
            )
        tree = like(step)
        shapes = {n: _abstract(leaf) for n, leaf in named_leaves(tree).items()}
        kinds = {name: kind for name, (kind, _) in record["arrays"].items()}
        differing = differences({n: _kind(s) for n, s in shapes.items()}, kinds)
        if differing:
            raise _DamagedError("; ".join(differing[:3]))
        arrays = _read_item(path, tree=args.StandardRestore(shapes))
        sums = _checksums(arrays)
        bad = [n for n, (_, total) in record["arrays"].items() if total != sums[n]]
        if bad:
            raise _DamagedError(f"{len(bad)} arrays have another checksum: {bad[0]}")
        leaves = [arrays[name] for name in shapes]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _read_item(path: Path, **item: Any) -> Any:
    ocp = _orbax()
    with _damage(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        found = reader.restore(path, args=ocp.args.Composite(**item))
        return found[next(iter(item))]


def stored_steps(folder: str | os.PathLike) -> list[int]:
    """Steps of the checkpoints in a folder, ascending; none if it does not exist."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if _is_step(name))


def discard(folder: str | os.PathLike, steps: Iterable[int]) -> None:
    """Delete checkpoints of a folder in which no run is saving.

    Raises:
        OSError: if they cannot be deleted.
    """
    if jax.process_index() == 0:
        for step in steps:
            # Renamed first: half a checkpoint must not have the name of a whole one.
            doomed = Path(folder) / f"{step}{_UNFINISHED}"
            shutil.rmtree(doomed, ignore_errors=True)
            (Path(folder) / str(step)).rename(doomed)
            shutil.rmtree(doomed)
    _await_processes()


@functools.cache
def _orbax() -> Any:
    # Its import takes a while. What it logs is raised as well.
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    return importlib.import_module("orbax.checkpoint")


def _open(folder: Path, keep: int) -> Any:
    ocp = _orbax()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True, save_root_metadata=False
    )
    return ocp.CheckpointManager(folder, options=options)


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Raise what damaged files lead to, which may be any error, as one."""
    try:
        yield
    except (_DamagedError, PermissionError, MemoryError, jax.errors.JaxRuntimeError):
        raise  # the last is no fault of the files: a device without memory, say
    except Exception as error:
        raise _DamagedError(_brief(error)) from error


def _brief(error: BaseException) -> str:
    """An error in one line; orbax names the place first and the cause last."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-145:]}"


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"the checkpoint {folder} must be a folder, but is a file. Delete it to "
            f"train from the start, or name another folder."
        )
    for path in folder.iterdir() if folder.is_dir() else ():
        ours = _is_step(path.name) or _UNFINISHED in path.name
        if not (ours or path.name.startswith(".")):
            raise ValueError(
                f"the checkpoint folder {folder} is deleted in the end and must have "
                f"no other content, but has {path.name!r}. Name another folder."
            )


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == str(int(name))


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jnp.zeros(()).sharding
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _kind(array: Any) -> str:
    return f"{array.dtype.name} {tuple(array.shape)}"


def _checksums(arrays: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    return jax.device_get({name: _checksum(array) for name, array in arrays.items()})


@jax.jit
def _checksum(array: jax.Array) -> jax.Array:
    """The sum of an array's bits times odd factors, modulo 2^32.

    An odd factor is invertible: a change of any one element changes the sum. Computed
    where the array is, whose division over devices does not matter.
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    factor = jnp.ones(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):  # 1 + 2 * the flat index
        stride = np.uint32(2 * math.prod(bits.shape[axis + 1 :]) % 2**32)
        factor += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * stride
    return jnp.sum(bits * factor, dtype=jnp.uint32)


def _hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _await_processes() -> None:
    if jax.process_count() > 1:
        _multihost().sync_global_devices("gmm_guidance._runtime.checkpoints")


def _multihost() -> Any:
    return importlib.import_module("jax.experimental.multihost_utils")
