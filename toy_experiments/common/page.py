"""The part of a documentation page that is written from stored results."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from gmm_guidance._runtime.files import atomic, write_text
from toy_experiments.common.experiment import Experiment
from toy_experiments.common.records import Metrics

_DPI = 130  # for a browser; files below 200 kB


def marks(name: str) -> tuple[str, str]:
    """The lines of a page between which the results of an experiment are written."""
    begin = f"<!-- results: written by toy-experiments draw {name} --page -->"
    return begin, f"<!-- end of results of {name} -->"


def write_page(
    page: Path, experiment: Experiment, metrics: Metrics, figures: dict[str, Figure]
) -> list[Path]:
    """Write the results of an experiment and its figures into a page.

    Args:
        page: the page, with the two marks.
        experiment: an experiment with a ``page``.
        metrics: contents of its ``metrics.json``.
        figures: its figures; those that the text refers to are written.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: if there is no such page.
        ValueError: if the experiment has no page, or the page has no marks.
    """
    if experiment.page is None:
        raise ValueError(f"{experiment.name} writes no page.")
    before, begin, rest = page.read_text().partition(marks(experiment.name)[0])
    _, end, after = rest.partition(marks(experiment.name)[1])
    if not end:
        lines = " and ".join(marks(experiment.name))
        raise ValueError(f"{page} must hold the lines {lines}.")
    body = experiment.page(metrics)
    written = [write_text(page, f"{before}{begin}\n\n{body}\n\n{end}{after}")]
    for name, figure in figures.items():
        short = f"figures/{experiment.name}_{name.removeprefix('figure_')}.png"
        if short in body:
            path = page.parent / short
            path.parent.mkdir(exist_ok=True)
            with atomic(path) as temporary:
                figure.savefig(temporary, dpi=_DPI)
            written.append(path)
    return written
