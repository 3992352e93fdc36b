"""Tables of numbers: records, configurations and claims as rows of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from toy_experiments.common.records import Metrics, Record, is_measurement

NUMBER_COLUMNS = ("metric", "mean", "± standard error", "95 % interval", "each seed")
CLAIM_COLUMNS = (
    "claim",
    "source",
    "regime",
    "effect",
    "interval",
    "verdict",
    "evidence",
)
_VERDICTS = {"holds": "good", "holds in a regime": "part", "does not hold": "bad"}
Rows = list[tuple[str, list[str]]]


def flatten(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Leaves of nested dicts: the path with dots, and the value."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from flatten(part, (*path, str(key)))
    else:
        yield ".".join(path), show(value)


def number_groups(metrics: Metrics) -> Iterator[tuple[str, Rows]]:
    """Every number of an experiment: a heading and rows for each record."""
    for table, records in metrics["tables"].items():
        for record in records:
            heading, values = _split(record)
            text = ", ".join(f"{k} {show(v)}" for k, v in heading.items())
            rows = [(field, _cells(value)) for field, value in values.items()]
            yield f"{table}: {text}" if text else table, rows


def _split(record: Record) -> tuple[Record, Record]:
    """What says where a record belongs, and its numbers."""
    measured = any(is_measurement(value) for value in record.values())
    kind = dict if measured else float
    values = {k: v for k, v in record.items() if isinstance(v, kind)}
    return {k: v for k, v in record.items() if k not in values}, values


def _cells(value: Any) -> list[str]:
    if not is_measurement(value):
        return [show(value), "", "", ""]
    ends, seeds = value.get("interval_95"), value.get("seeds")
    error = show(value["standard_error"], 3)
    interval = "" if ends is None else _interval(ends)
    return [show(value["mean"]), error, interval, "" if seeds is None else show(seeds)]


def _interval(ends: list[Any]) -> str:
    return f"{show(ends[0])} to {show(ends[1])}"


def claim_text(claim: Metrics, column: str) -> str:
    """One cell of the claims ledger."""
    value = claim.get(column, "")
    if column == "interval" and isinstance(value, list) and len(value) == 2:
        return _interval(value)
    return "" if value == [] else show(value)


def verdict_class(text: str) -> str:
    """The class of a verdict's words; ``open`` for those that decide nothing."""
    return _VERDICTS.get(text.strip().lower().rstrip("."), "open")


def show(value: Any, digits: int = 6) -> str:
    """A value as text."""
    if value is None:
        return "undefined"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(show(v, digits) for v in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{k} {show(v)}" for k, v in value.items())
    return str(value)
