"""Checks of the presets' arguments, which return them as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def check_positive(name: str, value: float) -> float:
    """A positive and finite number."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}.")
    return float(value)


def check_count(name: str, value: int, least: int = 1) -> int:
    """An integer of at least ``least``."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value}.")
    return int(value)


def check_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise unless ``value`` is among ``allowed``."""
    if value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}."
        )


def cyclic_labels(num_labels: int | None, count: int, what: str) -> np.ndarray:
    """Labels of ``count`` components in turn, or one label each for ``None``."""
    if num_labels is None:
        return np.arange(count)
    num_labels = check_count("num_labels", num_labels)
    if num_labels > count:
        raise ValueError(
            f"num_labels must be at most {what} = {count}, got {num_labels}: every "
            f"label needs a component. Lower num_labels or raise {what}."
        )
    return np.arange(count) % num_labels
