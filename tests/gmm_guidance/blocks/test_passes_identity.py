"""Shared passes of a real network are those of separate runs, bit for bit (CPU)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.block_networks import random_network, without_blocks

from gmm_guidance import (
    CFG,
    CustomSchedule,
    Pass,
    evaluate_passes,
    guided_sample,
)

L = 5
NETWORK = random_network(num_blocks=L)


def inputs(n):
    rng = np.random.default_rng(n)
    x = jnp.asarray(2.0 * rng.normal(size=(n, 2)), jnp.float32)
    return x, jnp.asarray(rng.integers(0, 3, n), jnp.int32)


@jax.jit
def shared(network, x, sigma, label, drops):
    passes = (Pass(None), Pass(label), *(Pass(label, drop) for drop in drops))
    return evaluate_passes(network, x, sigma, passes)


@jax.jit
def weak_alone(network, x, sigma, label, drop):
    return evaluate_passes(network, x, sigma, (Pass(label, drop),))[0]


@jax.jit
def run(network, x, sigma, label):
    return network(x, sigma, label)


def check(network, n, sets, sigma=0.7):
    """All rows equal to the network itself and to those without the blocks."""
    x, label = inputs(n)
    sigma = jnp.asarray(sigma, jnp.float32)
    width = 3 if network is NETWORK else 1  # fewer programs
    drops = [jnp.array([*s, *[L] * (width - len(s))], jnp.int32) for s in sets]
    rows = shared(network, x, sigma, label, drops)
    null = jnp.full((n,), network.num_labels, jnp.int32)
    np.testing.assert_array_equal(rows[0], run(network, x, sigma, null))
    np.testing.assert_array_equal(rows[1], run(network, x, sigma, label))
    for row, drop, dropped in zip(rows[2:], drops, sets, strict=True):
        removed = without_blocks(network, dropped)
        np.testing.assert_array_equal(row, run(removed, x, sigma, label))
        assert np.abs(row - rows[1]).max() > 1e-3  # dropping changes the output
        if network is NETWORK:
            alone = weak_alone(network, x, sigma, label, drop)
            np.testing.assert_array_equal(row, alone)


@pytest.mark.parametrize("width, n", [(8, 64), (32, 33), (65, 1), (65, 1000)])
def test_widths_and_batches(width, n):
    """Shapes at which a matrix product of two rows rounds otherwise than of one."""
    check(random_network(width, width=width, num_blocks=L), n, [[3]])


@pytest.mark.parametrize(
    "sets",
    [
        [[0]],
        [[L - 1]],
        [[1, 3]],
        [[0, 2, 4]],
        [[4], [1]],
        [[2], [2]],
        [[3], [1, 2], [4], [1, 2]],
    ],
    ids=str,
)
def test_numbers_of_blocks_and_masks_in_any_order(sets):
    check(NETWORK, 7, sets, sigma=np.linspace(0.1, 9.0, 7))


def test_compilation_does_not_matter():
    """The same with every operation on its own."""
    x, label = inputs(7)
    sigma = jnp.asarray(0.7)
    weak = Pass(label, jnp.array([2]))
    rows = evaluate_passes(NETWORK, x, sigma, (Pass(label), weak))
    np.testing.assert_array_equal(rows[0], NETWORK(x, sigma, label))
    alone = without_blocks(NETWORK, [2])(x, sigma, label)
    np.testing.assert_array_equal(rows[1], alone)


def test_sets_by_sample_are_those_of_each_sample():
    x, label = inputs(7)
    sigma = jnp.full((7,), 0.7)
    sets = jnp.array([[1], [2], [4], [1], [0], [4], [3]])
    rows = shared(NETWORK, x, sigma, label, [sets])
    for dropped in range(L):
        own = np.flatnonzero(sets[:, 0] == dropped)
        whole = run(without_blocks(NETWORK, [dropped]), x, sigma, label)
        np.testing.assert_array_equal(rows[2][own], whole[own])


def test_guidance_without_drops_can_be_differentiated():
    x, label = inputs(7)

    @jax.jit
    def mean(scale):
        samples = guided_sample(
            jax.random.key(0),
            NETWORK,
            label,
            num_samples=7,
            guidance=CFG(scale),
            schedule=CustomSchedule((4.0, 1.0)),
            solver="euler",
            initial=4.0 * x,
        )
        return samples.mean()

    slope = jax.jit(jax.grad(mean))(3.0)
    difference = (mean(3.05) - mean(2.95)) / 0.1
    np.testing.assert_allclose(slope, difference, rtol=2e-2)
    assert abs(slope) > 1e-3
