"""What the report is made of: read from a results folder, checked, never changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gmm_guidance._runtime.npz import read_arrays
from gmm_guidance._runtime.schema import Object, checked, read_json
from toy_experiments.common.experiment import Experiment
from toy_experiments.common.records import Metrics
from toy_experiments.common.store import Arrays
from toy_experiments.report.tables import CLAIM_COLUMNS

EXPLORER = "explorer"  # whose arrays feed the interactive panels
_REMEDY = "run it again: toy-experiments run"


class _Record(msgspec.Struct):
    """What the page takes from ``metrics.json``."""

    config: Object
    versions: dict[str, str]
    tables: dict[str, list[Object]] = {}
    seeds: int | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """A PNG file, and its size in pixels."""

    content: bytes
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Result:
    """One experiment's results.

    Attributes:
        experiment: the entry of the registry.
        record: what ``metrics.json`` holds.
        figures: PNG files by name.
        lines: what the run printed at its end.
    """

    experiment: Experiment
    record: Metrics
    figures: dict[str, Figure]
    lines: list[str]


@dataclasses.dataclass(frozen=True)
class Collection:
    """Everything in a results folder.

    Attributes:
        results: of the experiments that have some, in the registry's order.
        missing: the other experiments.
        claims: rows of the claims ledger, or ``None`` without one.
        explorer: record and arrays of the panels, or ``None`` without them.
    """

    results: list[Result]
    missing: list[Experiment]
    claims: list[Metrics] | None
    explorer: tuple[Metrics, Arrays] | None


def collect(out: Path, experiments: Mapping[str, Experiment]) -> Collection:
    """Read a results folder.

    Args:
        out: the folder.
        experiments: those that may have results in it.

    Raises:
        ValueError: if the folder or all results are missing, or a file is damaged.
    """
    if not out.is_dir():
        raise ValueError(
            f"there is no results folder {out}; run experiments first "
            f"(toy-experiments run all), or name the folder with --out."
        )
    results, missing = [], []
    for name, experiment in experiments.items():
        if (out / name / "metrics.json").exists():
            results.append(_result(out / name, experiment))
        else:
            missing.append(experiment)
    if not results:
        raise ValueError(
            f"no experiment has results in {out}; run some first "
            f"(toy-experiments run all), or name another folder with --out."
        )
    explorer = None
    for result in results:
        if result.experiment.name == EXPLORER:
            explorer = result.record, _arrays(out / EXPLORER / "data.npz")
    return Collection(results, missing, _claims(out / "claims.json"), explorer)


def _result(folder: Path, experiment: Experiment) -> Result:
    path = folder / "metrics.json"
    try:
        record = read_json(path, Object)
        checked(record, _Record, path)
    except ValueError as error:
        raise ValueError(f"{error} {_REMEDY} {experiment.name}.") from error
    try:
        lines = experiment.summarize(record)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path} does not hold what this version of {experiment.name} writes "
            f"({type(error).__name__}: {error}); {_REMEDY} {experiment.name}."
        ) from error
    figures = {
        p.stem: _figure(p, experiment.name)
        for p in sorted(folder.glob("*.png"), key=lambda p: (p.stem != "overview", p))
        if not p.name.startswith(".")  # being written by a run
    }
    return Result(experiment, record, figures, lines)


def _figure(path: Path, name: str) -> Figure:
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG") or b"IEND" not in content[-16:]:
        raise ValueError(
            f"{path} is damaged; draw it again: toy-experiments draw {name}."
        )
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    return Figure(content, width, height)


def _arrays(path: Path) -> Arrays:
    try:
        return read_arrays(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is missing or damaged ({error}); {_REMEDY} {EXPLORER}."
        ) from error


def _claims(path: Path) -> list[Metrics] | None:
    if not path.exists():
        return None
    try:
        return read_json(path, list[Object])
    except ValueError as error:
        raise ValueError(
            f"{error} It must hold a list of claims, each an object with the keys "
            f"{', '.join(CLAIM_COLUMNS)}; make it again: toy-experiments claims."
        ) from error
