"""``kill -9`` at random moments: what is left is whole, and resumes to equal files."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from full_models.generation.shard_set import ShardSet
from gmm_guidance._runtime.checkpoints import stored_steps

ROOT = Path(__file__).parent.parent.parent
_WEIGHTS = ROOT / "tests" / "golden" / "dit" / "diffusers"
_STARTING = 0.3  # fraction of kills at a random moment of the start
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
    """A command that can be killed, and how to inspect what it left.

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


def kill_again_and_again(job: Job, folder: Path, kills: int, seed: int) -> None:
    """Kill a job this many times, restarting it in a new folder when it finishes."""
    rng = np.random.default_rng(seed)
    environment = _environment(folder / "compiled")
    reference = folder / "reference"
    begun = time.monotonic()
    _to_the_end(job, reference, environment)
    expected = job.result(reference)
    started = time.monotonic() - begun
    out, killed, finished = folder / "out", 0, 0
    while killed < kills:
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
            killed += 1
        _, output = process.communicate()
        assert process.returncode in (0, -9), output
        assert job.faults(out) == []
        if process.returncode == 0:
            finished += 1
            assert job.result(out) == expected
            out = folder / f"out-{finished}"
    _to_the_end(job, out, environment)
    assert job.result(out) == expected


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
    assert process.returncode == 0, output


def _environment(compiled: Path) -> dict[str, str]:
    """Programs are compiled once: what is killed is the work."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.mark.ci
def test_a_few_kills_of_generate(tmp_path):
    kill_again_and_again(generating(num=800), tmp_path, 2, 1)


@pytest.mark.slow
def test_a_kill_of_training(tmp_path):
    pytest.importorskip("sklearn", reason="the digits need scikit-learn")
    kill_again_and_again(training((16, 400, 100)), tmp_path, 1, 1)


@pytest.mark.slow
def test_fifty_kills(tmp_path):
    pytest.importorskip("sklearn", reason="the digits need scikit-learn")
    for job, kills in ((generating(num=2000), 35), (training(), 15)):
        folder = tmp_path / job.name
        folder.mkdir()
        kill_again_and_again(job, folder, kills, 7)
