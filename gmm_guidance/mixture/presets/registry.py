"""Presets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.mixture.presets.lattices import checkerboard, grid
from gmm_guidance.mixture.presets.modes import four_corners, ring, two_modes
from gmm_guidance.mixture.presets.random_mixture import random
from gmm_guidance.mixture.presets.trees import tree

PRESETS: dict[str, Callable[..., GaussianMixture]] = {
    "two_modes": two_modes,
    "four_corners": four_corners,
    "tree": tree,
    "ring": ring,
    "grid": grid,
    "checkerboard": checkerboard,
    "random": random,
}


def names() -> tuple[str, ...]:
    """Names of all presets, as ``get`` takes them."""
    return tuple(PRESETS)


def get(name: str, **kwargs: Any) -> GaussianMixture:
    """The preset called ``name``, with its function's keyword arguments.

    Raises:
        ValueError: if there is no such preset; the message suggests the nearest name.
        TypeError: if the preset does not take one of the arguments.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"name must be one of {', '.join(PRESETS)}, got {name!r}.{hint}"
        )
    return PRESETS[name](**kwargs)
