"""Filling a shard set, by one process or several, from where it stands."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from full_models.generation.processes import check_same, from_first, gather, is_first
from full_models.generation.sampler import Batch, unused_places
from full_models.generation.shard_set import MANIFEST, Shard, ShardArrays, ShardSet
from gmm_guidance._runtime.files import locked_folder
from gmm_guidance._runtime.interruption import Interrupted, Interruption
from gmm_guidance._runtime.progress import Reporter, Task

_GOING, _STOPPING, _FAILED = 0, 1, 2


def fill(
    shards: ShardSet,
    make_sampler: Callable[[], Any],
    reporter: Reporter,
    *,
    resume: bool = False,
    keep_latents: bool = False,
) -> list[Path]:
    """Fill a directory with a set of samples, or complete one.

    Of P processes, process i takes each P-th missing shard from its i-th. Writing
    overlaps the drawing of the next shard. Memory is that of two shards, whatever the
    number of samples.

    Args:
        shards: the set; the same in each process.
        make_sampler: makes the ``MeshSampler``; called if any shard is missing, before
            anything is written.
        reporter: shows the progress.
        resume: complete a directory that holds this set, after a look at the checksums;
            damaged shards are made again.
        keep_latents: keep the samples of the model along with the images.

    Returns:
        The files of the plan and the manifest.

    Raises:
        FileExistsError: if the directory holds another set, this one without
            ``resume``, or foreign files.
        BlockingIOError: if another process holds the directory.
        ValueError: if its plan is damaged, or processes have different options.
        OSError: if it cannot be written; complete shards stay.
        Interrupted: after a SIGINT or SIGTERM, when the shards in work are written.
        LostProcess: if another process has ended.
    """
    check_same(shards.description())
    with contextlib.ExitStack() as stack:
        begun, missing = _open(shards, resume, stack, reporter)
        if is_first():
            reporter.say(
                f"{shards.out}: {shards.num} samples in {len(shards.shards())} shards, "
                f"{len(missing)} to make"
            )
        try:
            sampler = make_sampler() if missing else None
            if sampler is not None and is_first():
                counts = (shard.count for shard in missing)
                if note := unused_places(counts, sampler.samples_at_once):
                    reporter.say(f"shards: {note}")
            _together(lambda: None if begun else shards.write_plan(), shards.out)
            if sampler is not None:
                _make(shards, missing, sampler, reporter, keep_latents)
        except Interrupted as error:
            error.add_note("run the same command with --resume to resume")
            raise
        _together(shards.write_manifest, shards.out)
    return [shards.out / "plan.json", shards.out / MANIFEST]


def _open(
    shards: ShardSet,
    resume: bool,
    stack: contextlib.ExitStack,
    reporter: Reporter,
) -> tuple[bool, list[Shard]]:
    """Hold the directory; whether it is begun, and the shards that are missing."""
    found = np.zeros(1 + len(shards.shards()), np.bool_)

    def look() -> None:
        out = shards.out
        if out.exists() and not out.is_dir():
            raise FileExistsError(
                f"{out} is a file; choose another directory with --out."
            )
        out.mkdir(parents=True, exist_ok=True)
        stack.callback(_remove_if_empty, out)
        stack.enter_context(locked_folder(out))
        found[0] = shards.is_begun(resume)
        shards.remove_leftovers()
        found[1:] = _missing(shards, reporter)

    _together(look, shards.out)
    begun, *missing = from_first(found).tolist()
    wanted = zip(shards.shards(), missing, strict=True)
    return begun, [shard for shard, is_missing in wanted if is_missing]


def _missing(shards: ShardSet, reporter: Reporter) -> list[bool]:
    """Whether each shard is to be made, after a look at its checksum."""
    faults = {}
    with reporter.task("checking what is there", len(shards.shards())) as task:
        for shard in shards.shards():
            faults[shard.name] = shards.fault(shard)
            task.advance()
    damaged = [name for name, fault in faults.items() if fault == "damaged"]
    if damaged:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        reporter.say(f"damaged, made again: {', '.join(damaged[:5])}{more}")
    return [fault is not None for fault in faults.values()]


def _make(
    shards: ShardSet,
    missing: list[Shard],
    sampler: Any,
    reporter: Reporter,
    keep_latents: bool,
) -> None:
    processes, own = jax.process_count(), jax.process_index()
    rounds = [missing[i : i + processes] for i in range(0, len(missing), processes)]
    done = shards.num - sum(shard.count for shard in missing)
    with (
        Interruption() as interruption,
        ThreadPoolExecutor(1) as writer,
        reporter.task("generating", shards.num) as task,
    ):
        task.begin(done)
        begun, before = time.monotonic(), done
        pending: Future[None] | None = None
        for together in rounds:
            mine = together[own] if own < len(together) else None
            batches = max(-(-s.count // sampler.samples_at_once) for s in together)
            arrays = _draw(shards, mine, sampler, batches, keep_latents, task, done)
            failure = _written(pending)
            if mine is not None and failure is None:
                pending = writer.submit(shards.write, mine, arrays)
            count = sum(shard.count for shard in together)
            done += count
            speed = (done - before) / max(time.monotonic() - begun, 1e-9)
            task.move_to(done, f"{speed:.3g} samples/s")
            if _agreed(interruption, failure, shards.out):
                break
        failure = _written(pending)
        _agreed(interruption, failure, shards.out)
        interruption.leave()


def _draw(
    shards: ShardSet,
    shard: Shard | None,
    sampler: Any,
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
        parts.append(sampler.draw(np.arange(start, stop), shards.labels[start:stop]))
        task.move_to(done + stop - first)
    images = [p.images for p in parts if p.images is not None]
    latents = keep_latents or not images
    return ShardArrays(
        shards.labels[first : first + count],
        np.concatenate(images) if images else None,
        np.concatenate([p.samples for p in parts]) if latents else None,
    )


def _written(pending: Future[None] | None) -> OSError | None:
    """Wait for the shard that is being written."""
    try:
        if pending is not None:
            pending.result()
    except OSError as error:
        return error
    return None


def _together(act: Callable[[], object], out: Path) -> None:
    """Act in the first process; an error there ends all of them."""
    failure: Exception | None = None
    if is_first():
        try:
            act()
        except (OSError, ValueError) as error:
            failure = error
    failed = gather(_FAILED if failure else _GOING)
    if isinstance(failure, OSError):
        raise _explained(failure, out) from failure
    if failure is not None:
        raise failure
    if _FAILED in failed:
        raise OSError(f"the first process cannot use {out}; see its message.")


def _agreed(interruption: Interruption, failure: OSError | None, out: Path) -> bool:
    """Whether any process wants to stop; raises if one has failed."""
    own = _FAILED if failure else _STOPPING if interruption.requested else _GOING
    states = gather(own)
    if failure is not None:
        raise _explained(failure, out) from failure
    if _FAILED in states:
        raise OSError(
            f"process {states.index(_FAILED)} could not write its shard to {out}; see "
            f"its message. Complete shards stay; resume with --resume."
        )
    if _STOPPING in states and not interruption.requested:
        interruption.request()
    return _STOPPING in states


def _explained(error: OSError, out: Path) -> OSError:
    if isinstance(error, (BlockingIOError, FileExistsError)):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(
            error.errno,
            f"the disk of {out} is full; complete shards stay. Free some space and "
            f"resume with --resume",
        )
    return OSError(
        error.errno,
        f"the output directory {out} must be writable ({error.strerror or error}); "
        f"choose another with --out",
    )


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
