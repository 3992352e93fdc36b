"""The command ``toy-experiments``: list, run, redraw and report experiments."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import platformdirs
import tyro

from gmm_guidance import MeshConfig
from gmm_guidance._runtime.cli import run_command
from gmm_guidance._runtime.files import jsonable, write_text
from gmm_guidance._runtime.progress import Reporter
from toy_experiments.claims import CLAIMS, judge_all, write_ledger
from toy_experiments.common.experiment import Config, Experiment
from toy_experiments.common.page import write_page
from toy_experiments.common.records import Metrics
from toy_experiments.common.store import Arrays, Store, versions, write_results
from toy_experiments.common.style import figure_style
from toy_experiments.registry import EXPERIMENTS, GROUPS, find_experiments
from toy_experiments.report import write_report

Names = Annotated[tuple[str, ...], tyro.conf.Positional]


@dataclasses.dataclass(frozen=True)
class List:
    """List the experiments by group."""

    def __call__(self) -> None:
        """Print a line for each experiment."""
        width = max(len(name) for name in EXPERIMENTS)
        for group, about in GROUPS.items():
            print(f"{group}: {about}")
            for experiment in find_experiments([group]):
                print(f"  {experiment.name:{width}}  {experiment.summary}")


@dataclasses.dataclass(frozen=True)
class Run:
    """Run experiments.

    Options of an experiment's configuration go after its name, and `run NAME --help`
    shows them: toy-experiments run distributions --guidance.cfg-scale 4
    """

    names: Names
    """Experiments, groups (paper, analysis, related, images), or all."""
    quick: bool = False
    """Small runs, to check that everything works."""
    full: bool = False
    """Longer runs where an experiment has one, in the background of other work: longer
    training, more kinds of network."""
    out: Path = Path("results")
    """Results folder."""
    seeds: int | None = None
    """Number of training seeds."""
    fresh: bool = False
    """Compute everything again, also what is stored."""
    mesh: str = "data=1"
    """Devices that divide seeds and samples, such as data=8."""
    compile_cache: bool = True
    """Keep compiled programs in the user's cache folder, for later runs."""

    def __call__(self, rest: Sequence[str] = ()) -> None:
        """Check all configurations, then compute, write and draw."""
        if self.quick and self.full:
            raise ValueError("choose one of --quick and --full.")
        experiments, left_out = self._choose()
        configs = [self._configure(experiment, rest) for experiment in experiments]
        compile_sooner()
        mesh = MeshConfig.parse(self.mesh).build()
        started = time.monotonic()
        written: list[Path] = []
        with Reporter() as reporter:
            if self.compile_cache:
                keep_compiled_programs(reporter)
            # On one device nothing is divided: the program without a mesh.
            store = Store(
                self.out, reporter, self.fresh, mesh if mesh.size > 1 else None
            )
            for experiment in left_out:
                reporter.say(
                    f"{experiment.name}: skipped; install "
                    f"'gmm-guidance[{experiment.missing_extra}]' to run it"
                )
            for experiment, config in zip(experiments, configs, strict=True):
                reporter.say(f"{experiment.name}: {experiment.summary}")
                begun = time.monotonic()
                tables, data = experiment.compute(config, store)
                metrics = jsonable(
                    {
                        "experiment": experiment.name,
                        "seeds": config.seeds,
                        "config": dataclasses.asdict(config),
                        "versions": versions(),
                        "tables": tables,
                    }
                )
                folder = store.folder(experiment.name)
                written += _write(experiment, folder, metrics, data)
                for line in experiment.summarize(metrics):
                    reporter.say(f"  {line}")
                reporter.say(f"  done in {time.monotonic() - begun:.0f} s")
            reporter.say(f"finished in {time.monotonic() - started:.0f} s; written:")
            for path in written:
                reporter.say(f"  {path}")
            if len(experiments) > 1:
                reporter.say(f"report: {write_report(self.out)}")

    def _choose(self) -> tuple[list[Experiment], list[Experiment]]:
        """The experiments to run, and those of groups whose extra is not installed."""
        chosen = find_experiments(self.names)
        left_out = [e for e in chosen if e.missing_extra]
        for experiment in left_out:
            if experiment.name in self.names or len(left_out) == len(chosen):
                raise ValueError(
                    f"{experiment.name} needs the extra {experiment.missing_extra!r}, "
                    f"which is not installed; pip install "
                    f"'gmm-guidance[{experiment.missing_extra}]'."
                )
        return [e for e in chosen if not e.missing_extra], left_out

    def _configure(self, experiment: Experiment, rest: Sequence[str]) -> Config:
        """The configuration from --quick, --seeds and the experiment's own options."""
        default = experiment.config()
        if self.quick or self.full:
            default = getattr(experiment.config, "quick" if self.quick else "full")()
        if self.seeds is not None:
            default = dataclasses.replace(default, seeds=self.seeds)
        return tyro.cli(
            experiment.config,
            prog=f"toy-experiments run {experiment.name}",
            description=f"{experiment.summary}\n\nOptions of all experiments: "
            "toy-experiments run --help",
            args=list(rest),
            default=default,
        )


@dataclasses.dataclass(frozen=True)
class Draw:
    """Redraw figures from stored results."""

    names: Names
    """Experiments, groups, or all."""
    out: Path = Path("results")
    """Results folder."""
    page: Path | None = None
    """Page of the documentation whose part on the experiment is written anew."""

    def __call__(self) -> None:
        """Draw, and print the paths."""
        for experiment in find_experiments(self.names):
            folder = self.out / experiment.name
            if not (folder / "metrics.json").exists():
                raise ValueError(
                    f"no results of {experiment.name} in {folder}; run it first."
                )
            metrics = json.loads((folder / "metrics.json").read_text())
            with np.load(folder / "data.npz") as file:
                data = dict(file)
            written = _write(experiment, folder, metrics, data)
            if self.page is not None:
                with figure_style():
                    figures = experiment.draw(metrics, data)
                    written += write_page(self.page, experiment, metrics, figures)
            for path in written:
                print(path)


@dataclasses.dataclass(frozen=True)
class Claims:
    """Judge published claims by the results."""

    out: Path = Path("results")
    """Results folder."""
    page: Path | None = None
    """Page to write; claims.md in the results folder by default."""

    def __call__(self) -> None:
        """Write the ledger, and print each verdict."""
        page = self.page or self.out / "claims.md"
        rows = judge_all(CLAIMS, self.out)
        write_ledger(rows, self.out, page)
        for row in rows:
            print(f"{row['verdict']:18} {row['claim']}")
        print(self.out / "claims.json")
        print(page)


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one self-contained page of all results."""

    out: Path = Path("results")
    """Results folder."""
    page: Path | None = None
    """File to write; report.html in the results folder by default."""

    def __call__(self) -> None:
        """Write the page, and print its path."""
        print(write_report(self.out, self.page))


def compile_sooner() -> None:
    """Let XLA compile at its level 1: a fifth sooner, and as fast in these sizes.

    Without effect where JAX has computed before, or where the user has chosen a level.
    """
    flag, given = "--xla_backend_optimization_level", os.environ.get("XLA_FLAGS", "")
    if flag not in given:
        os.environ["XLA_FLAGS"] = f"{given} {flag}=1".strip()


def keep_compiled_programs(reporter: Reporter) -> None:
    """Let JAX keep compiled programs from run to run.

    Where the user has chosen a folder (``JAX_COMPILATION_CACHE_DIR``), it stays.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    folder = platformdirs.user_cache_path("gmm-guidance", appauthor=False) / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reporter.say(f"compiled programs are not kept: {folder}: {error.strerror}")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


_TYRO = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
_COMMANDS: dict[str, Callable[..., Any]] = {
    "list": List,
    "run": Run,
    "draw": Draw,
    "claims": Claims,
    "report": Report,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(
        "toy-experiments",
        lambda: _run(given),
        resume="run the same command again to resume",
    )


def _run(arguments: list[str]) -> None:
    if arguments[:1] != ["run"]:
        command = tyro.extras.subcommand_cli_from_dict(
            _COMMANDS,
            prog="toy-experiments",
            description="Guidance on mixtures with exact answers and on small images.",
            config=_TYRO,
            args=arguments,
        )
        command()
        return
    # Options of an experiment follow its name, and --help belongs to it.
    named = any(a in EXPERIMENTS for a in arguments)
    asked = [a for a in arguments if named and a in ("-h", "--help")]
    run, rest = tyro.cli(
        Run,
        prog="toy-experiments run",
        config=_TYRO,
        args=[a for a in arguments[1:] if a not in asked],
        return_unknown_args=True,
    )
    run([*rest, *asked])


def _write(
    experiment: Experiment, folder: Path, metrics: Metrics, data: Arrays
) -> list[Path]:
    with figure_style():
        written = write_results(folder, metrics, data, experiment.draw(metrics, data))
    if experiment.page is not None:
        written.append(write_text(folder / "table.md", experiment.page(metrics) + "\n"))
    return written


if __name__ == "__main__":
    sys.exit(main())
