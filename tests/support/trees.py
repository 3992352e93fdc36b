"""Comparison of pytrees."""

import jax
import numpy as np


def assert_same_trees(found, expected):
    """Equal configs, types, shapes and bits."""
    assert getattr(found, "config", None) == getattr(expected, "config", None)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
