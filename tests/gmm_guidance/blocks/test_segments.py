"""Stacks of unlike blocks: segments numbered through, shared like any other stack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.ledger import Ledger, history, kept, rows_by_block
from oracles.odd_network import OddNetwork
from support.compilation import AS_USERS

from gmm_guidance import CustomSchedule, Pass, ProcessStack, S2Guidance, guided_sample
from gmm_guidance.blocks.evaluate import evaluate_passes
from gmm_guidance.diffusion.process import RectifiedFlow

FLOW = RectifiedFlow()
L = 6  # joint blocks 0 and 1, image blocks 2 to 4, the last one 5
NETWORK = OddNetwork.random()
STACK = ProcessStack(NETWORK, FLOW, "velocity")
SIGMA = jnp.asarray([0.2, 1.0, 3.0, 0.7, 9.0], jnp.float32)
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 2)), jnp.float32)
LABEL = jnp.array([0, 2, 1, 1, 0])


@functools.partial(jax.jit, compiler_options=AS_USERS)
def shared(stack, drops):
    """Rows: unconditional, conditional, then a weak one for each set of blocks."""
    passes = (Pass(None), Pass(LABEL), *(Pass(LABEL, drop) for drop in drops))
    return evaluate_passes(stack, X, SIGMA, passes)


@functools.partial(jax.jit, compiler_options=AS_USERS)
def run(stack, label):
    return stack(X, SIGMA, label)


def without(dropped):
    return ProcessStack(NETWORK.without(dropped), FLOW, "velocity")


def padded(*dropped):
    return jnp.array([*dropped, *[L] * (3 - len(dropped))], jnp.int32)


@pytest.mark.parametrize(
    "sets",
    [
        [(0,)],  # the first
        [(5,)],  # the last
        [(1, 2)],  # across a boundary
        [(4, 5)],  # the whole last segment, and before
        [(2, 3, 4)],  # a whole segment between
        [(1, 4)],  # joins in one segment, drops in another
        [(5,), (0, 3), (1, 2), (4,)],
    ],
    ids=str,
)
def test_shared_passes_are_separate_ones_bit_for_bit(sets):
    rows = shared(STACK, [padded(*dropped) for dropped in sets])
    np.testing.assert_array_equal(rows[0], run(STACK, jnp.full(5, 3)))
    np.testing.assert_array_equal(rows[1], run(STACK, LABEL))
    for row, dropped in zip(rows[2:], sets, strict=True):
        np.testing.assert_array_equal(row, run(without(dropped), LABEL))
        assert np.abs(row - rows[1]).max() > 1e-2  # dropping changes the output


def test_sets_by_sample_across_segments():
    own = [(0,), (5,), (1, 2), (4,), (2, 5)]
    row = shared(STACK, [jnp.stack([padded(*dropped) for dropped in own])])[2]
    for i, dropped in enumerate(own):
        np.testing.assert_array_equal(row[i], run(without(dropped), LABEL)[i])


def test_rows_in_a_batch_agree(monkeypatch):
    """As on an accelerator."""
    drops = [padded(5), padded(0, 3), padded(1, 2)]
    wanted = shared(STACK, drops)
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *a, default=None, **_: default(*a)
    )
    passes = (Pass(None), Pass(LABEL), *(Pass(LABEL, drop) for drop in drops))
    found = jax.jit(lambda s: evaluate_passes(s, X, SIGMA, passes))(STACK)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_one_program_for_any_blocks_of_a_number():
    """Blocks of all kinds, drawn at each step: one compilation for each number."""
    traces = []

    @jax.jit
    def sample(stack, key, num):
        traces.append(len(num))
        return guided_sample(
            key,
            stack,
            LABEL,
            num_samples=5,
            guidance=S2Guidance(2.0, num_dropped=len(num), protected=(), window=None),
            schedule=CustomSchedule((3.0, 1.0, 0.3)),
            solver="euler",
        )

    for count in (1, 2):
        runs = [sample(STACK, jax.random.key(i), (0,) * count) for i in range(4)]
        assert len({np.asarray(run).tobytes() for run in runs}) == 4
    assert traces == [1, 2]


def test_single_blocks_by_a_traced_index():
    hidden, context = STACK.embed(X, SIGMA, LABEL)
    found = jax.jit(lambda i, h: STACK.block(i, h, context))
    for index in range(L):
        segment, within = ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0))[index]
        wanted = STACK.segment_block(segment, within, hidden, context)
        hidden = found(index, hidden)
        for a, b in zip(hidden, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_predictions_are_those_of_the_blocks():
    """``v`` with ``D = (x - sigma v) / (1 + sigma)``, of an SD3-like flow."""
    velocity = jax.jit(lambda s: s.predict(X, SIGMA, LABEL))(STACK)
    sigma = SIGMA[:, None, None]
    expected = (X - sigma * velocity) / (1 + sigma)
    np.testing.assert_allclose(run(STACK, LABEL), expected, rtol=1e-5, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(s.predict(X, SIGMA, LABEL) ** 2)))
    for leaf in jax.tree.leaves(gradient(STACK).backbone.stacks):
        assert (np.abs(leaf).reshape(len(leaf), -1).max(axis=1) > 0).all()


# --- what runs


class SegmentedLedger(Ledger):
    """The ledger, with its blocks in segments of 2, 2 and 1."""

    segments = (2, 2, 1)

    def segment_block(self, segment, index, hidden, context):
        return super().block((0, 2, 4)[segment] + index, hidden, context)

    def block(self, index, hidden, context):
        raise AssertionError("a stack with segments runs by its segments")


@pytest.mark.parametrize("sets", [[(1, 3)], [(4,), (0, 2)], [(2, 3), (1,)]], ids=str)
def test_rows_join_and_rest_as_in_one_segment(sets):
    x, label = jnp.ones((2, 2)), jnp.array([0, 1])
    drops = tuple(jnp.array([*s, *[5] * (2 - len(s))]) for s in sets)
    ledger = SegmentedLedger(5)

    @jax.jit
    def run(drops):
        weak = (Pass(label, drop) for drop in drops)
        passes = (Pass(None), Pass(label), *weak)
        return evaluate_passes(ledger, x, jnp.ones(()), passes)

    rows = run(drops)
    for row, dropped in zip(rows[1:], [(), *sets], strict=True):
        assert history(row) == [(digit, *kept(5, dropped)) for digit in (1, 2)]
    assert ledger.count() == rows_by_block(5, 2, sets)
