"""A grid of settings from one file: each field may list several values."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_RULES = "rules"


class Cell(NamedTuple):
    """One setting of a grid.

    Attributes:
        name: of its directory: what tells it apart.
        options: values by field.
    """

    name: str
    options: dict[str, Any]


def read_grid(path: Path, fields: dict[str, Any]) -> list[Cell]:
    """The settings of a TOML file.

    Its top level holds options common to all; each table ``[[rules]]`` holds a ``name``
    and further options. Any option may be a list of values: all combinations are taken.
    Options whose value is itself a list (``window``) are lists of lists then.

    Args:
        path: the file.
        fields: the options that there are, with a value of their type each.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no TOML, has unknown options or values of another type,
            lacks rules, or has two settings of one name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}.")
    try:
        found = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be TOML: {error}.") from error
    rules = found.pop(_RULES, None)
    if not isinstance(rules, list) or not rules:
        raise ValueError(
            f"{path} must have at least one table [[rules]] with a name and scales."
        )
    cells = [cell for rule in rules for cell in _cells(path, found, rule, fields)]
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"each setting of {path} must have a name of its own, but "
            f"{', '.join(twice[:3])} comes more than once; name the rules differently."
        )
    return cells


def _cells(
    path: Path, common: dict[str, Any], rule: dict[str, Any], fields: dict[str, Any]
) -> Iterator[Cell]:
    rule = dict(rule)
    name = rule.pop("name", None)
    if not isinstance(name, str) or not name or not name.replace("-", "").isalnum():
        raise ValueError(
            f"each [[rules]] of {path} needs a name of letters, digits and hyphens, "
            f"got {name!r}."
        )
    merged = common | rule
    unknown = sorted(merged.keys() - fields.keys())
    if unknown:
        raise ValueError(
            f"{path} has unknown options {', '.join(unknown)}; there are "
            f"{', '.join(sorted(fields))}."
        )
    lists = {key: _values(path, key, merged[key], fields[key]) for key in merged}
    varied = [key for key, values in lists.items() if len(values) > 1]
    for values in itertools.product(*lists.values()):
        options = dict(zip(lists, values, strict=True))
        parts = [f"{key}-{_word(options[key])}" for key in varied]
        yield Cell("_".join([name, *parts]), options)


def _values(path: Path, key: str, value: Any, like: Any) -> list[Any]:
    """The values of an option, each of the type of ``like``."""
    is_tuple = isinstance(like, tuple)
    several = isinstance(value, list) and (
        not is_tuple or any(isinstance(v, list) for v in value)
    )
    values = value if several else [value]
    if not values:
        raise ValueError(f"{path}: {key} must have at least one value, got none.")
    return [_typed(path, key, v, like) for v in values]


def _typed(path: Path, key: str, value: Any, like: Any) -> Any:
    if isinstance(like, tuple) and isinstance(value, list) and len(value) == len(like):
        return tuple(
            _typed(path, key, v, part) for v, part in zip(value, like, strict=True)
        )
    if isinstance(like, float) and type(value) is int:
        return float(value)
    if type(value) is not type(like):
        raise ValueError(
            f"{path}: {key} must be of the type of {like!r}, got {value!r}."
        )
    return value


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "")


def defaults_of(*configs: Any) -> dict[str, Any]:
    """Options of dataclasses with their defaults; those of ``None`` count as text."""
    return {
        field.name: ""
        if getattr(config, field.name) is None
        else getattr(config, field.name)
        for config in configs
        for field in dataclasses.fields(config)
    }
