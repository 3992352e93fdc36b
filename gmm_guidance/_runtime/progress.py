"""The progress bar of training; rich is imported only when one is shown."""

from __future__ import annotations

from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class TrainingBar:
    """A bar with loss, speed and time left, fed by ``TrainingProgress`` reports."""

    def __init__(self, description: str = "training"):
        self._description = description
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[speed]:.0f} steps/s"),
            TimeRemainingColumn(),
        )
        self._task: Any = None

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(self, *details: Any) -> None:
        self._bar.stop()

    def update(self, report: Any) -> None:
        """Show one report."""
        if self._task is None:
            self._task = self._bar.add_task(
                self._description, total=report.num_steps, loss=0.0, speed=0.0
            )
        self._bar.update(
            self._task,
            completed=report.step,
            loss=report.loss,
            speed=report.steps_per_second,
        )
