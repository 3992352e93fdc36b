"""The command ``full-models``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from full_models.commands.calibrate import Calibrate, calibrate
from full_models.commands.compare import Compare, compare
from full_models.commands.generate import Generate, generate
from full_models.commands.pack import Pack, run_pack
from full_models.commands.sample import Sample, sample
from full_models.commands.statistics import Features, Statistics, extract, statistics
from full_models.commands.sweep import Sweep, sweep
from full_models.generation.processes import LostProcess, check_devices, is_first
from gmm_guidance._runtime.cli import run_command
from gmm_guidance._runtime.reporter import Reporter

_COMMANDS: dict[str, tuple[type, Any]] = {
    "sample": (Sample, sample),
    "compare": (Compare, compare),
    "generate": (Generate, generate),
    "pack": (Pack, run_pack),
    "sweep": (Sweep, sweep),
    "calibrate": (Calibrate, calibrate),
    "features": (Features, extract),
    "statistics": (Statistics, statistics),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(
        "full-models",
        lambda: _run(arguments),
        resume="run the same command again to resume",
        statuses={LostProcess: 3},
    )


def _run(arguments: Sequence[str] | None) -> None:
    command = tyro.extras.subcommand_cli_from_dict(
        {name: options for name, (options, _) in _COMMANDS.items()},
        prog="full-models",
        description="Diffusion transformers under S²-Guidance.",
        config=(tyro.conf.OmitArgPrefixes,),
        args=None if arguments is None else list(arguments),
    )
    run = dict(_COMMANDS.values())[type(command)]
    if isinstance(command, (Sample, Generate, Sweep)):
        command.processes.start()
    check_devices()
    with Reporter() as reporter:
        written: list[Path] = run(command, reporter)
        if not is_first():
            return
        if written:
            reporter.say("written:")
        for path in written:
            if path.parent.name != "images":  # not each single image
                reporter.say(f"  {path}")


if __name__ == "__main__":
    sys.exit(main())
