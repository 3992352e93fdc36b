"""Optional modules, imported at their first use: collection does not wait for them."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest


def needs(*names: str) -> pytest.MarkDecorator:
    """A mark that skips the tests where a module of the extra ``oracle`` is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    reason = f"needs the oracle extra: {', '.join(missing)}"
    return pytest.mark.skipif(bool(missing), reason=reason)


class Lazy:
    """Stands for a module."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
