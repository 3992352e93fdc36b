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

from benchmarks.distances import distances
from benchmarks.harness import machine
from benchmarks.mixture_speed import exact_cfg_sampling, scores
from benchmarks.s2_overhead import s2_overhead
from benchmarks.smalldiffusion_speed import smalldiffusion_speed
from benchmarks.training_speed import exact_target_training
from benchmarks.tree_figure import tree_figure

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
        "tree": lambda: tree_figure(_RESULTS / "tree_figure.png"),
    }
    path = _RESULTS / f"{options.name}.json"
    record = json.loads(path.read_text()) if path.exists() else {"results": {}}
    record["machine"] = machine()
    console = Console()
    for name in options.only or parts:
        console.print(f"{name} ...")
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
