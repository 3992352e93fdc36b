"""Drop distributions: which blocks a weak pass leaves out, and how they are drawn.

A draw is a sorted integer array ``[k]`` of block indices, padded at its end with
``num_blocks`` where fewer than ``k`` are drawn. Being data, not program, it never
causes a new compilation.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

__all__ = ["Bernoulli", "DropDistribution", "FixedBlocks", "FixedCount"]


class DropProbabilities(NamedTuple):
    """What a drop distribution means for each block, which decides its cost.

    Attributes:
        joined: probability that the block or an earlier one is dropped, ``[L]``: that a
            weak pass differs from the full pass after this block.
        dropped: probability that the block is dropped, ``[L]``.
    """

    joined: np.ndarray
    dropped: np.ndarray

    @classmethod
    def of_set(cls, blocks: Any, num_blocks: int) -> DropProbabilities:
        """The zeros and ones of a known set of blocks; padding is ignored."""
        dropped = _indicator(np.asarray(blocks), num_blocks)
        return cls(np.maximum.accumulate(dropped), dropped)


class DropDistribution(Protocol):
    """A distribution over non-empty sets of dropped blocks."""

    def check(self, num_blocks: int) -> None:
        """Raise ``ValueError`` if the distribution does not fit a model's depth."""
        ...

    def draw(self, key: jax.Array, num_blocks: int) -> jax.Array:
        """One set, ``[k]`` ascending block indices padded with ``num_blocks``."""
        ...

    def probabilities(self, num_blocks: int) -> DropProbabilities:
        """The exact probabilities of each block."""
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
class FixedCount(DropDistribution):
    """``num_dropped`` blocks, uniformly without replacement from the unprotected ones.

    The distribution of the public reimplementations of S²-Guidance; the paper indexes
    its ablation (Table 4) by a fixed count and protects the first block (Sec. 4.5).

    Args:
        num_dropped: number of blocks in a set, at least 1.
        protected: blocks that are never dropped.

    Raises:
        ValueError: if ``num_dropped`` is below 1.
    """

    num_dropped: int = 1
    protected: tuple[int, ...] = (0,)

    def __post_init__(self):
        if self.num_dropped < 1:
            raise ValueError(
                f"num_dropped must be at least 1, got {self.num_dropped}; a weak pass "
                f"that drops nothing is the full pass (use CFG)."
            )

    @override
    def check(self, num_blocks: int) -> None:
        eligible = eligible_blocks(num_blocks, self.protected)
        _check_count(self.num_dropped, eligible.size, num_blocks)

    @override
    def draw(self, key: jax.Array, num_blocks: int) -> jax.Array:
        eligible = jnp.asarray(eligible_blocks(num_blocks, self.protected))
        if self.num_dropped == 1:  # without the sort of a permutation, slow to compile
            return eligible[jax.random.randint(key, (1,), 0, eligible.size)]
        chosen = jax.random.permutation(key, eligible)[: self.num_dropped]
        return jnp.sort(chosen)

    @override
    def probabilities(self, num_blocks: int) -> DropProbabilities:
        eligible = _eligible(num_blocks, self.protected)
        m, k = int(eligible.sum()), self.num_dropped
        # None of the e eligible blocks up to each one is among the k of m.
        none = [math.comb(m - int(e), k) / math.comb(m, k) for e in eligible.cumsum()]
        return DropProbabilities(1.0 - np.array(none), eligible * k / m)

    def all_masks(self, num_blocks: int) -> np.ndarray:
        """Every set that can be drawn, all equally likely: ``[count, k]``."""
        eligible = eligible_blocks(num_blocks, self.protected)
        sets = itertools.combinations(eligible.tolist(), self.num_dropped)
        return np.array(list(sets), np.int32)


@dataclasses.dataclass(frozen=True)
class Bernoulli(DropDistribution):
    """Each unprotected block dropped with probability ``rate``, given that one is.

    A draw without any dropped block would make the weak pass the full pass, so the
    distribution is conditioned on at least one: the first dropped block is drawn from
    its exact conditional distribution, the later ones independently.

    Args:
        rate: probability of each block, in (0, 1).
        protected: blocks that are never dropped, at least one.

    Raises:
        ValueError: for a rate out of range.
    """

    rate: float = 0.1
    protected: tuple[int, ...] = (0,)

    def __post_init__(self):
        if not 0.0 < self.rate < 1.0:
            raise ValueError(f"rate must be between 0 and 1, got {self.rate}.")

    @override
    def check(self, num_blocks: int) -> None:
        eligible = eligible_blocks(num_blocks, self.protected)
        if eligible.size == num_blocks:
            raise ValueError(
                "Bernoulli needs at least one protected block, or a draw could drop "
                "all of them; set protected=(0,)."
            )

    @override
    def draw(self, key: jax.Array, num_blocks: int) -> jax.Array:
        eligible = eligible_blocks(num_blocks, self.protected)
        first_key, rest_key = jax.random.split(key)
        position = np.arange(eligible.size)
        log_first = jnp.asarray(position * np.log1p(-self.rate), jnp.float32)
        first = jax.random.categorical(first_key, log_first)
        rest = jax.random.bernoulli(rest_key, self.rate, (eligible.size,))
        dropped = (position == first) | (rest & (position > first))
        return jnp.sort(jnp.where(dropped, jnp.asarray(eligible), num_blocks))

    @override
    def probabilities(self, num_blocks: int) -> DropProbabilities:
        eligible = _eligible(num_blocks, self.protected)
        some = 1.0 - (1.0 - self.rate) ** eligible.cumsum()  # up to each block
        return DropProbabilities(some / some[-1], eligible * self.rate / some[-1])


@dataclasses.dataclass(frozen=True)
class FixedBlocks(DropDistribution):
    """Always the same blocks, as in skip-layer guidance.

    Args:
        blocks: their indices, each once, in any order.
        removes: whether the blocks are left out, so that one must remain; blocks that
            are perturbed in another way may be all.

    Raises:
        ValueError: for no blocks, or repeated ones.
    """

    blocks: tuple[int, ...]
    removes: bool = True

    def __post_init__(self):
        if not self.blocks or len(set(self.blocks)) != len(self.blocks):
            raise ValueError(
                f"blocks must name at least one block, each once, got {self.blocks}."
            )

    @override
    def check(self, num_blocks: int) -> None:
        outside = [b for b in self.blocks if not 0 <= b < num_blocks]
        if outside:
            raise ValueError(
                f"dropped blocks must be in 0..{num_blocks - 1} for a model of "
                f"{num_blocks} blocks, got {outside}."
            )
        if self.removes:
            _check_count(len(self.blocks), num_blocks, num_blocks)

    @override
    def draw(self, key: jax.Array, num_blocks: int) -> jax.Array:
        return jnp.asarray(sorted(self.blocks), jnp.int32)

    @override
    def probabilities(self, num_blocks: int) -> DropProbabilities:
        return DropProbabilities.of_set(self.blocks, num_blocks)


def _eligible(num_blocks: int, protected: tuple[int, ...]) -> np.ndarray:
    """1 for each block that may be dropped, 0 for a protected one, ``[L]``."""
    return _indicator(eligible_blocks(num_blocks, protected), num_blocks)


def _indicator(blocks: np.ndarray, num_blocks: int) -> np.ndarray:
    return np.isin(np.arange(num_blocks), blocks).astype(float)


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
