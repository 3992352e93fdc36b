"""All axes of growth, measured and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.growth.axes import AXES, FULL, QUICK
from benchmarks.growth.figure import growth_figure
from benchmarks.weak_scaling import growth_with_devices, weak_scaling


def growth(out: Path, quick: bool = False) -> dict[str, Any]:
    """Measure every axis and draw the figure; ``quick`` only tries the program."""
    sizes = QUICK if quick else FULL
    results = {}
    for measure in AXES:
        entry = measure(sizes)
        results[f"growth with {entry['axis']}"] = entry
    if not quick:
        results |= growth_with_devices(weak_scaling())
    growth_figure(results, out)
    return results
