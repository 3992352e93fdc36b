"""Tables of numbers: the records of an experiment, as HTML."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from html import escape
from typing import Any

from toy_experiments.common.records import Metrics, Record, is_measurement

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
    """Leaves of nested dicts with their paths."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from flatten(part, (*path, str(key)))
    else:
        yield path, value


def numbers_table(metrics: Metrics) -> str:
    """Every number of an experiment, record by record."""
    titles = ["metric", "mean", "± standard error", "95 % interval", "each seed"]
    rows = []
    for name, records in metrics["tables"].items():
        for record in records:
            heading, values = _split(record)
            text = ", ".join(f"{k} {show(v)}" for k, v in heading.items())
            rows.append(
                f'<tr class="group"><th colspan="{len(titles)}" scope="rowgroup">'
                f"{escape(name)}{': ' if text else ''}{text}</th></tr>"
            )
            for field, value in values.items():
                cells = [show(value), "", "", ""]
                if is_measurement(value):
                    cells = _entry_cells(value)
                tail = "".join(f"<td>{c}</td>" for c in cells)
                rows.append(f'<tr><th scope="row">{escape(field)}</th>{tail}</tr>')
    return _table(titles, rows)


def _split(record: Record) -> tuple[Record, Record]:
    """What says where a record belongs, and its numbers."""
    measured = any(is_measurement(value) for value in record.values())
    kind = dict if measured else float
    values = {k: v for k, v in record.items() if isinstance(v, kind)}
    return {k: v for k, v in record.items() if k not in values}, values


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
    """The claims ledger: the verdict in words and in color.

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
