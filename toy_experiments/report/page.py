"""The page itself: one HTML file that needs nothing else, the same for same results."""

from __future__ import annotations

import base64
import string
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path

from gmm_guidance._runtime.files import atomic
from toy_experiments.common.experiment import Experiment
from toy_experiments.registry import EXPERIMENTS
from toy_experiments.report.collect import EXPLORER, Collection, Result, collect
from toy_experiments.report.tables import claims_table, config_table, numbers_table


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
    shown, scripts = _panels(collection)
    return string.Template(_resource("template.html")).substitute(
        style=_resource("style.css"),
        versions=escape(_versions(collection)),
        contents=_contents(collection),
        claims=_claims(collection),
        panels=shown,
        experiments="\n".join(_section(r) for r in collection.results),
        missing=_missing(collection),
        scripts=scripts,
    )


def _resource(name: str) -> str:
    return files("toy_experiments.report").joinpath(name).read_text(encoding="utf-8")


def _versions(collection: Collection) -> str:
    found: dict[str, set[str]] = {}
    for result in collection.results:
        for name, version in result.record["versions"].items():
            found.setdefault(name, set()).add(str(version))
    return ", ".join(
        f"{name} {' and '.join(sorted(versions))}" for name, versions in found.items()
    )


def _contents(collection: Collection) -> str:
    links = [("claims", "Claims"), ("panels", "Panels")]
    links += [(r.experiment.name, r.experiment.name) for r in collection.results]
    if collection.missing:
        links.append(("missing", "Not run"))
    items = "".join(f'<li><a href="#{key}">{text}</a></li>' for key, text in links)
    return f"<ul>{items}</ul>"


def _claims(collection: Collection) -> str:
    if collection.claims is None:
        return (
            "<p>There is no ledger of claims in this results folder. "
            "<code>toy-experiments claims</code> writes it (<code>claims.json</code>); "
            "then make the report again.</p>"
        )
    if not collection.claims:
        return "<p>The ledger <code>claims.json</code> is empty.</p>"
    names = [r.experiment.name for r in collection.results]
    return claims_table(collection.claims, names)


def _panels(collection: Collection) -> tuple[str, str]:
    if collection.explorer is None:
        needed = f"<code>toy-experiments run {EXPLORER}</code>"
        return f"<p>The panels need the results of {needed}.</p>", ""
    # Here and not above: Bokeh takes a second to import.
    from toy_experiments.report.panels import panels

    return panels(*collection.explorer)


def _section(result: Result) -> str:
    name = result.experiment.name
    record = result.record
    figures = "\n".join(
        _figure(result, figure, content) for figure, content in result.figures.items()
    )
    lines = "".join(f"<li>{escape(line)}</li>" for line in result.lines)
    return f"""
<section class="experiment" id="{name}" aria-labelledby="{name}-title">
<h2 id="{name}-title">{name}</h2>
<p>{escape(result.experiment.summary)}</p>
<ul class="summary">{lines}</ul>
{figures}
<details><summary>Every number</summary>
{numbers_table(record)}
</details>
<details><summary>Configuration</summary>
{config_table(record)}
</details>
</section>"""


def _figure(result: Result, name: str, content: bytes) -> str:
    # An image's width and height, known before it is decoded: the page does not jump.
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    what = f"{result.experiment.name}, {name}"
    alt = f"{what}: {result.experiment.summary}. Its numbers are in the table below."
    encoded = base64.b64encode(content).decode()
    return f"""<figure>
<div class="scroll"><img alt="{escape(alt)}" width="{width}" height="{height}" \
src="data:image/png;base64,{encoded}"></div>
<figcaption>{escape(name)}
<label><input type="checkbox"> full size</label>
</figcaption>
</figure>"""


def _missing(collection: Collection) -> str:
    if not collection.missing:
        return ""
    items = "".join(
        f"<li><strong>{e.name}</strong>: {escape(e.summary)}. "
        f"<code>toy-experiments run {e.name}</code></li>"
        for e in collection.missing
    )
    return (
        '<section id="missing" aria-labelledby="missing-title">'
        '<h2 id="missing-title">Not run</h2>'
        "<p>These experiments have no results in this folder. Run them with the same "
        f"<code>--out</code>, then make the report again.</p><ul>{items}</ul></section>"
    )
