"""Progress of a run: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """A display of tasks and their progress; used as a context manager."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(self, *details: Any) -> None:
        self._progress.stop()

    def task(self, name: str, total: int) -> Task:
        """Start a task of ``total`` units."""
        return Task(self, name, total)

    def say(self, text: str) -> None:
        """Print a permanent line, brackets in it as they are."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Task:
    """A task of a ``Reporter``; as a context manager it removes its bar at the end."""

    def __init__(self, reporter: Reporter, name: str, total: int):
        self._reporter = reporter
        self._name = name
        self._total = total
        self._done = 0
        self._bar = reporter._progress.add_task(name, total=total, detail="")
        self._started = self._line = time.monotonic()

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *details: Any) -> None:
        self._reporter._progress.remove_task(self._bar)

    def detail(self, text: str) -> None:
        """Show what is being done."""
        self._reporter._progress.update(self._bar, detail=text)

    def advance(self, units: int = 1, detail: str | None = None) -> None:
        """Count ``units`` more as done."""
        self.move_to(self._done + units, detail)

    def move_to(self, done: int, detail: str | None = None) -> None:
        """Count ``done`` units of the task as done."""
        self._done = done
        if detail is not None:
            self.detail(detail)
        self._reporter._progress.update(self._bar, completed=done)
        now = time.monotonic()
        quiet = not self._reporter.console.is_terminal
        if quiet and now - self._line > _SECONDS_BETWEEN_LINES:
            self._line = now
            self._reporter.say(
                f"{self._name}: {done}/{self._total} after {now - self._started:.0f} s"
                + (f", {detail}" if detail else "")
            )
