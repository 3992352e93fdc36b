"""Train a small flow transformer on the digits, in a folder of its own."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from full_models.digits.data import Digits, load_digits
from full_models.digits.runs import (
    RUN_FILE,
    VERSIONS,
    network_path,
    write_json,
)
from full_models.digits.sheets import training_sheet
from full_models.models.dit.config import DiTConfig
from full_models.training import DiTTraining, train_dit
from full_models.weights.export import export_weights
from gmm_guidance._runtime.checkpoints import discard, stored_steps
from gmm_guidance._runtime.directory_lock import DirectoryLock
from gmm_guidance._runtime.files import jsonable
from gmm_guidance._runtime.reporter import Reporter
from gmm_guidance._runtime.tensor_files import differences
from gmm_guidance.training.train import TrainingProgress

_CHECKPOINT = "checkpoint"
_PROGRESS = "progress.jsonl"


@dataclasses.dataclass(frozen=True)
class DigitsTraining:
    """Training of one network on the digits.

    Attributes:
        seed: decides the initial weights, the batches and the noise.
        width: features of a token, a multiple of ``num_heads`` and of 4.
        depth: blocks, at least 1; rules that drop blocks need 3.
        num_heads: attention heads.
        patch_size: side of a patch, a divisor of 8.
        steps: optimisation steps.
        batch_size: images in a step.
        learning_rate: peak of AdamW's rate.
        ema_decay: of the averaged weights, in [0, 1).
        label_dropout: share of images trained without label, in [0, 1).
        snapshots: steps at which averaged weights are kept, besides the last.
    """

    seed: int = 0
    width: int = 96
    depth: int = 8
    num_heads: int = 4
    patch_size: int = 2
    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3
    ema_decay: float = 0.995
    label_dropout: float = 0.1
    snapshots: tuple[int, ...] = (150, 400)

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}.")
        self.network()
        self.training()

    @classmethod
    def quick(cls) -> DigitsTraining:
        """A narrow network, trained for a minute at most: to see that all works."""
        return cls(width=48, depth=4, steps=300, batch_size=64, snapshots=(75,))

    def network(self) -> DiTConfig:
        """Shape of the network."""
        return DiTConfig(
            input_size=8,
            patch_size=self.patch_size,
            in_channels=1,
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            num_labels=10,
            learn_sigma=False,
            process="flow",
        )

    def training(self) -> DiTTraining:
        """How the network is trained."""
        return DiTTraining(
            num_steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            ema_decay=self.ema_decay,
            label_dropout=self.label_dropout,
            snapshots=self.snapshots,
        )


def train_digits(
    config: DigitsTraining,
    out: Path,
    reporter: Reporter,
    mesh: Mesh | None = None,
) -> list[Path]:
    """Train, or go on where training stopped; returns the files of the folder.

    The folder gets ``step-<steps>.safetensors`` for each kept step (averaged weights),
    ``run.json`` (configuration, versions, seconds, loss) and ``samples.png``. Continued
    training equals uninterrupted training bit for bit. A finished folder is left alone.

    Raises:
        BlockingIOError: if another process trains there.
        ValueError: if the folder holds a run of another configuration.
        ImportError: without scikit-learn.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    steps = config.training().kept_steps
    paths = [network_path(out, step) for step in steps]
    record = {
        "kind": "full_models.digits training",
        "config": jsonable(dataclasses.asdict(config)),
        "finished": False,
    }
    written = [*paths, out / RUN_FILE, out / "samples.png"]
    if _check_folder(out, record) and all(path.exists() for path in written):
        reporter.say(f"{out} is finished: {config.steps} steps, seed {config.seed}.")
        return written
    with DirectoryLock(out):
        _train(config, out, reporter, mesh, digits, record)
    return written


def _train(
    config: DigitsTraining,
    out: Path,
    reporter: Reporter,
    mesh: Mesh | None,
    digits: Digits,
    record: dict[str, Any],
) -> None:
    steps = config.training().kept_steps
    write_json(out / RUN_FILE, record | {"versions": VERSIONS})
    checkpoint = out / _CHECKPOINT
    _discard_useless(checkpoint, out, steps)
    with reporter.task(f"digits, seed {config.seed}", config.steps) as task:
        first: list[tuple[int, float]] = []

        def report(progress: TrainingProgress) -> None:
            _append(out / _PROGRESS, progress)
            # From the first report on: what comes before is mostly compilation.
            first[:] = first or [(progress.step, time.monotonic())]
            done, begun = progress.step - first[0][0], first[0][1]
            detail = f"loss {progress.loss:.3f}"
            if done:
                speed = done / (time.monotonic() - begun)
                left = (config.steps - progress.step) / speed
                detail += f", {speed:.1f} steps/s, {left:.0f} s left"
            task.move_to(progress.step, detail)

        network = train_dit(
            jax.random.key(config.seed),
            digits.train_images,
            digits.train_labels,
            config.network(),
            config.training(),
            report=report,
            checkpoint=checkpoint,
            keep=lambda step, average: export_weights(
                average, network_path(out, step), "native"
            ),
            mesh=mesh,
        )
    reporter.say("sampling a sheet")
    training_sheet(out / "samples.png", network, digits)
    curve = _read_progress(out / _PROGRESS)
    finished = {
        "finished": True,
        "versions": VERSIONS,
        "steps": list(steps),
        "seconds": sum(entry.pop("seconds") for entry in curve),
        "loss": curve,
    }
    write_json(out / RUN_FILE, record | finished)
    (out / _PROGRESS).unlink(missing_ok=True)
    seconds = finished["seconds"]
    reporter.say(f"trained in {seconds:.0f} s, last loss {curve[-1]['loss']:.4f}")


def _check_folder(out: Path, record: dict[str, Any]) -> bool:
    """Whether the folder's run is finished; raises if it is another run."""
    path = out / RUN_FILE
    if not path.exists():
        return False
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete the folder to train anew."
        ) from error
    names = ("kind", "config")
    differing = differences(
        {name: record[name] for name in names},
        {name: found.get(name) for name in names},
    )
    if differing:
        raise ValueError(
            f"{out} holds another run: {'; '.join(differing)}. Name another folder, or "
            f"delete this one."
        )
    return bool(found["finished"])


def _discard_useless(checkpoint: Path, out: Path, steps: tuple[int, ...]) -> None:
    """Remove checkpoints beyond a kept step whose network is not there.

    They cannot give that network any more, as after an interruption between a step and
    the writing of its network, or where someone deleted the file.
    """
    missing = [step for step in steps if not network_path(out, step).exists()]
    if missing:
        beyond = [step for step in stored_steps(checkpoint) if step > min(missing)]
        discard(checkpoint, beyond)


def _append(path: Path, progress: TrainingProgress) -> None:
    with path.open("a") as file:
        # The end of line first: a process killed while writing spoils its own alone.
        file.write("\n" + json.dumps(progress._asdict()))


def _read_progress(path: Path) -> list[dict[str, float]]:
    """Loss and seconds of each stretch of steps, the last report of each counting.

    Steps done again after an interruption stand there twice, a killed process may have
    left half a line.
    """
    found: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found[entry["step"]] = entry
    result, last = [], 0
    for step in sorted(found):
        seconds = (step - last) / found[step]["steps_per_second"]
        result.append({"step": step, "loss": found[step]["loss"], "seconds": seconds})
        last = step
    return result
