"""Results as tables of records, and the statistics over training seeds in them.

``metrics.json`` of every experiment holds ``experiment``, ``seeds``, ``config``,
``versions`` and ``tables``: lists of records by name. A record is flat. Its fields are
identifiers; a value is a string, a number, a boolean, ``null``, a list of these, or a
measurement over seeds::

    {"mean": 0.41, "standard_error": 0.02, "interval_95": [0.35, 0.47],
     "seeds": [0.40, 0.44, 0.39]}

Fields without measurements say where a record belongs (``mixture``, ``rule``,
``scale``, ``steps``, ...), and readers select records by them: nothing is ever encoded
in the name of a table or field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmm_guidance.metrics import confidence_interval, mean_and_standard_error

Record = dict[str, Any]
Tables = dict[str, list[Record]]
Metrics = dict[str, Any]


def measurement(values: Sequence[float] | np.ndarray) -> Record:
    """Mean, standard error and 95 % interval of one value per seed."""
    numbers = np.asarray(values, np.float64)
    mean, error = mean_and_standard_error(numbers)
    low, high = confidence_interval(numbers)
    return {
        "mean": float(mean),
        "standard_error": float(error),
        "interval_95": [float(low), float(high)],
        "seeds": numbers.tolist(),
    }


def exact_value(value: float) -> Record:
    """A measurement without sampling noise, the same for every seed."""
    return {"mean": float(value), "standard_error": 0.0}


def over_seeds(values: Sequence[Mapping[str, float]]) -> Record:
    """A measurement of each field of one mapping per seed."""
    return {name: measurement([v[name] for v in values]) for name in values[0]}


def is_measurement(value: Any) -> bool:
    """Whether a field holds a measurement over seeds."""
    return isinstance(value, dict) and value.keys() >= {"mean", "standard_error"}


def select(metrics: Metrics, table: str, **fields: Any) -> list[Record]:
    """The records of a table whose fields have the given values."""
    return [
        record
        for record in metrics["tables"][table]
        if all(record[name] == value for name, value in fields.items())
    ]


def single(metrics: Metrics, table: str, **fields: Any) -> Record:
    """The one record of a table whose fields have the given values.

    Raises:
        ValueError: if there is none, or more than one.
    """
    found = select(metrics, table, **fields)
    if len(found) != 1:
        raise ValueError(
            f"table {table!r} must have one record with {fields}, got {len(found)}."
        )
    return found[0]


def distinct(records: Sequence[Record], field: str) -> list[Any]:
    """The values of a field, each once, in the order of the records."""
    return list(dict.fromkeys(record[field] for record in records))


def paired_change(record: Record, reference: Record, name: str) -> Record:
    """Measurement of ``record - reference`` of a field, seed by seed."""
    return measurement(np.subtract(record[name]["seeds"], reference[name]["seeds"]))


def verdict(change: Record) -> str:
    """What the interval of a change of distance says.

    Returns:
        ``"closer"`` or ``"farther"`` if it lies on one side of zero, else
        ``"undecided"``.
    """
    low, high = change["interval_95"]
    if high < 0:
        return "closer"
    return "farther" if low > 0 else "undecided"


def plus_minus(entry: Record, digits: int = 3) -> str:
    """``mean ± standard error``; the mean alone where there is no error."""
    text = f"{entry['mean']:.{digits}f}"
    error = entry["standard_error"]
    return f"{text} ± {error:.{digits}f}" if error else text
