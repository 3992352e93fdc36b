"""Guidance rules on networks trained on the digits: distances, accuracies, verdicts."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from full_models.digits.comparison import (
    Entry,
    at_the_same_scale,
    best_against_cfg,
    best_settings,
    measures_over_runs,
)
from full_models.digits.data import HELD_OUT, Digits, load_digits
from full_models.digits.evaluation_figures import write_figures
from full_models.digits.evaluation_table import summary, write_table
from full_models.digits.features import digits_classifier
from full_models.digits.measures import Measure
from full_models.digits.rules import RULES, Setting, settings
from full_models.digits.runs import VERSIONS, DigitsRun, read_run, write_json
from full_models.digits.samples import SampleStore, Sampling, SolverName
from full_models.digits.sheets import NUM_CLASSES
from gmm_guidance._runtime.files import jsonable
from gmm_guidance._runtime.reporter import Reporter
from gmm_guidance._runtime.tensor_files import differences

_CHOOSING, _SCORING = 0, 1  # sampling keys
_SHEET_ROWS = 2


_FEWEST = 100  # samples: some of every class


@dataclasses.dataclass(frozen=True)
class DigitsEvaluation:
    """Evaluation of guidance rules on trained networks.

    Attributes:
        runs: training folders, of the same training with different seeds; intervals are
            over them.
        lengths: training lengths, among the kept steps of the runs; all by default.
        last_length_only: take the longest of them alone.
        num_samples: samples of each rule and network, at most 540: they have the
            classes of as many held-out images.
        solver: ``"dpmpp_2m"`` or ``"heun"``.
        steps: steps of the solver.
        scales: total scales of CFG and AutoGuidance, with 1 (off) among them.
        s2_scales: weights of the terms of S², Naive S² and SkipLayer, > 0.
        num_masks: weak passes of Naive S² at a step.
        sheet_scale: scale of the sheet of samples, among ``scales``.
        sheet_weight: weight in the sheet and in the figure over scales, among
            ``s2_scales``.
    """

    runs: tuple[Path, ...] = ()
    lengths: tuple[int, ...] = ()
    last_length_only: bool = False
    num_samples: int = HELD_OUT
    solver: SolverName = "dpmpp_2m"
    steps: int = 10
    scales: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 3.0)
    s2_scales: tuple[float, ...] = (0.1, 0.25, 0.5)
    num_masks: int = 4
    sheet_scale: float = 1.5
    sheet_weight: float = 0.25

    def __post_init__(self):
        if not _FEWEST <= self.num_samples <= HELD_OUT:
            raise ValueError(
                f"num_samples must be from {_FEWEST} to {HELD_OUT}, the number of "
                f"held-out images, got {self.num_samples}."
            )
        if self.solver not in ("dpmpp_2m", "heun"):
            raise ValueError(
                f"solver must be 'dpmpp_2m' or 'heun', got {self.solver!r}."
            )
        if self.steps < 2 or self.num_masks < 1:
            raise ValueError(
                f"steps must be at least 2 and num_masks at least 1, got {self.steps} "
                f"and {self.num_masks}."
            )
        if 1.0 not in self.scales or len(set(self.scales)) < len(self.scales):
            raise ValueError(
                f"scales must have 1 (off) among them and each once, got {self.scales}."
            )
        if not self.s2_scales or min(self.s2_scales) <= 0:
            raise ValueError(f"s2_scales must be > 0, got {self.s2_scales}.")
        for name, value, known in (
            ("sheet_scale", self.sheet_scale, self.scales),
            ("sheet_weight", self.sheet_weight, self.s2_scales),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value}.")

    @classmethod
    def quick(cls, runs: tuple[Path, ...] = ()) -> DigitsEvaluation:
        """One run, its last network, few settings: to see that all works."""
        return cls(
            runs=runs[:1],
            last_length_only=True,
            num_samples=180,
            steps=8,
            scales=(1.0, 1.5),
            s2_scales=(0.25,),
        )


def evaluate_digits(
    config: DigitsEvaluation, out: Path, reporter: Reporter
) -> list[Path]:
    """Sample every rule, measure, compare and draw; returns the files written.

    Samples are kept in ``out/cells``: an evaluation that was interrupted, or one with
    other settings, draws only what is missing.

    Raises:
        FileNotFoundError: for a run that is not there.
        ValueError: for runs that do not belong together, or a length they did not keep.
        ImportError: without scikit-learn.
    """
    begun = time.monotonic()
    runs = _read_runs(config)
    lengths = _lengths(config, runs)
    out = Path(out)
    digits = load_digits()
    measure = Measure(digits, digits_classifier(), config.num_samples)
    sampling = Sampling(config.solver, config.steps, config.num_masks)
    store = SampleStore(out / "cells", sampling, measure.labels)
    results: list[Entry] = []
    done: dict[tuple[int, Setting, int], list[dict[str, float]]] = {}

    def fill(length: int, wanted: list[Setting], key: int) -> None:
        missing = [s for s in dict.fromkeys(wanted) if (length, s, key) not in done]
        done.update(_measure_all(store, measure, runs, length, missing, key, reporter))

    for length in lengths:
        grid = settings(config.scales, config.s2_scales, length > runs[0].steps[0])
        fill(length, [s for row in grid.values() for s in row], _CHOOSING)

        def chosen(setting: Setting, length: int = length) -> list[dict[str, float]]:
            return done[length, setting, _CHOOSING]

        def scored(setting: Setting, length: int = length) -> list[dict[str, float]]:
            return done[length, setting, _SCORING]

        best = best_settings(grid, chosen)
        fill(length, list(best.values()), _SCORING)
        results.append(
            {
                "length": length,
                "settings": [
                    {"rule": rule, "scale": s.scale, "weight": s.weight}
                    | measures_over_runs(chosen(s))
                    for rule in RULES
                    if rule in grid
                    for s in grid[rule]
                ],
                "same_scale": at_the_same_scale(grid, chosen),
                "best": best_against_cfg(best, scored),
            }
        )
    record = jsonable(
        {
            "kind": "full_models.digits evaluation",
            "config": _config_record(config),
            "versions": VERSIONS,
            "runs": [
                {
                    "name": run.path.name,
                    "training": run.config,
                    "networks": {step: run.digest(step) for step in lengths},
                }
                for run in runs
            ],
            "sampling_keys": {"choosing": _CHOOSING, "scoring": _SCORING},
            "floors": measure.floors(),
            "lengths": results,
            "seconds": time.monotonic() - begun,
        }
    )
    written = [write_json(out / "metrics.json", record), write_table(out, record)]
    blocks = _sheet(config, store, runs[0], lengths[-1], digits)
    written += write_figures(out, record, blocks)
    for line in [*summary(record), *(str(path) for path in written)]:
        reporter.say(f"  {line}")
    return written


def _measure_all(
    store: SampleStore,
    measure: Measure,
    runs: list[DigitsRun],
    length: int,
    wanted: list[Setting],
    key: int,
    reporter: Reporter,
) -> dict[tuple[int, Setting, int], list[dict[str, float]]]:
    """Measures of each run under settings of one length."""
    items = _compiling_first([(setting, run) for setting in wanted for run in runs])
    purpose = "choosing" if key == _CHOOSING else "scoring"
    with reporter.task(f"{length} steps, {purpose}", len(items)) as task:
        drawn: list[float] = []

        def one(item: tuple[Setting, DigitsRun]) -> dict[str, float]:
            setting, run = item
            is_new = not store.is_stored(run, length, setting, key)
            begun = time.monotonic()
            values = measure(store.samples(run, length, setting, key))
            if is_new:
                drawn.append(time.monotonic() - begun)
            speed = f", {np.mean(drawn):.0f} s each" if drawn else ""
            task.advance(detail=f"{setting}, {run.path.name}{speed}")
            return values

        # Two workers: programs this small keep little more than one core busy each.
        with ThreadPoolExecutor(2) as pool:
            try:
                values = list(pool.map(one, items))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    found = {
        (setting, run.path): v for (setting, run), v in zip(items, values, strict=True)
    }
    return {
        (length, setting, key): [found[setting, run.path] for run in runs]
        for setting in wanted
    }


def _compiling_first(
    items: list[tuple[Setting, DigitsRun]],
) -> list[tuple[Setting, DigitsRun]]:
    """One item of each program first, so that two workers do not compile the same."""
    programs: set[tuple[str, bool]] = set()
    first: list[tuple[Setting, DigitsRun]] = []
    rest: list[tuple[Setting, DigitsRun]] = []
    for setting, run in items:
        program = (setting.rule, setting.scale == 1.0)
        (rest if program in programs else first).append((setting, run))
        programs.add(program)
    return first + rest


def _read_runs(config: DigitsEvaluation) -> list[DigitsRun]:
    """The runs, of one training with different seeds."""
    if not config.runs:
        raise ValueError("runs must name at least one training folder, got none.")
    runs = [read_run(path) for path in config.runs]
    first = runs[0]
    for other in runs[1:]:
        differing = differences(
            first.config | {"seed": None}, other.config | {"seed": None}
        )
        if differing:
            raise ValueError(
                f"{other.path} is no repetition of {first.path} with another seed: "
                f"{'; '.join(differing)}. Evaluate them apart."
            )
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"runs must have different training seeds, got {seeds}; the same run twice "
            f"would make intervals too narrow."
        )
    return runs


def _lengths(config: DigitsEvaluation, runs: list[DigitsRun]) -> tuple[int, ...]:
    kept = runs[0].steps
    missing = [n for n in config.lengths if n not in kept]
    if missing:
        raise ValueError(
            f"no network was kept at {missing} steps; the runs kept {list(kept)}."
        )
    lengths = tuple(sorted(set(config.lengths))) or kept
    return lengths[-1:] if config.last_length_only else lengths


def _config_record(config: DigitsEvaluation) -> dict[str, Any]:
    record = dataclasses.asdict(config)
    return record | {"runs": [path.name for path in config.runs]}


def _sheet(
    config: DigitsEvaluation,
    store: SampleStore,
    run: DigitsRun,
    length: int,
    digits: Digits,
) -> dict[str, np.ndarray]:
    """Images by rule, from the same noise, at one scale and weight."""
    grid = settings(
        (1.0, config.sheet_scale), (config.sheet_weight,), length > run.steps[0]
    )
    labels = store.labels
    rows = min(_SHEET_ROWS, int(np.bincount(labels, minlength=NUM_CLASSES).min()))
    places = np.stack(
        [np.flatnonzero(labels == c)[:rows] for c in range(NUM_CLASSES)], axis=1
    ).reshape(-1)
    blocks = {"held-out\nimages": digits.held_images[places]}
    for rule, row in grid.items():
        images = store.samples(run, length, row[-1], _CHOOSING)
        blocks[rule] = images[places]
    return blocks
