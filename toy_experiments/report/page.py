"""The page itself: one HTML file that needs nothing else, the same for same results."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import jinja2

from gmm_guidance._runtime.files import atomic
from gmm_guidance._runtime.schema import brief
from toy_experiments.common.experiment import Experiment
from toy_experiments.registry import EXPERIMENTS
from toy_experiments.report import tables
from toy_experiments.report.collect import EXPLORER, Collection, collect


def write_report(
    out: Path,
    page: Path | None = None,
    experiments: Mapping[str, Experiment] = EXPERIMENTS,
) -> Path:
    """Write the report of a results folder.

    Args:
        out: the results folder.
        page: the file to write; ``report.html`` in the folder by default.
        experiments: what may have results there.

    Returns:
        The path of the page.

    Raises:
        ValueError: if there are no results, or a file is damaged; nothing is written.
        OSError: if the page cannot be written.
    """
    html = build(collect(out, experiments))
    page = out / "report.html" if page is None else page
    if page.is_dir():
        raise ValueError(f"{page} is a folder; name a file with --page.")
    page.parent.mkdir(parents=True, exist_ok=True)
    with atomic(page) as temporary:
        temporary.write_text(html, encoding="utf-8", newline="\n")
    return page


def build(collection: Collection) -> str:
    """The page as text."""
    scripts: list[str] = []
    if collection.explorer is not None:
        # Here and not above: Bokeh takes half a second to import.
        from toy_experiments.report.panels import panel_scripts

        try:
            scripts = panel_scripts(*collection.explorer)
        except KeyError as error:
            raise _other(f"they lack {error}") from error
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise _other(brief(error)) from error
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    folder = files("toy_experiments.report")
    template = environment.from_string(folder.joinpath("template.html").read_text())
    return template.render(
        style=folder.joinpath("style.css").read_text(),
        versions=_versions(collection),
        collection=collection,
        scripts=scripts,
        tables=tables,
    )


def _other(what: str) -> ValueError:
    return ValueError(
        f"the results of {EXPLORER} are of another version: {what}; run it again: "
        f"toy-experiments run {EXPLORER}."
    )


def _versions(collection: Collection) -> str:
    found: dict[str, set[str]] = {}
    for result in collection.results:
        for name, version in result.record["versions"].items():
            found.setdefault(name, set()).add(str(version))
    return ", ".join(
        f"{name} {' and '.join(sorted(versions))}" for name, versions in found.items()
    )
