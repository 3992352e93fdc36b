"""What an experiment is: a configuration, a computation and a drawing."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Collection
from typing import Any, ClassVar, Literal, Self

from matplotlib.figure import Figure

from toy_experiments.common.records import Metrics, Tables
from toy_experiments.common.store import Arrays, Store

Group = Literal["paper", "analysis", "related", "images"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Base configuration of all experiments.

    Attributes:
        seeds: training seeds, at least 2.
        num_samples: samples of each rule and seed, at least 64.
        num_steps: steps of the sampler.
    """

    seeds: int = 5
    num_samples: int = 4096
    num_steps: int = 32

    #: Fields of the quick run that differ from the defaults.
    QUICK: ClassVar[dict[str, Any]] = {"seeds": 2}
    #: Fields of the full run that differ from the defaults.
    FULL: ClassVar[dict[str, Any]] = {}

    def __post_init__(self):
        if self.seeds < 2:
            raise ValueError(
                f"seeds must be at least 2, since standard errors and intervals are "
                f"over seeds, got {self.seeds}."
            )
        check_at_least(64, num_samples=self.num_samples)
        check_at_least(1, num_steps=self.num_steps)

    @classmethod
    def quick(cls) -> Self:
        """A smaller run of the same experiment."""
        return cls(**cls.QUICK)

    @classmethod
    def full(cls) -> Self:
        """A longer run of the same experiment."""
        return cls(**cls.FULL)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One entry of the command line.

    Attributes:
        name: as typed.
        group: the group it belongs to.
        summary: one line.
        config: its configuration class.
        compute: configuration and store to tables of records and plotted arrays.
        draw: contents of ``metrics.json`` and arrays to figures by file name; needs
            nothing else.
        summarize: contents of ``metrics.json`` to the lines printed at the end.
        page: contents of ``metrics.json`` to a part of a documentation page, in
            Markdown, with figures ``figures/<experiment>_<figure>.png``.
        needs: a module beyond the default installation that ``compute`` imports, and
            the extra that installs it.
    """

    name: str
    group: Group
    summary: str
    config: type[Config]
    compute: Callable[[Any, Store], tuple[Tables, Arrays]]
    draw: Callable[[Metrics, Arrays], dict[str, Figure]]
    summarize: Callable[[Metrics], list[str]]
    page: Callable[[Metrics], str] | None = None
    needs: tuple[str, str] | None = None

    @property
    def missing_extra(self) -> str | None:
        """The extra that must be installed before it can run; ``None`` if it can."""
        if self.needs is None or importlib.util.find_spec(self.needs[0]) is not None:
            return None
        return self.needs[1]


def check_at_least(least: float, **values: float) -> None:
    """Raise ``ValueError`` for values below ``least``."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_among(known: Collection[Any], known_name: str, **values: Any) -> None:
    """Raise ``ValueError`` for values, or members of tuples, that are not known."""
    for name, value in values.items():
        wanted = value if isinstance(value, tuple) else (value,)
        missing = sorted(set(wanted) - set(known))
        if missing or not wanted:
            raise ValueError(
                f"{name} must be among {known_name} {known}, got {missing or value}."
            )


def check_ascending(**values: tuple[float, ...]) -> None:
    """Raise ``ValueError`` for fewer than 2 numbers, or numbers not ascending."""
    for name, value in values.items():
        if len(value) < 2 or list(value) != sorted(set(value)):
            raise ValueError(
                f"{name} must be 2 or more ascending numbers, got {value}."
            )
