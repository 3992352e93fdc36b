"""The command ``full-models``."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from full_models.commands.calibrate import Calibrate, calibrate
from full_models.commands.compare import Compare, compare
from full_models.commands.digits import (
    EvaluateDigits,
    TrainDigits,
    run_evaluation,
    run_training,
)
from full_models.commands.generate import Generate, generate
from full_models.commands.pack import Pack, run_pack
from full_models.commands.sample import Sample, sample
from full_models.commands.statistics import Features, Statistics, extract, statistics
from full_models.commands.sweep import Sweep, sweep
from full_models.generation.processes import LostProcess, check_devices, is_first
from gmm_guidance._runtime.interruption import Interrupted
from gmm_guidance._runtime.reporter import Reporter

_Command = (
    Annotated[Sample, tyro.conf.subcommand("sample", prefix_name=False)]
    | Annotated[Compare, tyro.conf.subcommand("compare", prefix_name=False)]
    | Annotated[Generate, tyro.conf.subcommand("generate", prefix_name=False)]
    | Annotated[Pack, tyro.conf.subcommand("pack", prefix_name=False)]
    | Annotated[Sweep, tyro.conf.subcommand("sweep", prefix_name=False)]
    | Annotated[Calibrate, tyro.conf.subcommand("calibrate", prefix_name=False)]
    | Annotated[Features, tyro.conf.subcommand("features", prefix_name=False)]
    | Annotated[Statistics, tyro.conf.subcommand("statistics", prefix_name=False)]
    | Annotated[TrainDigits, tyro.conf.subcommand("train-digits", prefix_name=False)]
    | Annotated[
        EvaluateDigits, tyro.conf.subcommand("evaluate-digits", prefix_name=False)
    ]
)

_RUN: dict[type, Any] = {
    Sample: sample,
    Compare: compare,
    Generate: generate,
    Pack: run_pack,
    Sweep: sweep,
    Calibrate: calibrate,
    Features: extract,
    Statistics: statistics,
    TrainDigits: run_training,
    EvaluateDigits: run_evaluation,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    with contextlib.suppress(ValueError):  # not in the main thread
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminate)
    try:
        command: Any = tyro.cli(
            _Command,
            prog="full-models",
            description="Diffusion transformers under S²-Guidance.",
            config=(tyro.conf.OmitArgPrefixes,),
            args=None if arguments is None else list(arguments),
        )
        if isinstance(command, (Sample, Generate, Sweep)):
            command.processes.start()
        check_devices()
        with Reporter() as reporter:
            written: list[Path] = _RUN[type(command)](command, reporter)
            if not is_first():
                return 0
            if written:
                reporter.say("written:")
            for path in _shown(written):
                reporter.say(f"  {path}")
    except (ValueError, OSError, MemoryError, ImportError) as error:
        print(f"full-models: {_text(error)}", file=sys.stderr)
        return 2
    except LostProcess as error:
        print(f"full-models: {error}", file=sys.stderr)
        return 3
    except Interrupted as error:
        how = "with --resume " if isinstance(command, Generate) else ""
        print(
            f"\nfull-models: {error}; the same command {how}goes on.", file=sys.stderr
        )
        return 128 + error.signal
    except KeyboardInterrupt as error:
        print("\nfull-models: interrupted.", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    return 0


def _text(error: Exception) -> str:
    """A message of ours without the number of the system's error before it."""
    ours = isinstance(error, OSError) and error.strerror and error.filename is None
    return error.strerror if ours else str(error)  # type: ignore[attr-defined]


def _terminate(number: int, frame: Any) -> None:
    """End like an interruption: temporary files are removed on the way."""
    raise KeyboardInterrupt(number)


def _shown(paths: list[Path]) -> list[Path]:
    """The paths, without the single images."""
    return [path for path in paths if path.parent.name != "images"]


if __name__ == "__main__":
    sys.exit(main())
