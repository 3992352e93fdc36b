"""Filling a directory with shards: by one process or several, from where it stands."""

from __future__ import annotations

import contextlib
import errno
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from full_models.generation.plan import Plan, Shard, check_plan, write_plan
from full_models.generation.processes import check_same, from_first, gather, is_first
from full_models.generation.sampler import Batch, MeshSampler
from full_models.generation.shards import (
    ShardArrays,
    remove_leftovers,
    shard_fault,
    shard_record,
    write_shard,
)
from gmm_guidance._runtime.directory_lock import DirectoryLock
from gmm_guidance._runtime.files import write_text
from gmm_guidance._runtime.interruption import Interruption
from gmm_guidance._runtime.reporter import Reporter, Task

MANIFEST = "manifest.json"
_GOING, _STOPPING, _FAILED = 0, 1, 2


@contextlib.contextmanager
def prepared(
    out: Path, plan: Plan, resume: bool, reporter: Reporter
) -> Iterator[list[Shard]]:
    """A directory with its plan, held for this run; yields the shards still to make.

    Raises:
        FileExistsError: if it holds another run, or this one without ``resume``.
        BlockingIOError: if another process holds it.
        OSError: if it cannot be written.
        ValueError: if its plan is damaged, or processes have different options.
    """
    check_same(plan.description())
    shards = plan.shards()
    missing = np.zeros(len(shards), np.bool_)
    with contextlib.ExitStack() as stack:
        failure: Exception | None = None
        if is_first():  # the others take its word
            try:
                _open(out, plan, resume, stack)
                missing[:] = _missing(out, plan, reporter)
            except (OSError, ValueError) as error:
                failure = error
        failed = gather(_FAILED if failure else _GOING)
        if failure is not None:
            raise failure
        if _FAILED in failed:
            raise OSError(f"the first process could not open {out}; see its message.")
        missing = from_first(missing)
        yield [s for s, wanted in zip(shards, missing, strict=True) if wanted]


def make_shards(
    out: Path,
    plan: Plan,
    missing: list[Shard],
    sampler: MeshSampler,
    reporter: Reporter,
    keep_latents: bool = False,
) -> None:
    """Draw and write the missing shards; process i of P takes each P-th from its i-th.

    Writing overlaps the drawing of the next shard. Memory is that of two shards,
    whatever the number of samples.

    Args:
        out: the directory.
        plan: its plan.
        missing: what is to be made, the same in each process.
        sampler: draws samples.
        reporter: shows the progress.
        keep_latents: keep the model's own samples beside images.

    Raises:
        Interrupted: after a SIGINT or SIGTERM, once shards in work are written.
        OSError: if a shard cannot be written; the others stay.
        LostProcess: if another process has ended.
    """
    processes, own = jax.process_count(), jax.process_index()
    rounds = [missing[i : i + processes] for i in range(0, len(missing), processes)]
    done = plan.num - sum(shard.count for shard in missing)
    with (
        Interruption() as interruption,
        ThreadPoolExecutor(1) as writer,
        reporter.task("generating", plan.num) as task,
    ):
        task.move_to(done, "compiling" if missing else "")
        speed = _Speed()
        pending: Future[None] | None = None
        for shards in rounds:
            mine = shards[own] if own < len(shards) else None
            batches = max(-(-s.count // sampler.samples_at_once) for s in shards)
            arrays = _draw(plan, mine, sampler, batches, keep_latents, task, done)
            failure = _finish(pending)
            if mine is not None and failure is None:
                pending = writer.submit(write_shard, out, plan, mine, arrays)
            done += sum(shard.count for shard in shards)
            task.move_to(done, speed.after(sum(shard.count for shard in shards)))
            if _agreed(interruption, failure, out):
                break
        failure = _finish(pending)
        _agreed(interruption, failure, out)
        interruption.leave()


def finish(out: Path, plan: Plan) -> Path | None:
    """Bind the shards by a manifest; its path, or ``None`` if some are missing.

    Called by all processes, written by the first.
    """
    gather(_GOING)  # all have written theirs
    path = out / MANIFEST
    if not is_first():
        return path
    records = [shard_record(out, shard) for shard in plan.shards()]
    if not all(records):
        return None
    content = {**plan.description(), "shards": records}
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def _open(out: Path, plan: Plan, resume: bool, stack: contextlib.ExitStack) -> None:
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose another directory with --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(DirectoryLock(out))
        begun = check_plan(out, plan, resume)
        remove_leftovers(out)
        if not begun:
            write_plan(out, plan)
    except BlockingIOError:
        raise
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        raise _explained(error, out) from error


def _missing(out: Path, plan: Plan, reporter: Reporter) -> np.ndarray:
    """Whether each shard is to be made, after a look at its checksum."""
    shards = plan.shards()
    with reporter.task("checking what is there", len(shards)) as task:
        faults = []
        for shard in shards:
            faults.append(shard_fault(out, plan, shard))
            task.advance()
    damaged = [s.name for s, f in zip(shards, faults, strict=True) if f == "damaged"]
    if damaged:
        reporter.say(
            f"damaged, made again: {', '.join(damaged[:5])}"
            + (f" and {len(damaged) - 5} more" if len(damaged) > 5 else "")
        )
    return np.array([fault is not None for fault in faults], np.bool_)


def _draw(
    plan: Plan,
    shard: Shard | None,
    sampler: MeshSampler,
    batches: int,
    keep_latents: bool,
    task: Task,
    done: int,
) -> ShardArrays:
    """The arrays of a shard; without one, takes part in the batches of the others."""
    first, count = (shard.first, shard.count) if shard is not None else (0, 0)
    size = sampler.samples_at_once
    parts: list[Batch] = []
    for number in range(batches):
        start = first + min(number * size, count)
        stop = first + min((number + 1) * size, count)
        parts.append(sampler.draw(np.arange(start, stop), plan.labels[start:stop]))
        task.move_to(done + stop - first)
    images = [p.images for p in parts if p.images is not None]
    latents = keep_latents or not images
    return ShardArrays(
        plan.labels[first : first + count],
        np.concatenate(images) if images else None,
        np.concatenate([p.samples for p in parts]) if latents else None,
    )


def _finish(pending: Future[None] | None) -> OSError | None:
    """Wait for the shard being written."""
    if pending is None:
        return None
    try:
        pending.result()
    except OSError as error:
        return error
    return None


def _agreed(interruption: Interruption, failure: OSError | None, out: Path) -> bool:
    """Whether any process wants to stop; raises if one has failed."""
    own = _FAILED if failure else _STOPPING if interruption.requested else _GOING
    states = gather(own)
    if failure is not None:
        raise _explained(failure, out) from failure
    if _FAILED in states:
        raise OSError(
            f"process {states.index(_FAILED)} could not write its shard to {out}; see "
            f"its message. What is written is whole; go on with --resume."
        )
    if _STOPPING in states and not interruption.requested:
        interruption.request()
    return _STOPPING in states


def _explained(error: OSError, out: Path) -> OSError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(
            error.errno,
            f"the disk of {out} is full; what is written is whole. Free some space and "
            f"go on with --resume",
        )
    return OSError(
        error.errno,
        f"the output directory {out} must be writable ({error.strerror or error}); "
        f"choose another with --out",
    )


class _Speed:
    """Images per second since the first shard, which compiles."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._begun: float | None = None
        self._images = 0

    def after(self, images: int) -> str:
        if self._begun is None:
            self._begun = self._clock()
            return ""
        self._images += images
        return f"{self._images / max(self._clock() - self._begun, 1e-9):.3g} images/s"
