"""Split any pytree into arrays, which are traced, and the rest, which is static.

Denoisers come as functions, Flax modules, Equinox modules (whose leaves may be
functions) or dataclasses of them; this lets all of them pass through ``jax.jit``.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


class Static:
    """The part of a pytree that is no array: hashable, compared by value."""

    def __init__(self, treedef: Any, leaves: tuple[Any, ...]):
        self.treedef = treedef
        self.leaves = leaves
        self._node_types = node_types(treedef)

    def __hash__(self) -> int:
        return hash((self.treedef, self.leaves))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Static)
            and self.treedef == other.treedef
            and self._node_types == other._node_types
            and self.leaves == other.leaves
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
    """Arrays and numbers of a pytree (``None`` elsewhere), and its static part.

    Raises:
        TypeError: if a leaf is neither an array nor hashable.
    """
    leaves, treedef = jax.tree.flatten(tree)
    traced = [_is_traced(leaf) for leaf in leaves]
    rest = tuple(None if t else x for x, t in zip(leaves, traced, strict=True))
    for leaf in rest:
        try:
            hash(leaf)
        except TypeError:
            raise TypeError(
                f"every part of a denoiser or rule must be an array or hashable; found "
                f"an unhashable {type(leaf).__name__}. Register its class as a pytree."
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


def _is_traced(leaf: Any) -> bool:
    return isinstance(
        leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)
    )
