"""Run measurements and write them to benchmarks/results/NAME.json.

Measurements against other packages need the ``oracle`` extra, ``smalldiffusion`` what
its module names. A measurement replaces its own entries of an existing file only.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_RESULTS = Path(__file__).parent / "results"
_ONE_BLOCK = {"cases": ((1, 1),)}
_DEVICE = {"name": "DiT-XL/2", "batch": 32, "compute_dtype": "bfloat16"}

# Name of a measurement: module, function and arguments of each of its parts.
MEASUREMENTS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "scores": [("mixture_speed", "scores", {})],
    "sampling": [("mixture_speed", "exact_cfg_sampling", {})],
    "training": [("training_speed", "exact_target_training", {})],
    "s2": [("s2_overhead", "s2_overhead", {})],
    "distances": [("distances", "distances", {})],
    "smalldiffusion": [("smalldiffusion_speed", "smalldiffusion_speed", {})],
    "dit-deep": [("s2_overhead", "dit_overhead", {"depth": 28})],
    "dit-s": [("s2_overhead", "dit_overhead", {"batch": 2, **_ONE_BLOCK})],
    "dit-run": [("s2_overhead", "dit_run", {"batch": 1, "repeats": 2, "depth": 28})],
    "diffusers": [
        ("diffusers_dit", "diffusers_dit", {}),
        ("diffusers_dit", "diffusers_dit", {"kind": "identity"}),
    ],
    "perturbations": [("perturbation_cost", "perturbation_cost", {})],
    "selection": [("block_selection", "block_selection", {})],
    "tree": [("tree_figure", "tree_figure", {"out": _RESULTS / "tree_figure.png"})],
    "first-run": [("first_run", "first_run", {"commands": ("run paper",)})],
    "first-run-quick": [("first_run", "first_run", {"commands": ("run all --quick",)})],
    "first-run-all": [("first_run", "first_run", {"commands": ("run all",)})],
    "weak-scaling": [("weak_scaling", "weak_scaling", {})],
    "growth": [("growth", "growth", {"out": _RESULTS / "growth-{name}.png"})],
    # For an accelerator; a CPU would take hours.
    "device-xl": [
        ("s2_overhead", "dit_overhead", _DEVICE),
        ("s2_overhead", "dit_run", _DEVICE),
        ("block_selection", "block_selection", _DEVICE),
    ],
}
for _size, _repeats in (("b", 2), ("l", 1), ("xl", 1)):
    _case = {"name": f"DiT-{_size.upper()}/2", "repeats": _repeats, **_ONE_BLOCK}
    MEASUREMENTS[f"dit-{_size}"] = [("s2_overhead", "dit_overhead", _case)]


def run(measurement: str, name: str) -> dict[str, Any]:
    """The results of a measurement, by title."""
    results: dict[str, Any] = {}
    for module, function, arguments in MEASUREMENTS[measurement]:
        part = getattr(importlib.import_module(f"benchmarks.{module}"), function)
        if "out" in arguments:
            out = Path(str(arguments["out"]).format(name=name))
            arguments = {**arguments, "out": out}
        results |= part(**arguments)
    return results


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", default="cpu", help="name of the results file")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=MEASUREMENTS,
        metavar="MEASUREMENT",
        default=[name for name in MEASUREMENTS if name != "device-xl"],
        help=f"measurements to run, of {', '.join(MEASUREMENTS)}; all but device-xl "
        "by default",
    )
    options = parser.parse_args()
    from benchmarks.harness import machine

    _RESULTS.mkdir(exist_ok=True)
    path = _RESULTS / f"{options.name}.json"
    record = json.loads(path.read_text()) if path.exists() else {"results": {}}
    # Measurements may be taken on different days, under different load.
    machines = record.setdefault("machines", {})
    console = Console()
    for measurement in options.only:
        console.print(f"{measurement} ...")
        machines[measurement] = machine()
        found = run(measurement, options.name)
        record["results"].update(found)
        for title, entry in found.items():
            table = Table(title=title, show_header=False, title_justify="left")
            for key, value in entry.items():
                shown = f"{value:.4g}" if isinstance(value, float) else str(value)
                table.add_row(key, shown)
            console.print(table)
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        temporary.replace(path)
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
