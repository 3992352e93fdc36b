"""A ``BlockStack`` whose output names the blocks that made it, and which counts them.

The first coordinate of its output is a number in base 8: the label's digit, then one
digit for each block that ran, in order. All of it is exact in float32 up to 6 blocks.
The hidden state is a pytree of an integer and a float array.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

BASE = 8
NO_LABEL = 3  # digit of the label None


class Ledger:
    """Labels 0 and 1 have digits 1 and 2. Hashed by identity: no pytree, one leaf."""

    sample_shape = (2,)
    num_labels = 2

    def __init__(self, num_blocks: int = 5):
        self.num_blocks = num_blocks
        self.traces = 0
        self._ran: list[int] = []

    def embed(self, x, sigma, label):
        self.traces += 1
        digit = jnp.full(len(x), NO_LABEL) if label is None else label + 1
        hidden = {"digits": digit.astype(jnp.int32), "stream": (x[:, :1], x)}
        return hidden, (digit,)

    def block(self, index, hidden, context):
        jax.debug.callback(self._record, index, hidden["digits"][0])
        (one, two), index = hidden["stream"], jnp.asarray(index, jnp.int32)
        turn = (index + 1).astype(two.dtype)
        return {
            "digits": BASE * hidden["digits"] + index + 1,
            "stream": (one + jnp.sin(turn * one), two * turn + one),
        }

    def readout(self, hidden, context, x, sigma):
        _, two = hidden["stream"]
        return jnp.stack([hidden["digits"].astype(x.dtype), two[:, 1]], axis=1)

    def _record(self, index, _):
        self._ran.append(int(index))

    def count(self) -> int:
        """Block evaluations since the last call, over rows."""
        jax.effects_barrier()
        number, self._ran = len(self._ran), []
        return number


def history(denoised) -> list[tuple[int, ...]]:
    """For each sample the label's digit and the blocks that ran."""
    result = []
    for value in np.asarray(denoised)[:, 0].astype(int).tolist():
        digits: list[int] = []
        while value:
            value, digit = divmod(value, BASE)
            digits.insert(0, digit)
        result.append((digits[0], *(d - 1 for d in digits[1:])))
    return result


def number(digit: int, blocks) -> int:
    """What the ledger says where these blocks ran."""
    for block in blocks:
        digit = BASE * digit + block + 1
    return digit


def kept(num_blocks: int, dropped) -> tuple[int, ...]:
    """The blocks that a pass with dropped ones must run."""
    return tuple(b for b in range(num_blocks) if b not in set(dropped))


def rows_by_block(num_blocks: int, num_full: int, masks) -> int:
    """Block evaluations of full passes and weak ones that join, counted one by one."""
    total = 0
    for block in range(num_blocks):
        total += num_full
        total += sum(min(mask) < block and block not in mask for mask in masks)
    return total
