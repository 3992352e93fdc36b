"""Orbax as checkpoints need it: imported late, quiet, its errors of one kind."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax


class DamagedError(Exception):
    """A checkpoint that must not be used; the text says why."""


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """What reading a damaged file leads to, as one error."""
    reason = None
    with _without_complaints():
        try:
            yield
        except (DamagedError, PermissionError, MemoryError):
            raise
        except jax.errors.JaxRuntimeError:
            raise  # a device without memory, say: no fault of the files
        except Exception as error:
            # Damaged bytes may be anything, and so may be the error of their reader.
            reason = brief(error)
        if reason is not None:
            gc.collect()
            time.sleep(0.1)  # for reads under way
    if reason is not None:
        raise DamagedError(reason)


@contextlib.contextmanager
def _without_complaints() -> Iterator[None]:
    """Silences the other reads, which orbax abandons when one fails."""
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")

    def drop(record: Any) -> bool:
        return False

    sys.unraisablehook = drop
    log.addFilter(drop)
    try:
        yield
    finally:
        log.removeFilter(drop)
        sys.unraisablehook = hook


def brief(error: BaseException) -> str:
    """An error in a line that is not too long."""
    text = " ".join(str(error).split())
    if len(text) > 300:  # orbax names the place first and the cause last
        text = f"{text[:150]} ... {text[-145:]}"
    return f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Keeps orbax from printing: what went wrong is raised as well."""

    def is_of_others(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts

    log = logging.getLogger("absl")
    log.addFilter(is_of_others)
    try:
        yield
    finally:
        log.removeFilter(is_of_others)


def orbax() -> Any:
    """The package."""
    # Imported where it is needed: that takes a while.
    return importlib.import_module("orbax.checkpoint")
