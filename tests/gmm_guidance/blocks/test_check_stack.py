"""``check_stack`` finds what is wrong with a stack, and says which hook it is."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

import gmm_guidance as gg


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Right:
    """Blocks that add a sine of their own frequency."""

    frequencies: jax.Array
    sample_shape = (2,)

    @property
    def num_blocks(self):
        return len(self.frequencies)

    def embed(self, x, sigma, label):
        return x / (1.0 + sigma), ()

    def block(self, index, hidden, context):
        return hidden + 0.3 * jnp.sin(self.frequencies[index] * hidden)

    def readout(self, hidden, context, x, sigma):
        return hidden


class NoTuple(Right):
    def embed(self, x, sigma, label):
        return x


class NoBatchAxis(Right):
    def embed(self, x, sigma, label):
        return x, sigma


class StateForgotten(Right):
    def block(self, index, hidden, context):
        return None


class HalfState(Right):
    def block(self, index, hidden, context):
        return hidden.astype(jnp.float16)


class WrongWidth(Right):
    def readout(self, hidden, context, x, sigma):
        return hidden[:, :1]


class MixedBatch(Right):
    def readout(self, hidden, context, x, sigma):
        return hidden + hidden.mean(axis=0, keepdims=True)


class IndexUnused(Right):
    def block(self, index, hidden, context):
        first = index if isinstance(index, int) else 0
        return super().block(first, hidden, context)


class Idle(Right):
    def block(self, index, hidden, context):
        return hidden + jnp.where(index == 1, 0.0, 0.3) * jnp.sin(hidden)


class BranchOnLevel(Right):
    def embed(self, x, sigma, label):
        return (x if sigma > 1 else 2 * x), ()


def build(cls):
    if cls is not Right:
        jax.tree_util.register_dataclass(cls, ["frequencies"], [])
    return cls(jnp.array([1.0, 2.0, 3.0]))


def test_a_right_stack_passes():
    stack = build(Right)
    check = gg.check_stack(stack, lambda x, sigma, label: stack_by_hand(x, sigma))
    assert check and len(str(check).splitlines()) == 6
    wrong = gg.check_stack(stack, lambda x, sigma, label: 1.01 * x)
    assert not wrong and "FAIL reference" in str(wrong)


def stack_by_hand(x, sigma):
    hidden = x / (1.0 + sigma)
    for frequency in (1.0, 2.0, 3.0):
        hidden = hidden + 0.3 * jnp.sin(frequency * hidden)
    return hidden


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NoTuple, r"FAIL full pass: TypeError: NoTuple.embed must return the tuple"),
        (
            NoBatchAxis,
            r"NoBatchAxis.embed must return arrays whose leading .* \(\)",
        ),
        (StateForgotten, r"StateForgotten.block must return the state .* got None"),
        (HalfState, r"HalfState.block must .*float32\[3, 2\], got float16\[3, 2\]"),
        (WrongWidth, r"WrongWidth.readout must .* \(3, 2\), got \(3, 1\)"),
        (MixedBatch, "FAIL batch: .* must not influence"),
        (IndexUnused, "FAIL dropped blocks: .* is its index used"),
        (Idle, r"FAIL effect: dropping blocks \[1\] changes nothing"),
        (BranchOnLevel, "FAIL full pass: TracerBoolConversionError"),
        (object, "FAIL members: missing: num_blocks, embed, block, readout"),
    ],
)
def test_what_is_wrong_is_named(cls, message):
    stack = object() if cls is object else build(cls)
    check = gg.check_stack(stack, sample_shape=(2,))
    assert not check
    assert re.search(message, str(check)), str(check)


def test_the_shape_of_a_sample_must_be_known():
    with pytest.raises(ValueError, match="sample_shape"):
        gg.check_stack(object())
