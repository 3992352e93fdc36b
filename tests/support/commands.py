"""Command lines run inside the test's own process."""

from __future__ import annotations

from typing import Any, NamedTuple

from full_models import cli


class Ended(NamedTuple):
    """Exit status and what was printed."""

    status: int
    out: str
    err: str


def run_cli(capsys: Any, *arguments: Any) -> Ended:
    """Run ``full-models`` with arguments of any type."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as error:  # options that cannot be parsed
        status = int(error.code or 0)
    return Ended(status, *capsys.readouterr())
