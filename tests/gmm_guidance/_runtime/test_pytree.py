"""Splitting pytrees into what is traced and what is static."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.block_networks import random_network

from gmm_guidance import CFG, AutoGuidance, S2Guidance, Unguided
from gmm_guidance._runtime.pytree import Static, join, split
from gmm_guidance.guidance.rule import Unconditional


def act(x):
    return x


TREES = {
    "scalars": {"flag": True, "count": 3, "scale": 0.5, "name": "silu", "none": None},
    "arrays": (jnp.arange(3), np.ones((2, 1)), np.float32(2.0)),
    "functions": [act, (jnp.zeros(()), max)],
    "rule": AutoGuidance(random_network(), S2Guidance(3.0).s2_scale),
    "empty": (),
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_join_undoes_split(tree):
    arrays, static = split(tree)
    back = join(arrays, static)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert a is b


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_arrays_pass_through_jit_and_the_rest_is_a_static_argument(tree):
    calls = []

    def function(static, arrays):
        calls.append(1)
        return [None if a is None else jnp.asarray(a) for a in arrays]

    compiled = jax.jit(function, static_argnums=0)
    arrays, static = split(tree)
    out = compiled(static, arrays)
    compiled(split(tree)[1], arrays)
    assert len(calls) == 1  # an equal static part is the same program
    for a, b in zip(out, arrays, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_traced_and_what_is_not():
    arrays, static = split({"a": 1.5, "b": "text", "c": act, "d": jnp.ones(2)})
    assert [a is None for a in arrays] == [False, True, True, False]
    assert static.leaves == (None, "text", act, None)


def test_static_parts_compare_by_value():
    one, same, other = (
        split({"scale": s, "name": n})[1]
        for s, n in ((1.0, "a"), (2.0, "a"), (1.0, "b"))
    )
    assert one == same and hash(one) == hash(same)
    assert one != other and one != "a"
    assert isinstance(one, Static)


def test_classes_of_equal_structure_are_told_apart():
    """JAX 0.10 takes them for equal; a cached program of one would serve the other."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class OtherScale:
        scale: float

    assert split(Unguided())[1] != split(Unconditional())[1]
    assert split(CFG(2.0))[1] != split(OtherScale(2.0))[1]
    assert split((CFG(2.0), 1.0))[1] != split((OtherScale(2.0), 1.0))[1]


def test_an_unhashable_leaf_is_named():
    class Unhashable:
        __hash__ = None

    with pytest.raises(TypeError, match="unhashable Unhashable. Register its class"):
        split({"a": 1.0, "b": Unhashable()})
