"""Progress of a run: bars on a terminal, a line now and then elsewhere.

In a notebook the line stays in its place and is drawn again, which needs no widgets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.errors import LiveError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_UPDATES = 0.5
_BAR_WIDTH = 30
_LONG_SECONDS = 3600.0  # what is left of a task that deserves a warning


class Reporter:
    """A display of tasks and their progress; used as a context manager."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        # rich counts notebooks as terminals, but shows nothing there without widgets.
        self.has_bars = self.console.is_terminal and not self.console.is_jupyter
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=self.console,
            disable=not self.has_bars,
        )

    def __enter__(self) -> Reporter:
        if not self.has_bars:
            return self
        try:
            self._progress.start()
        except LiveError:  # within a display of the caller, where rich nests none
            self.has_bars = False
        return self

    def __exit__(self, *details: Any) -> None:
        if self.has_bars:  # else rich before 13.8 prints an empty line
            self._progress.stop()

    def task(self, name: str, total: int) -> Task:
        """Start a task of ``total`` units."""
        return Task(self, name, total)

    def say(self, text: str) -> None:
        """Print a permanent line, brackets in it as they are."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Task:
    """A task of a ``Reporter``; as a context manager it removes its bar at the end.

    The time left is estimated as soon as there is a speed: from ``begin``, or from the
    first progress, which is likely to have compiled something. More than an hour is
    announced once in a line of its own.
    """

    def __init__(self, reporter: Reporter, name: str, total: int):
        self._reporter = reporter
        self._name = name
        self._total = total
        self._done = 0
        self._bar = reporter._progress.add_task(name, total=total, detail="", left="")
        self._started = self._line = time.monotonic()
        self._from: tuple[int, float] | None = None  # where the speed is measured from
        self._warned = False
        self._cell: Any = None  # what a notebook shows

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *details: Any) -> None:
        self._reporter._progress.remove_task(self._bar)

    def detail(self, text: str) -> None:
        """Show what is being done."""
        self._reporter._progress.update(self._bar, detail=text)

    def begin(self, done: int = 0) -> None:
        """Measure the speed from here on, with ``done`` units done already."""
        self._from = done, time.monotonic()
        self.move_to(done)

    def seconds_left(self) -> float | None:
        """Estimated seconds to the end; ``None`` without a speed."""
        if self._from is None or self._done <= self._from[0]:
            return None
        seconds = time.monotonic() - self._from[1]
        return seconds * (self._total - self._done) / (self._done - self._from[0])

    def advance(self, units: int = 1, detail: str | None = None) -> None:
        """Count ``units`` more as done."""
        self.move_to(self._done + units, detail)

    def move_to(self, done: int, detail: str | None = None) -> None:
        """Count ``done`` units of the task as done."""
        self._done = done
        if detail is not None:
            self.detail(detail)
        now = time.monotonic()
        if self._from is None and done > 0:
            self._from = done, now
        left = self.seconds_left()
        soon = f"{duration(left)} left" if left else ""
        self._reporter._progress.update(self._bar, completed=done, left=soon)
        if left is not None and left > _LONG_SECONDS and not self._warned:
            self._warned = True
            self._reporter.say(
                f"warning: {self._name} takes about {duration(left)} more; Ctrl-C ends "
                f"it"
            )
        if self._reporter.has_bars:
            return
        text = f"{self._name}: {done}/{self._total} after {now - self._started:.0f} s"
        text += "".join(f", {part}" for part in (detail, soon) if part)
        if self._reporter.console.is_jupyter:
            if done >= self._total or now - self._line > _SECONDS_BETWEEN_UPDATES:
                self._line = now
                self._show_in_cell(text)
        elif now - self._line > _SECONDS_BETWEEN_LINES:
            self._line = now
            self._reporter.say(text)

    def _show_in_cell(self, text: str) -> None:
        """A bar and a line in the output of a notebook's cell."""
        from IPython.display import display

        filled = round(_BAR_WIDTH * self._done / max(self._total, 1))
        bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
        shown = {"text/plain": f"{bar} {text}"}
        if self._cell is None:
            self._cell = display(shown, raw=True, display_id=True)
        else:
            self._cell.update(shown, raw=True)


def duration(seconds: float) -> str:
    """A time as people say it: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def is_watched() -> bool:
    """Whether what is printed goes to a terminal or a notebook."""
    console = Console()
    return console.is_terminal or console.is_jupyter


_listeners: list[Callable[[int], None]] = []


@contextmanager
def listening(listener: Callable[[int], None]) -> Iterator[None]:
    """Tell ``listener`` the steps that compiled programs report meanwhile."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def report_step(step: Any) -> None:
    """For ``jax.debug.callback``: a number of steps done, told to the last listener."""
    for listener in _listeners[-1:]:
        listener(int(step))
