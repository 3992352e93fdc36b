"""Run all measurements and write ``benchmarks/results/<name>.json``.

python -m benchmarks [--name NAME] [--only scores training ...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.block_selection import block_selection
from benchmarks.diffusers_dit import diffusers_dit
from benchmarks.distances import distances
from benchmarks.dit_overhead import dit_overhead, dit_run
from benchmarks.growth.measure import growth
from benchmarks.harness import machine
from benchmarks.mixture_speed import exact_cfg_sampling, scores
from benchmarks.s2_overhead import s2_overhead
from benchmarks.smalldiffusion_speed import smalldiffusion_speed
from benchmarks.training_speed import exact_target_training
from benchmarks.tree_figure import tree_figure
from benchmarks.weak_scaling import weak_scaling

_ONE_BLOCK = ((1, 1),)
_RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--name", default="cpu", help="name of the results file")
    parser.add_argument("--only", nargs="+", help="some of the measurements")
    options = parser.parse_args()
    _RESULTS.mkdir(exist_ok=True)
    parts: dict[str, Any] = {
        "scores": scores,
        "sampling": exact_cfg_sampling,
        "training": exact_target_training,
        "s2": s2_overhead,
        "distances": distances,
        "smalldiffusion": smalldiffusion_speed,
        "dit-deep": lambda: dit_overhead("DiT-S/2", depth=28),
        "dit-s": lambda: dit_overhead("DiT-S/2", batch=2, cases=_ONE_BLOCK),
        "dit-b": lambda: dit_overhead("DiT-B/2", repeats=2, cases=_ONE_BLOCK),
        "dit-l": lambda: dit_overhead("DiT-L/2", repeats=1, cases=_ONE_BLOCK),
        "dit-xl": lambda: dit_overhead("DiT-XL/2", repeats=1, cases=_ONE_BLOCK),
        "dit-run": lambda: dit_run("DiT-S/2", batch=1, repeats=2, depth=28),
        "diffusers": diffusers_dit,
        "selection": block_selection,
        # For an accelerator: python -m benchmarks --name NAME --only device-xl ...
        "device-xl": lambda: (
            dit_overhead("DiT-XL/2", batch=32, compute_dtype="bfloat16")
            | dit_run("DiT-XL/2", batch=32, compute_dtype="bfloat16")
            | block_selection("DiT-XL/2", batch=32, compute_dtype="bfloat16")
        ),
        "tree": lambda: tree_figure(_RESULTS / "tree_figure.png"),
        "weak-scaling": weak_scaling,
        "growth": lambda: growth(_RESULTS / f"growth-{options.name}.png"),
    }
    path = _RESULTS / f"{options.name}.json"
    record = json.loads(path.read_text()) if path.exists() else {"results": {}}
    # Parts may be taken on different days, or under different load.
    machines = record.setdefault("machines", {})
    console = Console()
    # The last is for accelerators: a CPU would take hours.
    for name in options.only or [p for p in parts if p != "device-xl"]:
        console.print(f"{name} ...")
        machines[name] = machine()
        found = parts[name]()
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
