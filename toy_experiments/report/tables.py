"""Tables of numbers: nested records, flattened, as HTML."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from html import escape
from typing import Any

from toy_experiments.common.experiment import Metrics

# Of a record, the keys that are no measurements.
ABOUT_THE_RUN = ("experiment", "seeds", "std", "config", "versions")
_ENTRY = {"mean", "standard_error"}  # keys of a measurement over seeds
_CLAIM_COLUMNS = (
    "claim",
    "source",
    "regime",
    "effect",
    "interval",
    "verdict",
    "evidence",
)
_VERDICTS = {"holds": "good", "holds in a regime": "part", "does not hold": "bad"}


def flatten(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple, Any]]:
    """Leaves of nested dicts with their paths; a measurement over seeds is a leaf."""
    if isinstance(value, dict) and not _is_entry(value):
        for key, part in value.items():
            yield from flatten(part, (*path, str(key)))
        return
    yield path, value
    if _is_entry(value):
        known = _ENTRY | {"interval_95", "seeds"}
        for key, part in value.items():
            if key not in known:
                yield from flatten(part, (*path, str(key)))


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= _ENTRY


def numbers_table(record: Metrics) -> str:
    """Every measurement of a record, grouped by where it stands in it."""
    measured = {k: v for k, v in record.items() if k not in ABOUT_THE_RUN}
    leaves = list(flatten(measured))
    entries = any(_is_entry(value) for _, value in leaves)
    titles = ["metric", "value"]
    if entries:
        titles = ["metric", "mean", "± standard error", "95 % interval", "each seed"]
    rows, group = [], None
    for path, value in leaves:
        if path[:-1] != group:
            group = path[:-1]
            heading = escape(" / ".join(group)) or "the whole run"
            rows.append(
                f'<tr class="group"><th colspan="{len(titles)}" scope="rowgroup">'
                f"{heading}</th></tr>"
            )
        cells = [show(value)]
        if entries:
            cells = _entry_cells(value) if _is_entry(value) else [*cells, "", "", ""]
        tail = "".join(f"<td>{c}</td>" for c in cells)
        rows.append(f'<tr><th scope="row">{escape(path[-1])}</th>{tail}</tr>')
    return _table(titles, rows)


def _entry_cells(entry: Metrics) -> list[str]:
    interval = entry.get("interval_95")
    return [
        show(entry["mean"]),
        show(entry["standard_error"], 3),
        "" if interval is None else _interval(interval),
        show(entry["seeds"]) if "seeds" in entry else "",
    ]


def _interval(ends: list[Any]) -> str:
    return f"{show(ends[0])} to {show(ends[1])}"


def config_table(record: Metrics) -> str:
    """The configuration of a run."""
    rows = [
        f'<tr><th scope="row">{escape(".".join(path))}</th><td>{show(value)}</td></tr>'
        for path, value in flatten(record["config"])
    ]
    return _table(["option", "value"], rows)


def claims_table(claims: list[Metrics], sections: Collection[str]) -> str:
    """The claims ledger: the verdict in words and in colour.

    Args:
        claims: rows of the ledger.
        sections: names of the experiments that the page shows; evidence links to them.
    """
    rows = []
    for claim in claims:
        cells = "".join(
            f"<td>{_claim_cell(name, claim.get(name, ''), sections)}</td>"
            for name in _CLAIM_COLUMNS
        )
        rows.append(f"<tr>{cells}</tr>")
    return _table(list(_CLAIM_COLUMNS), rows, "claims")


def _claim_cell(name: str, value: Any, sections: Collection[str]) -> str:
    if name == "interval" and isinstance(value, list) and len(value) == 2:
        return _interval(value)
    text = "" if value == [] else show(value)
    if name == "verdict":
        return f'<span class="verdict {verdict_class(text)}">{text}</span>'
    if name == "evidence" and value in sections:
        return f'<a href="#{text}">{text}</a>'
    return text


def verdict_class(text: str) -> str:
    """The class of a verdict's words; ``open`` for those that decide nothing."""
    return _VERDICTS.get(text.strip().lower().rstrip("."), "open")


def show(value: Any, digits: int = 6) -> str:
    """A value as escaped text."""
    if value is None:
        return "undefined"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(show(v, digits) for v in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{escape(str(k))} {show(v)}" for k, v in value.items())
    return escape(str(value))


def _table(titles: list[str], rows: list[str], kind: str = "numbers") -> str:
    """A table in a container of its own, which scrolls where the page is narrow."""
    head = "".join(f'<th scope="col">{escape(t)}</th>' for t in titles)
    body = "\n".join(rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table">'
        f'<table class="{kind}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
