"""What a stored result depends on: its function, that function's code, its arguments.

The identity is derived from the arguments themselves, field by field and array by
array, so that no argument can be left out of it; what cannot be identified is an error.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import gmm_guidance

_ROOT = Path(gmm_guidance.__file__).parents[1]
_PARSING = threading.Lock()  # CPython 3.11 cannot parse in two threads at once
_PACKAGES = ("gmm_guidance", "full_models", "toy_experiments")


def digest_of(function: Callable[..., Any], arguments: Any) -> str:
    """Twenty hexadecimal digits of function, code, JAX version and arguments.

    Raises:
        TypeError: for an argument that cannot be identified.
    """
    everything = {
        "function": f"{function.__module__}.{function.__qualname__}",
        "code": code_version(function.__module__),
        "jax": jax.__version__,
        "arguments": identity(arguments),
    }
    text = json.dumps(everything, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def identity(value: Any) -> Any:
    """A value as JSON that is equal for equal values only.

    Dataclasses by class and fields, arrays by their bytes, other pytrees (networks,
    mixtures) by structure and arrays, functions and classes by name.

    Raises:
        TypeError: for anything else.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        return ["key", identity(jax.random.key_data(value))]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(value)
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return [str(array.dtype), list(array.shape), digest]
    if isinstance(value, (list, tuple)):
        return [identity(v) for v in value]
    if isinstance(value, Mapping):
        return [[identity(k), identity(v)] for k, v in value.items()]
    if callable(value) and hasattr(value, "__qualname__"):
        if "<" not in value.__qualname__:  # no lambda, nothing defined in a function
            return f"{value.__module__}.{value.__qualname__}"
    elif dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return [f"{type(value).__module__}.{type(value).__qualname__}"] + [
            [f.name, identity(getattr(value, f.name))] for f in fields
        ]
    else:
        leaves, structure = jax.tree.flatten(value)
        if not any(leaf is value for leaf in leaves):
            # Modules hold functions, whose representation has their address.
            text = re.sub(r" at 0x[0-9a-f]+", "", str(structure))
            return [text, [identity(leaf) for leaf in leaves]]
    raise TypeError(
        f"arguments of a stored computation must be plain values, arrays, dataclasses, "
        f"pytrees or functions of a module, got {value!r}."
    )


@functools.cache
def code_version(module: str) -> str:
    """Hash of the sources of a module."""
    digest = hashlib.sha256()
    with _PARSING:
        found = sources(module)
    for name, source in sorted(found.items()):
        digest.update(name.encode() + b"\0" + source + b"\0")
    return digest.hexdigest()


def sources(module: str) -> dict[str, bytes]:
    """The source of a module and of all it imports of these packages, by name."""
    found: dict[str, bytes] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        path = _source_path(name)
        if path is not None and name not in found:
            found[name] = path.read_bytes()
            todo += _imports(path)
    return found


def _source_path(name: str) -> Path | None:
    """The file of a module, or ``None`` for a name that is no module."""
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if loaded:
        return Path(loaded)
    path = _ROOT.joinpath(*name.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def _imports(path: Path) -> tuple[str, ...]:
    """Names in these packages that a file imports; some may be no modules."""
    names = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(n for n in names if n.partition(".")[0] in _PACKAGES)
