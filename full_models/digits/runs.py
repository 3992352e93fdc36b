"""Training folders: the networks that a run kept, and what it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import flax
import jax

import gmm_guidance
from full_models.models.dit.network import DiT
from full_models.weights.load import load_weights
from gmm_guidance._runtime.files import jsonable, write_text

RUN_FILE = "run.json"
VERSIONS = {
    "gmm_guidance": gmm_guidance.__version__,
    "jax": jax.__version__,
    "flax": flax.__version__,
}


def network_path(out: str | os.PathLike, step: int) -> Path:
    """Where a training folder keeps the network of a step."""
    return Path(out) / f"step-{step:06d}.safetensors"


@dataclasses.dataclass(frozen=True)
class DigitsRun:
    """A finished training folder.

    Attributes:
        path: the folder.
        config: configuration of the training, as ``run.json`` has it.
        steps: kept steps, ascending.
    """

    path: Path
    config: dict[str, Any]
    steps: tuple[int, ...]

    @property
    def seed(self) -> int:
        """The training seed."""
        return self.config["seed"]

    def network(self, step: int) -> DiT:
        """The averaged network after ``step`` steps.

        Raises:
            ValueError: if none was kept there.
        """
        if step not in self.steps:
            raise ValueError(
                f"{self.path} kept no network at step {step}, only at "
                f"{', '.join(str(s) for s in self.steps)}."
            )
        return load_weights(network_path(self.path, step))

    def digest(self, step: int) -> str:
        """Of the bytes of a kept network's file."""
        return hashlib.sha256(network_path(self.path, step).read_bytes()).hexdigest()


def read_run(path: str | os.PathLike) -> DigitsRun:
    """The run of a training folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if its training did not finish, or the record is damaged.
    """
    path = Path(path)
    record_path = path / RUN_FILE
    if not record_path.is_file():
        raise FileNotFoundError(
            f"no training run in {path} (there is no {RUN_FILE}); train one first."
        )
    try:
        record = json.loads(record_path.read_text())
        finished, config = record["finished"], record["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{record_path} is damaged ({error!r}); train the run anew."
        ) from error
    if not finished:
        raise ValueError(
            f"the training in {path} is not finished; give its command again."
        )
    return DigitsRun(path, config, tuple(record["steps"]))


def write_json(path: str | os.PathLike, record: dict[str, Any]) -> Path:
    """Write numbers of any kind as JSON; complete or not at all."""
    return write_text(path, json.dumps(jsonable(record), indent=1) + "\n")
