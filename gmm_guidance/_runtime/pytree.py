"""Split any pytree into arrays, which are traced, and the rest, which is static.

Denoisers come as functions, Flax modules, Equinox modules (whose leaves may be
functions) or dataclasses of them; this lets all of them pass through ``jax.jit``.

Arrays are traced, everything else is structure; of a guidance rule, numbers are traced
too, so that a sweep of scales compiles once. What a function or an object that is no
pytree holds becomes a constant of the program. It is part of the program's identity, so
that replaced weights are never ignored: they cost a compilation.
"""

from __future__ import annotations

import functools
import types
import weakref
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_MOST_PARTS = 10_000  # objects searched for arrays behind one function


class Static:
    """The part of a pytree that is no array: hashable, compared by value."""

    def __init__(self, treedef: Any, leaves: tuple[Any, ...]):
        self.treedef = treedef
        self.leaves = leaves
        self._node_types = node_types(treedef)
        self._held = tuple(_held(leaf) for leaf in leaves if leaf is not None)

    @property
    def hidden_arrays(self) -> int:
        """How many arrays functions and objects hold, as constants of the program."""
        return sum(isinstance(part, _Same) for held in self._held for part in held)

    def __hash__(self) -> int:
        return hash((self.treedef, self.leaves))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Static)
            and self.treedef == other.treedef
            and self._node_types == other._node_types
            and self.leaves == other.leaves
            and self._held == other._held
        )


def node_types(treedef: Any) -> Any:
    """The classes of all nodes.

    JAX 0.10 takes the structures of two registered dataclasses for equal where only
    their classes differ: ``Unguided`` and ``Unconditional``, two networks of one shape.
    """
    data = treedef.node_data()
    children = tuple(node_types(child) for child in treedef.children())
    return (None if data is None else data[0], children)


def split(tree: Any) -> tuple[list[Any], Static]:
    """Arrays of a pytree (``None`` elsewhere), and its static part.

    Bound methods of pytrees, partial functions and bound Flax Linen modules are taken
    apart, so that the arrays that they hold are traced.

    Raises:
        TypeError: if a leaf is neither an array nor hashable.
    """
    tree = _opened(tree)
    leaves, treedef = jax.tree.flatten(tree)
    traced = _traced(tree)
    rest = tuple(None if t else x for x, t in zip(leaves, traced, strict=True))
    for leaf in rest:
        try:
            hash(leaf)
        except TypeError:
            raise TypeError(
                f"every part of a denoiser or rule must be an array or hashable; found "
                f"an unhashable {type(leaf).__name__}. Register its class as a pytree "
                f"(jax.tree_util.register_dataclass), or pass "
                f"jax.tree_util.Partial(function, arrays)."
            ) from None
    arrays = [x if t else None for x, t in zip(leaves, traced, strict=True)]
    return arrays, Static(treedef, rest)


def join(arrays: list[Any], static: Static) -> Any:
    """The pytree again."""
    leaves = [
        rest if array is None else array
        for array, rest in zip(arrays, static.leaves, strict=True)
    ]
    return jax.tree.unflatten(static.treedef, leaves)


def is_array(value: Any) -> bool:
    """Whether a leaf is an array or a NumPy number; flags are structure."""
    if isinstance(value, np.generic):
        return not isinstance(value, (np.bool_, np.flexible))
    return isinstance(value, (jax.Array, np.ndarray))


def _traced(tree: Any) -> list[bool]:
    """Which leaves are traced, in their order."""
    flatten = jax.tree_util.default_registry.flatten_one_level
    found: list[bool] = []

    def visit(node: Any, numbers: bool) -> None:
        inside = flatten(node)
        if inside is None:
            number = isinstance(node, (int, float, complex)) and node is not True
            found.append(is_array(node) or (numbers and number and node is not False))
            return
        # A rule says so; a denoiser inside a rule is a denoiser again.
        numbers = getattr(type(node), "traces_numbers", numbers and not callable(node))
        for child in inside[0]:
            visit(child, numbers)

    visit(tree, False)
    return found


def one_line_repr(model: Any) -> str:
    """A model in one line: its class, blocks and parameters.

    To be assigned to ``__repr__`` of a class of networks.
    """
    parts = []
    if isinstance(blocks := getattr(model, "num_blocks", None), int):
        parts.append(f"{blocks} blocks")
    leaves = [a for a in jax.tree.leaves(model) if hasattr(a, "size")]
    parts.append(f"{sum(a.size for a in leaves):,} parameters")
    return f"{type(model).__name__}({', '.join(parts)})"


# -- callables that hold pytrees ------------------------------------------------------


class _Opened:
    """A callable taken apart; unflattening puts it together again."""

    def __init__(self, kind: str, fixed: Any, parts: Any):
        self.kind, self.fixed, self.parts = kind, fixed, parts

    @staticmethod
    def close(fixed: tuple[str, Any], children: Any) -> Any:
        kind, own = fixed
        (parts,) = children
        if kind == "partial":
            function, arguments, keywords = parts
            return functools.partial(function, *arguments, **keywords)
        if kind == "method":
            return types.MethodType(own, parts)
        return own.bind(parts)  # a Linen module and its variables


jax.tree_util.register_pytree_node(
    _Opened, lambda node: ((node.parts,), (node.kind, node.fixed)), _Opened.close
)


def _opened(tree: Any) -> Any:
    leaves, treedef = jax.tree.flatten(
        tree, lambda node: isinstance(node, functools.partial)
    )
    opened = [_open(leaf) for leaf in leaves]
    if all(new is old for new, old in zip(opened, leaves, strict=True)):
        return tree
    return jax.tree.unflatten(treedef, opened)


def _open(leaf: Any) -> Any:
    if isinstance(leaf, functools.partial):
        parts = (leaf.func, leaf.args, leaf.keywords)
        return _Opened("partial", None, _opened(parts))
    if isinstance(leaf, types.MethodType) and _is_node(leaf.__self__):
        return _Opened("method", leaf.__func__, _opened(leaf.__self__))
    if hasattr(leaf, "unbind") and getattr(leaf, "scope", None) is not None:
        module, variables = leaf.unbind()
        return _Opened("linen", module, variables)
    return leaf


def _is_node(value: Any) -> bool:
    return not jax.tree_util.treedef_is_leaf(jax.tree.structure(value))


# -- what other callables hold --------------------------------------------------------


class _Same:
    """An array by identity, without keeping it alive; NumPy's also by contents."""

    def __init__(self, array: Any):
        self._array: Callable[[], Any]
        try:
            self._array = weakref.ref(array)
        except TypeError:  # a class without weak references
            self._array = lambda: array
        self._contents = 0
        if isinstance(array, np.ndarray) and array.dtype != object:
            self._contents = zlib.crc32(np.ascontiguousarray(array).data.cast("B"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same):
            return False
        mine = self._array()
        return (
            mine is not None
            and mine is other._array()
            and self._contents == other._contents
        )

    __hash__ = None  # type: ignore[assignment]


def _held(root: Any) -> tuple[Any, ...]:
    """Arrays, floats and flags that a function or an object uses, in a fixed order.

    Integers and text are left out: programs count their calls and log.
    """
    found: list[Any] = []
    seen: set[int] = set()
    home = getattr(root, "__module__", None)
    waiting = [root]
    while waiting and len(seen) + len(found) < _MOST_PARTS:
        part = waiting.pop()
        if isinstance(part, (bool, float, complex, np.generic)):
            found.append(repr(part))
        elif isinstance(part, (jax.Array, np.ndarray)):
            found.append(_Same(part))
        elif id(part) not in seen:
            seen.add(id(part))
            waiting.extend(reversed(_parts_of(part, home)))
    return tuple(found)


def _parts_of(part: Any, home: str | None) -> list[Any]:
    if part is None or isinstance(
        part, (int, str, bytes, type, types.ModuleType, types.BuiltinFunctionType)
    ):
        return []
    if isinstance(part, types.FunctionType):
        cells = [c.cell_contents for c in part.__closure__ or () if not _is_empty(c)]
        names = part.__code__.co_names if part.__module__ == home else ()
        variables = [part.__globals__[n] for n in names if n in part.__globals__]
        defaults = (part.__defaults__, part.__kwdefaults__)
        return [*cells, *defaults, *variables]
    if isinstance(part, types.MethodType):
        return [part.__self__, part.__func__]
    if isinstance(part, functools.partial):
        return [part.func, part.args, part.keywords]
    if isinstance(part, dict):
        return list(part.values())
    if isinstance(part, (list, tuple, set, frozenset)):
        return list(part)
    if _is_node(part):
        return jax.tree.leaves(part)
    names = getattr(type(part), "__slots__", ())
    names = (names,) if isinstance(names, str) else names
    slots = [getattr(part, name, None) for name in names]
    called = type(part).__call__ if callable(part) else None
    return [*getattr(part, "__dict__", {}).values(), *slots, called]


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False
