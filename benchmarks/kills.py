"""Random kills of generating and training: what is left is whole, and goes on.

``python -m benchmarks.kills`` runs fifty and more and keeps the record in
``benchmarks/results/kills.json``; ``tests/test_kills.py`` runs a few.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from full_models.generation.shard_set import ShardSet
from gmm_guidance._runtime.checkpoints import stored_steps
from gmm_guidance._runtime.files import write_text
from gmm_guidance._runtime.progress import Reporter

ROOT = Path(__file__).parent.parent
_WEIGHTS = ROOT / "tests" / "golden" / "dit" / "diffusers"
_STARTING = 0.3  # share of kills at a random moment of the start
_TRAIN = """
import dataclasses, sys
import full_models.training as training
from gmm_guidance.training import fit
fit._CHECKPOINT_SECONDS = 0.2
from gmm_guidance._runtime.progress import Reporter
from toy_experiments import digits
from toy_experiments.common.store import Store
config = digits.DigitsConfig.quick()
if len(sys.argv) > 2:
    width, steps, snapshot = (int(v) for v in sys.argv[2:])
    network = dataclasses.replace(config.network, width=width, depth=3, num_heads=2)
    short = training.DiTTraining((snapshot, steps), batch_size=32)
    config = dataclasses.replace(
        config, network=network, training=short, shown=(steps,)
    )
store = Store(sys.argv[1], Reporter())
digits.trained(config, store, digits.load_digits(), 0)
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """A command that can be killed, and how to look at what it left.

    Attributes:
        name: of the record.
        command: for an output directory.
        progress: a number that grows with what is safely stored there.
        faults: descriptions of what counts as whole there but is not.
        result: the files by which two finished runs are compared.
    """

    name: str
    command: Callable[[Path], list[str]]
    progress: Callable[[Path], int]
    faults: Callable[[Path], list[str]]
    result: Callable[[Path], dict[str, bytes]]


def generating(num: int) -> Job:
    """A set of samples of a tiny transformer, in shards of four."""

    def command(out: Path) -> list[str]:
        options = f"--s2-scale 0 --steps 20 --batch-size 2 --shard-size 4 --num {num}"
        where = ["--weights", str(_WEIGHTS), "--out", str(out), "--resume"]
        return ["-m", "full_models.cli", "generate", *where, *options.split()]

    def faults(out: Path) -> list[str]:
        shards = ShardSet.read(out) if out.is_dir() else None
        if shards is None:
            return []
        recorded = [s for s in shards.shards() if shards.record_path(s).exists()]
        return [s.name for s in recorded if shards.fault(s) is not None]

    def result(out: Path) -> dict[str, bytes]:
        files = [p for p in out.iterdir() if p.name != ".lock"]
        return {p.name: p.read_bytes() for p in sorted(files)}

    return Job(
        "generate",
        command,
        lambda out: len(list(out.glob("shard-*.json"))),
        faults,
        result,
    )


def training(size: Sequence[int] = ()) -> Job:
    """Training on the digits, with a checkpoint five times a second.

    Args:
        size: width, steps and a snapshot; of the quick experiment by default.
    """

    def command(out: Path) -> list[str]:
        return ["-c", _TRAIN, str(out), *(str(number) for number in size)]

    def progress(out: Path) -> int:
        folders = (out / "cells").glob("*.checkpoint")
        return max((s for f in folders for s in stored_steps(f)), default=0)

    def result(out: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted(out.glob("cells/*.npz"))}

    return Job("train", command, progress, lambda out: [], result)


def kill_again_and_again(
    job: Job, folder: Path, kills: int, seed: int, report: Callable[[int], None]
) -> dict[str, Any]:
    """Kill a job so many times, starting anew whenever it comes to its end.

    Args:
        job: what is run.
        folder: for its output, empty.
        kills: how many.
        seed: of the moments.
        report: told the number of kills so far.

    Raises:
        RuntimeError: if a run that is not killed fails.
    """
    rng = np.random.default_rng(seed)
    environment = _environment(folder / "compiled")
    reference = folder / "reference"
    begun = time.monotonic()
    _to_the_end(job, reference, environment)
    expected = job.result(reference)
    started = time.monotonic() - begun
    out, moments, damaged, finished, differing = folder / "out", [], [], 0, 0
    while len(moments) < kills:
        before = job.progress(out)
        process = _start(job, out, environment)
        if rng.random() < _STARTING:
            wait = float(rng.uniform(0.0, 0.5 * started))
        else:
            while process.poll() is None and job.progress(out) <= before:
                time.sleep(0.01)
            wait = float(rng.uniform(0.0, 0.4))
        time.sleep(wait)
        if process.poll() is None:
            process.kill()
            moments.append(job.progress(out))
            report(len(moments))
        _, output = process.communicate()
        if process.returncode not in (0, -9):
            raise RuntimeError(f"{job.name} failed:\n{output}")
        damaged += job.faults(out)
        if process.returncode == 0:
            finished += 1
            differing += job.result(out) != expected
            out = folder / f"out-{finished}"
    _to_the_end(job, out, environment)
    differing += job.result(out) != expected
    return {
        "kills": kills,
        "seed": seed,
        "progress_at_kills": moments,
        "runs_completed": finished + 1,
        "runs_that_differ": differing,
        "damaged_but_counted_as_whole": damaged,
    }


def _start(job: Job, out: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *job.command(out)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _to_the_end(job: Job, out: Path, environment: dict[str, str]) -> None:
    process = _start(job, out, environment)
    _, output = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{job.name} failed:\n{output}")


def _environment(compiled: Path) -> dict[str, str]:
    """Programs are compiled once: what is killed is the work."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@dataclasses.dataclass(frozen=True)
class Kills:
    """Kill generating and training at random moments and look at what is left."""

    generate: int = 40
    """Kills of full-models generate."""
    train: int = 20
    """Kills of training on the digits."""
    num: int = 2000
    """Samples of a set."""
    seed: int = 0
    """Of the moments."""
    folder: Path = Path("kills")
    """Scratch directory; absent or empty."""
    out: Path = ROOT / "benchmarks" / "results" / "kills.json"
    """The record."""


def run(config: Kills, reporter: Reporter) -> dict[str, Any]:
    """All kills; the record."""
    record: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    for job, kills in (
        (generating(config.num), config.generate),
        (training(), config.train),
    ):
        begun = time.monotonic()
        with reporter.task(f"killing {job.name}", kills) as task:
            folder = config.folder / job.name
            folder.mkdir(parents=True, exist_ok=True)
            found = kill_again_and_again(job, folder, kills, config.seed, task.move_to)
        record[job.name] = found | {"seconds": round(time.monotonic() - begun, 1)}
    return record


def main() -> None:
    """Run the command line."""
    config = tyro.cli(Kills)
    with Reporter() as reporter:
        record = run(config, reporter)
        reporter.say(str(write_text(config.out, json.dumps(record, indent=1) + "\n")))
    bad = [
        name
        for name in ("generate", "train")
        if record[name]["runs_that_differ"]
        or record[name]["damaged_but_counted_as_whole"]
    ]
    sys.exit(f"not survived: {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
