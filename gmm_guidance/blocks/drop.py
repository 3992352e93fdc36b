"""Drop laws: which blocks a weak pass leaves out, and how they are drawn.

A draw is a sorted integer array ``[k]`` of block indices, padded at its end with
``num_blocks`` where a law draws fewer than ``k``. Being data, not program, it never
causes a new compilation.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np


class DropLaw(Protocol):
    """A law over non-empty sets of dropped blocks."""

    def check(self, num_blocks: int) -> None:
        """Raise ``ValueError`` where the law does not fit a model of this depth."""
        ...

    def draw(self, key: jax.Array, num_blocks: int) -> jax.Array:
        """One set, ``[k]`` ascending block indices padded with ``num_blocks``."""
        ...

    def expected_depths(self, num_blocks: int) -> tuple[float, float]:
        """Expected index of the first dropped block, and expected number dropped."""
        ...


def eligible_blocks(num_blocks: int, protected: tuple[int, ...]) -> np.ndarray:
    """Blocks that may be dropped, ascending.

    Raises:
        ValueError: if a protected index is outside ``0 .. num_blocks - 1``, or if every
            block is protected.
    """
    outside = [b for b in protected if not 0 <= b < num_blocks]
    if outside:
        raise ValueError(
            f"protected blocks must be in 0..{num_blocks - 1} for a model of "
            f"{num_blocks} blocks, got {outside}."
        )
    eligible = np.setdiff1d(np.arange(num_blocks), np.asarray(protected, int))
    if eligible.size == 0:
        raise ValueError(
            f"all {num_blocks} blocks are protected, so none can be dropped; protect "
            f"fewer."
        )
    return eligible.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class FixedCount:
    """``num_dropped`` blocks, uniformly without replacement from the unprotected ones.

    The law of the public reimplementations of S²-Guidance; the paper indexes its
    ablation (Table 4) by a fixed count and protects the first block (Sec. 4.5).
    """

    num_dropped: int = 1
    protected: tuple[int, ...] = (0,)

    def __post_init__(self):
        if self.num_dropped < 1:
            raise ValueError(
                f"num_dropped must be at least 1, got {self.num_dropped}; a weak pass "
                f"that drops nothing is the full pass (use CFG)."
            )

    def check(self, num_blocks: int) -> None:
        """Raise unless enough unprotected blocks exist and one block remains."""
        eligible = eligible_blocks(num_blocks, self.protected)
        _check_count(self.num_dropped, eligible.size, num_blocks)

    def draw(self, key: jax.Array, num_blocks: int) -> jax.Array:
        """``[num_dropped]`` ascending block indices."""
        eligible = jnp.asarray(eligible_blocks(num_blocks, self.protected))
        if self.num_dropped == 1:  # without the sort of a permutation, slow to compile
            return eligible[jax.random.randint(key, (1,), 0, eligible.size)]
        chosen = jax.random.permutation(key, eligible)[: self.num_dropped]
        return jnp.sort(chosen)

    def expected_depths(self, num_blocks: int) -> tuple[float, float]:
        """Exact expectation of the smallest of k of m items drawn uniformly."""
        eligible = eligible_blocks(num_blocks, self.protected)
        m, k = eligible.size, self.num_dropped
        ways = np.array([math.comb(m - 1 - j, k - 1) for j in range(m)], float)
        return float(ways @ eligible / math.comb(m, k)), float(k)

    def all_masks(self, num_blocks: int) -> np.ndarray:
        """Every set that the law can draw, all equally likely: ``[count, k]``."""
        eligible = eligible_blocks(num_blocks, self.protected)
        sets = itertools.combinations(eligible.tolist(), self.num_dropped)
        return np.array(list(sets), np.int32)


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """Each unprotected block dropped with probability ``rate``, given that one is.

    A draw without any dropped block would make the weak pass the full pass, so the law
    is conditioned on at least one: the first dropped block is drawn from its exact
    conditional law, the later ones independently.
    """

    rate: float = 0.1
    protected: tuple[int, ...] = (0,)

    def __post_init__(self):
        if not 0.0 < self.rate < 1.0:
            raise ValueError(f"rate must be between 0 and 1, got {self.rate}.")

    def check(self, num_blocks: int) -> None:
        """Raise unless a block can be dropped and another always remains."""
        eligible = eligible_blocks(num_blocks, self.protected)
        if eligible.size == num_blocks:
            raise ValueError(
                "Bernoulli needs at least one protected block, or a draw could drop "
                "all of them; set protected=(0,)."
            )

    def draw(self, key: jax.Array, num_blocks: int) -> jax.Array:
        """Ascending indices padded with ``num_blocks``: as many as are unprotected."""
        eligible = eligible_blocks(num_blocks, self.protected)
        first_key, rest_key = jax.random.split(key)
        position = np.arange(eligible.size)
        log_first = jnp.asarray(position * np.log1p(-self.rate), jnp.float32)
        first = jax.random.categorical(first_key, log_first)
        rest = jax.random.bernoulli(rest_key, self.rate, (eligible.size,))
        dropped = (position == first) | (rest & (position > first))
        return jnp.sort(jnp.where(dropped, jnp.asarray(eligible), num_blocks))

    def expected_depths(self, num_blocks: int) -> tuple[float, float]:
        """Exact expectations under the conditional law."""
        eligible = eligible_blocks(num_blocks, self.protected)
        position = np.arange(eligible.size)
        first = (1.0 - self.rate) ** position
        first /= first.sum()
        after = 1.0 + self.rate * (eligible.size - 1 - position)
        return float(first @ eligible), float(first @ after)


@dataclasses.dataclass(frozen=True)
class FixedBlocks:
    """Always the same blocks, as in skip-layer guidance."""

    blocks: tuple[int, ...]

    def __post_init__(self):
        if not self.blocks or len(set(self.blocks)) != len(self.blocks):
            raise ValueError(
                f"blocks must name at least one block, each once, got {self.blocks}."
            )

    def check(self, num_blocks: int) -> None:
        """Raise unless the blocks exist and one remains."""
        outside = [b for b in self.blocks if not 0 <= b < num_blocks]
        if outside:
            raise ValueError(
                f"dropped blocks must be in 0..{num_blocks - 1} for a model of "
                f"{num_blocks} blocks, got {outside}."
            )
        _check_count(len(self.blocks), num_blocks, num_blocks)

    def draw(self, key: jax.Array, num_blocks: int) -> jax.Array:
        """The blocks in ascending order; the key is not used."""
        return jnp.asarray(sorted(self.blocks), jnp.int32)

    def expected_depths(self, num_blocks: int) -> tuple[float, float]:
        """The first block and the number of blocks."""
        return float(min(self.blocks)), float(len(self.blocks))


def _check_count(num_dropped: int, num_eligible: int, num_blocks: int) -> None:
    if num_dropped > num_eligible:
        raise ValueError(
            f"num_dropped={num_dropped} exceeds the {num_eligible} unprotected blocks "
            f"of a model of {num_blocks} blocks; drop fewer or protect fewer."
        )
    if num_dropped >= num_blocks:
        raise ValueError(
            f"dropping {num_dropped} of {num_blocks} blocks leaves no block; drop "
            f"fewer."
        )
