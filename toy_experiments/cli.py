"""The command ``toy-experiments``: list, run, redraw and report experiments."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from gmm_guidance import MeshConfig
from gmm_guidance._runtime.files import jsonable
from gmm_guidance._runtime.interruption import Interrupted
from gmm_guidance._runtime.reporter import Reporter
from toy_experiments.claims import CLAIMS, judge_all, write_ledger
from toy_experiments.common.experiment import Config, Experiment
from toy_experiments.common.style import figure_style
from toy_experiments.common.workspace import Workspace, versions, write_results
from toy_experiments.registry import EXPERIMENTS
from toy_experiments.report import write_report

_EPILOG = """\
Options of an experiment's configuration go after its name:
  toy-experiments run distributions --num-samples 2000 --guidance.cfg-scale 4
  toy-experiments run distributions --help
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        if options.command == "list":
            return _list(rest, parser)
        if options.command == "claims":
            return _claims(options, rest, parser)
        if options.command == "report":
            return _report(options, rest, parser)
        names = _names(options.names)
        if options.command == "draw":
            return _draw(names, Path(options.out), rest, parser)
        return _run(names, options, rest)
    except (ValueError, OSError) as error:
        print(f"toy-experiments: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(
            "\ntoy-experiments: interrupted; run the same command to go on.",
            file=sys.stderr,
        )
        number = error.signal if isinstance(error, Interrupted) else signal.SIGINT
        return 128 + number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="toy-experiments",
        description="Guidance on Gaussian mixtures beside the exact answer.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the experiments")
    run = commands.add_parser(
        "run",
        help="run experiments",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,  # --help belongs to the experiment once one is named
    )
    run.add_argument("names", nargs="*", help="experiments, or 'all'")
    run.add_argument("--quick", action="store_true", help="small runs: minutes for all")
    run.add_argument("--out", default="results", help="results folder (results)")
    run.add_argument("--seeds", type=int, help="training seeds")
    run.add_argument("--fresh", action="store_true", help="ignore stored cells")
    run.add_argument(
        "--mesh", help="devices that divide seeds and samples: data=8 (one device)"
    )
    run.add_argument("-h", "--help", action="store_true", help="show this and exit")
    draw = commands.add_parser("draw", help="redraw figures from stored results")
    draw.add_argument("names", nargs="+", help="experiments, or 'all'")
    draw.add_argument("--out", default="results", help="results folder (results)")
    claims = commands.add_parser("claims", help="judge published claims by the results")
    claims.add_argument("--out", default="results", help="results folder (results)")
    claims.add_argument("--page", help="the page to write (claims.md in the folder)")
    report = commands.add_parser("report", help="one page of all results")
    report.add_argument("--out", default="results", help="results folder (results)")
    report.add_argument("--page", help="the file to write (report.html in the folder)")
    parser.set_defaults(run_parser=run)
    return parser


def _names(names: Sequence[str]) -> list[Experiment]:
    if "all" in names:
        return list(EXPERIMENTS.values())
    for name in names:
        if name not in EXPERIMENTS:
            near = difflib.get_close_matches(name, EXPERIMENTS, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"unknown experiment {name!r}.{hint} Known: {', '.join(EXPERIMENTS)}."
            )
    return [EXPERIMENTS[name] for name in dict.fromkeys(names)]


def _list(rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    if rest:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    width = max(len(name) for name in EXPERIMENTS)
    for name, experiment in EXPERIMENTS.items():
        print(f"{name:{width}}  {experiment.summary}")
    return 0


def _run(
    experiments: list[Experiment], options: argparse.Namespace, rest: list[str]
) -> int:
    if options.help and len(experiments) != 1:
        options.run_parser.print_help()
        return 0
    if not experiments:
        options.run_parser.error("name an experiment, or 'all'")
    if options.help:
        rest = [*rest, "--help"]
    # All configurations are checked before anything is computed.
    configs = [_configure(e, options, rest) for e in experiments]
    mesh = MeshConfig.parse(options.mesh).build() if options.mesh else None
    started = time.monotonic()
    written: list[Path] = []
    with Reporter() as reporter:
        workspace = Workspace(options.out, reporter, options.fresh, mesh)
        for experiment, config in zip(experiments, configs, strict=True):
            reporter.say(f"{experiment.name}: {experiment.summary}")
            begun = time.monotonic()
            metrics, data = experiment.compute(config, workspace)
            record = {
                "experiment": experiment.name,
                "seeds": config.seeds,
                **_shared(config),
                "config": dataclasses.asdict(config),
                "versions": versions(),
                **metrics,
            }
            record = jsonable(record)
            folder = workspace.folder(experiment.name)
            written += _write(experiment, folder, record, data)
            for line in experiment.summarise(record):
                reporter.say(f"  {line}")
            reporter.say(f"  done in {time.monotonic() - begun:.0f} s")
        reporter.say(f"finished in {time.monotonic() - started:.0f} s; written:")
        for path in written:
            reporter.say(f"  {path}")
    return 0


def _shared(config: Any) -> dict[str, Any]:
    """What figures of several experiments read, where a configuration has it."""
    return {"std": config.std} if hasattr(config, "std") else {}


def _write(experiment: Experiment, folder: Path, record: Any, data: Any) -> list[Path]:
    with figure_style():
        return write_results(folder, record, data, experiment.draw(record, data))


def _configure(
    experiment: Experiment, options: argparse.Namespace, rest: Sequence[str]
) -> Config:
    """The configuration from --quick, --seeds and the experiment's own options."""
    default = experiment.config.quick() if options.quick else experiment.config()
    if options.seeds is not None:
        default = dataclasses.replace(default, seeds=options.seeds)
    return tyro.cli(
        experiment.config,
        prog=f"toy-experiments run {experiment.name}",
        description=experiment.summary,
        args=list(rest),
        default=default,
    )


def _draw(
    experiments: list[Experiment],
    out: Path,
    rest: Sequence[str],
    parser: argparse.ArgumentParser,
) -> int:
    if rest:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    for experiment in experiments:
        folder = out / experiment.name
        if not (folder / "metrics.json").exists():
            raise ValueError(
                f"no results of {experiment.name} in {folder}; run it first."
            )
        record = json.loads((folder / "metrics.json").read_text())
        with np.load(folder / "data.npz") as file:
            data = dict(file)
        for path in _write(experiment, folder, record, data):
            print(path)
    return 0


def _claims(
    options: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser
) -> int:
    if rest:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    out = Path(options.out)
    page = out / "claims.md" if options.page is None else Path(options.page)
    rows = judge_all(CLAIMS, out)
    write_ledger(rows, out, page)
    for row in rows:
        print(f"{row['verdict']:18} {row['claim']}")
    print(out / "claims.json")
    print(page)
    return 0


def _report(
    options: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser
) -> int:
    if rest:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    page = None if options.page is None else Path(options.page)
    print(write_report(Path(options.out), page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
