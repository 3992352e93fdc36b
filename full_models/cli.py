"""The command ``full-models``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from full_models.commands.calibrate import Calibrate
from full_models.commands.compare import Compare
from full_models.commands.embed_prompts import EmbedPrompts
from full_models.commands.generate import Generate
from full_models.commands.pack import Pack
from full_models.commands.sample import Sample
from full_models.commands.statistics import Features, Statistics
from full_models.commands.sweep import Sweep
from full_models.generation.processes import LostProcess, check_devices, is_first
from gmm_guidance._runtime.cli import run_command
from gmm_guidance._runtime.progress import Reporter

_COMMANDS: dict[str, Callable[..., Any]] = {
    "sample": Sample,
    "compare": Compare,
    "generate": Generate,
    "pack": Pack,
    "sweep": Sweep,
    "calibrate": Calibrate,
    "embed-prompts": EmbedPrompts,
    "features": Features,
    "statistics": Statistics,
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
        _COMMANDS,
        prog="full-models",
        description="Large diffusion models under S²-Guidance.",
        config=(tyro.conf.OmitArgPrefixes,),
        args=None if arguments is None else list(arguments),
    )
    if hasattr(command, "processes"):
        command.processes.start()
    check_devices()
    with Reporter() as reporter:
        written: list[Path] = command.run(reporter)
        if not is_first():
            return
        if written:
            reporter.say("written:")
        for path in written:
            if path.parent.name != "images":  # not each single image
                reporter.say(f"  {path}")


if __name__ == "__main__":
    sys.exit(main())
