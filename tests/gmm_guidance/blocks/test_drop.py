"""Drop distributions against enumeration of all subsets of a small stack."""

import itertools
import math

import jax
import numpy as np
import pytest
from scipy import stats

from gmm_guidance.blocks.drop import Bernoulli, FixedBlocks, FixedCount

NUM_DRAWS = 8000
FIXED = [
    (FixedCount(1), 5),
    (FixedCount(2, (0, 3)), 6),
    (FixedCount(2, ()), 4),
]
RANDOM = [*FIXED, (Bernoulli(0.7, (1, 4)), 6)]


def name(case):
    distribution, num_blocks = case
    return f"{distribution}-{num_blocks}"


def subsets(num_blocks, protected):
    """All non-empty sets of unprotected blocks."""
    free = [b for b in range(num_blocks) if b not in protected]
    for size in range(1, len(free) + 1):
        yield from itertools.combinations(free, size)


def probabilities(distribution, num_blocks):
    """The distribution by enumeration: each set's probability."""
    sets = list(subsets(num_blocks, distribution.protected))
    if isinstance(distribution, FixedCount):
        sets = [s for s in sets if len(s) == distribution.num_dropped]
        return dict.fromkeys(sets, 1 / len(sets))
    free = num_blocks - len(distribution.protected)
    weight = {
        s: distribution.rate ** len(s) * (1 - distribution.rate) ** (free - len(s))
        for s in sets
    }
    total = sum(weight.values())
    return {s: w / total for s, w in weight.items()}


@pytest.fixture(scope="module")
def draws():
    """Draws of each random distribution, ``[NUM_DRAWS, k]``."""
    keys = jax.random.split(jax.random.key(7), NUM_DRAWS)
    return {
        name(case): np.asarray(
            jax.jit(jax.vmap(lambda key, c=case: c[0].draw(key, c[1])))(keys)
        )
        for case in RANDOM
    }


@pytest.fixture(params=RANDOM, ids=name)
def case(request, draws):
    distribution, num_blocks = request.param
    drawn = draws[name(request.param)]
    sets = [tuple(int(b) for b in row if b < num_blocks) for row in drawn]
    return distribution, num_blocks, drawn, sets


def test_draws_are_ascending_and_padded_at_the_end(case):
    distribution, num_blocks, drawn, sets = case
    assert drawn.min() >= 0 and drawn.max() <= num_blocks
    for row, dropped in zip(drawn[:2000].tolist(), sets, strict=False):
        assert dropped == tuple(sorted(set(dropped)))
        assert row == [*dropped, *[num_blocks] * (len(row) - len(dropped))]


def test_draws_are_never_empty_nor_protected(case):
    distribution, _, _, sets = case
    assert all(sets)
    assert not {b for s in sets for b in s} & set(distribution.protected)


def test_both_ends_of_the_unprotected_range_are_drawn(case):
    distribution, num_blocks, _, sets = case
    free = set(range(num_blocks)) - set(distribution.protected)
    assert {b for s in sets for b in s} == free


def test_every_set_is_drawn_as_often_as_it_should(case):
    distribution, num_blocks, _, sets = case
    expected = probabilities(distribution, num_blocks)
    observed = {s: 0 for s in expected}
    for dropped in sets:
        observed[dropped] += 1
    result = stats.chisquare(
        list(observed.values()), NUM_DRAWS * np.array(list(expected.values()))
    )
    assert result.pvalue > 1e-3


def test_probabilities_of_blocks_are_those_of_all_sets(case):
    distribution, num_blocks, _, sets = case
    found = np.array(distribution.probabilities(num_blocks))
    wanted, seen = np.zeros((2, num_blocks)), np.zeros((2, num_blocks))
    for s, weight in probabilities(distribution, num_blocks).items():
        wanted += weight * until_and_in(s, num_blocks)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    for s in sets:
        seen += until_and_in(s, num_blocks) / NUM_DRAWS
    error = 5 * np.sqrt(wanted * (1 - wanted) / NUM_DRAWS)
    assert (np.abs(seen - found) <= error + 1e-9).all()


def until_and_in(dropped, num_blocks):
    """Whether each block comes at or after the first dropped one; whether it is one."""
    blocks = range(num_blocks)
    return np.array(
        [[b >= min(dropped) for b in blocks], [b in dropped for b in blocks]]
    )


@pytest.mark.parametrize("distribution, num_blocks", FIXED, ids=str)
def test_fixed_count_draws_that_many_of_all_masks(distribution, num_blocks, draws):
    free = num_blocks - len(distribution.protected)
    masks = distribution.all_masks(num_blocks)
    assert masks.shape == (
        math.comb(free, distribution.num_dropped),
        distribution.num_dropped,
    )
    drawn = draws[name((distribution, num_blocks))]
    assert set(map(tuple, drawn.tolist())) == set(map(tuple, masks.tolist()))


def test_defaults_are_the_papers():
    """One block, never the first."""
    assert FixedCount() == FixedCount(1, (0,))
    assert FixedCount().all_masks(4).tolist() == [[1], [2], [3]]
    assert Bernoulli().protected == (0,)


def test_fixed_blocks_are_always_the_same():
    distribution = FixedBlocks((4, 1))
    assert distribution.draw(jax.random.key(0), 5).tolist() == [1, 4]
    assert distribution.draw(jax.random.key(1), 5).tolist() == [1, 4]
    joined, dropped = distribution.probabilities(5)
    assert joined.tolist() == [0, 1, 1, 1, 1] and dropped.tolist() == [0, 1, 0, 0, 1]
    distribution.check(5)


@pytest.mark.parametrize(
    "distribution", [FixedCount(3), Bernoulli(0.5), FixedBlocks((0, 3))]
)
def test_a_distribution_that_leaves_one_block_fits(distribution):
    distribution.check(4)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: FixedCount(0), "num_dropped must be at least 1, got 0"),
        (lambda: FixedCount(-1), "num_dropped must be at least 1, got -1"),
        (lambda: Bernoulli(0.0), "rate must be between 0 and 1, got 0.0"),
        (lambda: Bernoulli(1.0), "rate must be between 0 and 1, got 1.0"),
        (lambda: Bernoulli(math.nan), "rate must be between 0 and 1, got nan"),
        (lambda: FixedBlocks(()), "at least one block"),
        (lambda: FixedBlocks((2, 2)), "each once"),
    ],
)
def test_a_distribution_that_fits_no_model_is_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "distribution, num_blocks, message",
    [
        (FixedCount(4), 4, "num_dropped=4 exceeds the 3 unprotected blocks"),
        (FixedCount(1, (0, 1, 2)), 3, "all 3 blocks are protected"),
        (FixedCount(1), 1, "all 1 blocks are protected"),
        (FixedCount(1, (3,)), 3, r"protected blocks must be in 0\.\.2 .* got \[3\]"),
        (FixedCount(1, (-1,)), 3, r"protected blocks must be in 0\.\.2 .* got \[-1\]"),
        (FixedCount(3, ()), 3, "dropping 3 of 3 blocks leaves no block"),
        (Bernoulli(0.5, ()), 3, "needs at least one protected block"),
        (Bernoulli(0.5, (0, 1)), 2, "all 2 blocks are protected"),
        (Bernoulli(0.5, (7,)), 3, r"protected blocks must be in 0\.\.2"),
        (FixedBlocks((1, 3)), 3, r"dropped blocks must be in 0\.\.2 .* got \[3\]"),
        (FixedBlocks((-1,)), 3, r"dropped blocks must be in 0\.\.2 .* got \[-1\]"),
        (FixedBlocks((0, 1, 2)), 3, "dropping 3 of 3 blocks leaves no block"),
    ],
    ids=str,
)
def test_a_distribution_that_does_not_fit_the_model_is_refused(
    distribution, num_blocks, message
):
    with pytest.raises(ValueError, match=message):
        distribution.check(num_blocks)
