"""Means over training seeds, paired differences, and rules at their best setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gmm_guidance as gg
from full_models.digits.measures import MEASURES
from full_models.digits.rules import CFG, WITH_TERM, Setting

Entry = dict[str, Any]
#: Values of ``MEASURES`` under a setting: ``values(setting)[run][measure]``.
Values = Callable[[Setting], Sequence[dict[str, float]]]


def over_runs(numbers: Sequence[float]) -> Entry:
    """Mean, standard error and 95 % interval over runs; without them for one run."""
    array = np.asarray(numbers, np.float64)
    result: Entry = {"mean": float(array.mean()), "runs": array.tolist()}
    if len(array) < 2:
        return result | {"standard_error": math.nan, "interval_95": [math.nan] * 2}
    _, error = gg.metrics.mean_and_standard_error(array)
    low, high = gg.metrics.confidence_interval(array)
    return result | {
        "standard_error": float(error),
        "interval_95": [float(low), float(high)],
    }


def measures_over_runs(values: Sequence[dict[str, float]]) -> Entry:
    """``over_runs`` of every measure."""
    return {name: over_runs([v[name] for v in values]) for name in MEASURES}


def difference(
    ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]]
) -> Entry:
    """Paired differences of Fréchet distance and accuracy, and what they say."""
    result = {
        name: over_runs([a[name] - b[name] for a, b in zip(ours, theirs, strict=True)])
        for name in ("frechet", "accuracy")
    }
    return result | {"verdict": verdict(result["frechet"])}


def verdict(change: Entry) -> str:
    """Whether an interval of distances lies below zero, above it, or neither."""
    low, high = change["interval_95"]
    if high < 0.0:
        return "closer"
    return "farther" if low > 0.0 else "undecided"


def at_the_same_scale(grid: dict[str, list[Setting]], values: Values) -> list[Entry]:
    """Every rule with a term minus CFG at the same scale, setting by setting."""
    cfg = _by_scale(grid)
    return [
        setting._asdict() | difference(values(setting), values(cfg[setting.scale]))
        for rule in WITH_TERM
        for setting in grid[rule]
    ]


def best_settings(grid: dict[str, list[Setting]], values: Values) -> dict[str, Setting]:
    """The setting of each rule with the least mean Fréchet distance over the runs."""

    def distance(setting: Setting) -> float:
        return float(np.mean([v["frechet"] for v in values(setting)]))

    return {rule: min(settings, key=distance) for rule, settings in grid.items()}


def best_against_cfg(best: dict[str, Setting], values: Values) -> list[Entry]:
    """Each rule at its best setting, and minus CFG at its own best.

    ``values`` should be of other samples than those that chose the settings.
    """
    reference = values(best[CFG])
    result = []
    for rule, setting in best.items():
        entry: Entry = {"rule": rule, "scale": setting.scale, "weight": setting.weight}
        entry |= measures_over_runs(values(setting))
        if setting != best[CFG]:  # both may be no guidance: nothing to compare
            entry["minus_cfg"] = difference(values(setting), reference)
        result.append(entry)
    return result


def _by_scale(grid: dict[str, list[Setting]]) -> dict[float, Setting]:
    return {setting.scale: setting for setting in grid[CFG]}
