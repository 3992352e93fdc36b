"""The plan of a large set: which index, label, seed and rule, written first."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from gmm_guidance._runtime.files import atomic, jsonable, write_text
from gmm_guidance._runtime.tensor_files import differences

ShardFormat = Literal["npz", "png"]
PLAN = "plan.json"
LABELS = "labels.npy"
_KIND = "full_models generation"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of the set.

    Attributes:
        number: from 0.
        first: global index of its first sample.
        count: samples in it.
    """

    number: int
    first: int
    count: int

    @property
    def name(self) -> str:
        """What its files are called, without suffix."""
        return f"shard-{self.number:05d}"


class Plan(NamedTuple):
    """What a directory is to hold.

    Attributes:
        run: what the samples depend on, as JSON has it.
        labels: of each sample, int32 ``[num]``.
        shard_size: samples in each shard but the last.
        format: of the shards.
    """

    run: dict[str, Any]
    labels: np.ndarray
    shard_size: int
    format: ShardFormat

    @property
    def num(self) -> int:
        """Samples in all."""
        return len(self.labels)

    def shards(self) -> list[Shard]:
        """All parts, in order."""
        return [
            Shard(number, first, min(self.shard_size, self.num - first))
            for number, first in enumerate(range(0, self.num, self.shard_size))
        ]

    def description(self) -> dict[str, Any]:
        """The plan as JSON; labels by their content."""
        return {
            "kind": _KIND,
            "run": self.run,
            "num": self.num,
            "shard_size": self.shard_size,
            "format": self.format,
            "labels_sha256": hashlib.sha256(self.labels.tobytes()).hexdigest(),
        }


def make_plan(
    run: dict[str, Any], labels: np.ndarray, shard_size: int, format: ShardFormat
) -> Plan:
    """A plan; its description is what JSON gives back.

    Raises:
        ValueError: for no labels, or shards of no samples.
    """
    if shard_size < 1 or not len(labels):
        raise ValueError(
            f"shard_size and the number of samples must be at least 1, got "
            f"{shard_size} and {len(labels)}."
        )
    run = json.loads(json.dumps(jsonable(run), default=str))
    return Plan(run, np.asarray(labels, np.int32), shard_size, format)


def write_plan(out: Path, plan: Plan) -> None:
    """Write the plan: labels, then what makes them count."""
    with atomic(out / LABELS) as temporary, temporary.open("wb") as file:
        np.save(file, plan.labels, allow_pickle=False)
    write_text(out / PLAN, json.dumps(plan.description(), indent=1) + "\n")


def read_plan(out: Path) -> Plan | None:
    """The plan of a directory; ``None`` if it has none.

    Raises:
        ValueError: if it is damaged.
    """
    path = out / PLAN
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        labels = np.load(out / LABELS, allow_pickle=False)
        plan = Plan(found["run"], labels, found["shard_size"], found["format"])
        whole = plan.description() == found
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise ValueError(
            f"{path} or its {LABELS} is damaged ({error}); delete the directory, or "
            f"choose another with --out."
        ) from error
    if not whole:
        raise ValueError(
            f"{path} and {LABELS} do not belong together; delete the directory, or "
            f"choose another with --out."
        )
    return plan


def check_plan(out: Path, plan: Plan, resume: bool) -> bool:
    """Whether the directory already has this very plan.

    Raises:
        FileExistsError: if it has another, whose differences are named; this one
            without ``resume``; or foreign files.
        ValueError: if its plan is damaged.
    """
    found = read_plan(out)
    if found is None:
        foreign = [p.name for p in out.iterdir() if not p.name.startswith(".")]
        if foreign and foreign != [LABELS]:
            raise FileExistsError(
                f"{out} must be empty or hold this run, found "
                f"{', '.join(sorted(foreign)[:3])}; choose another with --out."
            )
        return False
    differing = differences(plan.description(), found.description())
    if differing:
        raise FileExistsError(
            f"{out} holds another run: {'; '.join(differing[:6])}. Choose another "
            f"directory with --out, or delete this one."
        )
    if not resume:
        raise FileExistsError(
            f"{out} holds this very run already; add --resume to go on, or delete it."
        )
    return True
