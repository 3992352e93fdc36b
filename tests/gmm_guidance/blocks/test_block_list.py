"""Stacks made of lists of blocks, against the blocks called one after another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.tree_util import Partial

import gmm_guidance as gg

equinox = pytest.importorskip("equinox")
WIDTH = 4
X = jax.random.normal(jax.random.key(9), (3, 2))


def _level(x, sigma):
    return jnp.broadcast_to(jnp.log(sigma), x.shape[:1])[:, None]


def embed(x, sigma, label):
    return jnp.concatenate([x, -x], 1), {"level": _level(x, sigma)}


def readout(hidden, context, x, sigma):
    return x - sigma * hidden[:, :2]


class NNXBlock(nnx.Module):
    def __init__(self, rngs, activation=nnx.silu):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.activation = activation

    def __call__(self, hidden, context):
        return hidden + self.activation(self.linear(hidden + context["level"]))


class EquinoxBlock(equinox.Module):
    linear: equinox.nn.Linear
    scale: float = 0.5  # a number is a part of the structure, as is a flag
    flag: bool = True

    def __call__(self, hidden, context):
        new = self.scale * self.linear(hidden + context["level"])
        return hidden + jnp.tanh(new) if self.flag else hidden


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, hidden, context):
        return hidden + linen.Dense(WIDTH)(jnp.sin(hidden + context["level"]))


def nnx_blocks():
    return [NNXBlock(nnx.Rngs(seed)) for seed in range(3)]


def equinox_blocks():
    keys = jax.random.split(jax.random.key(1), 2)
    return [EquinoxBlock(equinox.nn.Linear(WIDTH, WIDTH, key=key)) for key in keys]


def linen_blocks():
    module = LinenBlock()
    hidden, context = embed(X, 1.0, None)
    keys = jax.random.split(jax.random.key(2), 3)
    return [Partial(module.apply, module.init(key, hidden, context)) for key in keys]


def apply(block, hidden, context):
    if isinstance(block, EquinoxBlock):
        return jax.vmap(block)(hidden, context)
    return block(hidden, context)


def one_after_another(blocks, dropped=()):
    hidden, context = embed(X, 1.5, None)
    for index, block in enumerate(blocks):
        if index not in dropped:
            hidden = apply(block, hidden, context)
    return readout(hidden, context, X, 1.5)


def test_blocks_of_three_frameworks_in_one_stack():
    blocks = [*nnx_blocks(), *equinox_blocks(), *linen_blocks()]
    blocks.append(lambda hidden, context: jnp.cos(hidden))
    stack = gg.stack_blocks(blocks, embed, readout, apply=apply, sample_shape=(2,))
    assert stack.segments == (3, 2, 3, 1) and stack.num_blocks == 9

    def run(x, drop):
        tree = [gg.Pass(None), gg.Pass(None, drop=drop)]
        return gg.evaluate_passes(stack, x, jnp.float32(1.5), tree)

    run = jax.jit(run)
    for dropped in ((0, 2), (3, 8), (4, 5)):
        full, weak = run(X, jnp.array(dropped))
        np.testing.assert_allclose(
            full, one_after_another(blocks), rtol=2e-6, atol=1e-6
        )
        expected = one_after_another(blocks, dropped)
        np.testing.assert_allclose(weak, expected, rtol=2e-6, atol=1e-6)
        assert np.abs(weak - full).max() > 1e-3


def test_blocks_of_other_structure_are_other_segments():
    rngs = nnx.Rngs(0)
    blocks = [NNXBlock(rngs), NNXBlock(rngs, nnx.relu), NNXBlock(rngs, nnx.relu)]
    assert gg.stack_blocks(blocks, embed, readout).segments == (1, 2)
    first, _ = equinox_blocks()
    others = [first, dataclasses.replace(first, flag=False)]
    assert gg.stack_blocks(others, embed, readout).segments == (1, 1)


def test_a_network_in_its_own_parameterization():
    """Epsilon from a Backbone: D = x - sigma epsilon for variance exploding noise."""
    blocks = nnx_blocks()
    backbone = gg.stack_blocks(blocks, embed, lambda h, c: h[:, :2], sample_shape=(2,))
    stack = gg.ProcessStack(backbone, gg.VE(), "epsilon")
    check = gg.check_stack(stack, lambda x, sigma, label: run_plain(blocks, x, sigma))
    assert check, str(check)


def run_plain(blocks, x, sigma):
    hidden, context = embed(x, sigma, None)
    for block in blocks:
        hidden = block(hidden, context)
    return x - sigma * hidden[:, :2]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gg.stack_blocks([], embed, readout), ValueError, "at least one block"),
        (
            lambda: gg.stack_blocks([jnp.sin], 3, readout),
            TypeError,
            "embed must be",
        ),
        (
            lambda: gg.stack_blocks([jnp.sin], embed, readout, block_costs=(1, 2)),
            ValueError,
            "block_costs must be 1 numbers",
        ),
        (
            lambda: gg.stack_blocks([Partial(jnp.sin, {1})], embed, readout),
            TypeError,
            "block 0 .*neither",
        ),
    ],
)
def test_bad_lists_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
