"""Which masks S2-Guidance and its kin really use, read off the model's output."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.ledger import Ledger, history, kept, number
from support.sampling import guided_value

from gmm_guidance import (
    CFG,
    CustomSchedule,
    Karras,
    S2Guidance,
    SkipLayer,
)
from gmm_guidance.blocks.drop import Bernoulli, FixedBlocks
from gmm_guidance.guidance.draws import RandomDraws
from gmm_guidance.sampling.segments import plan_segments
from gmm_guidance.sampling.solvers import Euler

L, N = 4, 6
STACK = Ledger(L)
X = jnp.zeros((N, 2))
FULL = number(2, range(L))  # of the conditional pass, label 1
ONLY_S2 = {"scale": 1.0, "s2_scale": 1.0, "window": None}


def guided(rule, *, stack=STACK, start=X, **options):
    return guided_value(rule, stack, start, **options)


def weak_numbers(rule, **options):
    """The number that the weak pass of each sample returns, or the mean of several."""
    return 2 * FULL - np.asarray(guided(rule, **options))[:, 0]


def dropped_by(number):
    """The blocks that a weak pass left out."""
    return kept(L, history([[number]])[0][1:])


def dropped_sets(rule, **options):
    """The blocks that the weak pass of each sample left out."""
    return [dropped_by(n) for n in weak_numbers(rule, **options)]


def without(*blocks):
    """The number of a weak pass."""
    return number(2, kept(L, blocks))


@pytest.mark.parametrize("omega", [0.0, jnp.asarray(0.0)], ids=["python", "traced"])
def test_s2_of_weight_zero_is_cfg_exactly(omega):
    got = guided(S2Guidance(3.0, omega, window=None))
    np.testing.assert_array_equal(got, guided(CFG(3.0)))


def test_the_key_gives_one_mask_for_the_batch_never_the_first_block():
    rule, drawn = S2Guidance(**ONLY_S2), []
    for seed in [*range(12), *range(12)]:
        (blocks,) = set(dropped_sets(rule, seed=seed))
        drawn.append(blocks)
    assert drawn[:12] == drawn[12:]
    assert set(drawn) == {(1,), (2,), (3,)}


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"protected": (0, 1, 2)}, (3,)),
        ({"protected": (1, 2, 3)}, (0,)),
        ({"num_dropped": 3}, (1, 2, 3)),
        ({"num_dropped": 2, "protected": (0, 2)}, (1, 3)),
        ({"distribution": FixedBlocks((3, 0))}, (0, 3)),
        ({"num_masks": 2, "protected": (0, 1, 3)}, (2,)),
    ],
    ids=str,
)
def test_options_name_the_blocks_that_are_dropped(options, expected):
    rule = S2Guidance(**ONLY_S2, **options)
    assert dropped_sets(rule) == [expected] * N


def test_all_masks_are_the_average_over_each():
    rule = S2Guidance(**ONLY_S2, num_dropped=2, num_masks="all")
    each = [without(1, 2), without(1, 3), without(2, 3)]
    np.testing.assert_allclose(weak_numbers(rule), np.mean(each), rtol=1e-6)


def test_masks_of_one_step_are_drawn_independently():
    rule = S2Guidance(**ONLY_S2, num_masks=2)
    means = {
        (without(a) + without(b)) / 2: (a, b)
        for a, b in itertools.combinations_with_replacement((1, 2, 3), 2)
    }
    assert len(means) == 6
    seen = {means[weak_numbers(rule, seed=seed)[0]] for seed in range(30)}
    assert len(seen) > 4 and any(a == b for a, b in seen)


def test_skip_layer_is_s2_with_fixed_blocks():
    window, fixed = (0.5, 1.0), FixedBlocks((1, 3))
    options = {"schedule": CustomSchedule((4.0, 2.0)), "start": X + 1.0}
    skip = guided(SkipLayer(2.0, (3, 1), 1.5, window=window), **options)
    s2 = guided(S2Guidance(2.0, 1.5, distribution=fixed, window=window), **options)
    np.testing.assert_array_equal(skip, s2)
    assert (skip != guided(CFG(2.0), **options)).any()


@pytest.mark.ci
def test_each_sample_may_have_its_own_mask():
    """Told apart by global index: batches draw what the whole does."""
    rule = S2Guidance(**ONLY_S2, distribution=Bernoulli(0.4), per_sample=True)
    options = {"start": jnp.zeros((64, 2))}
    sets = dropped_sets(rule, **options)
    subsets = (itertools.combinations((1, 2, 3), k) for k in (1, 2, 3))
    assert set(sets) == set(itertools.chain(*subsets))
    assert dropped_sets(rule, batch_size=32, **options) == sets


def masks_by_step(rule, num_steps=6):
    """The mask at each step of a run, from its trajectory.

    Levels halve and samples start at 0, so that all of this is exact in float32.
    """
    levels = tuple(2.0 ** np.arange(num_steps)[::-1])
    schedule = CustomSchedule(levels)
    _, path = guided(rule, schedule=schedule, trajectory=True)
    ratios = np.append(np.full(num_steps - 1, 0.5), 0.0)
    states = np.asarray(path)[:, 0, 0]
    values = (states[1:] - ratios * states[:-1]) / (1 - ratios)
    return [dropped_by(2 * FULL - value) for value in values]


def test_masks_are_redrawn_at_each_step_or_kept_for_the_run():
    by_step = masks_by_step(S2Guidance(**ONLY_S2))
    assert set(by_step) == {(1,), (2,), (3,)}
    by_run = masks_by_step(S2Guidance(**ONLY_S2, redraw="run"))
    assert len(set(by_run)) == 1


def test_a_second_evaluation_may_have_its_own_mask():
    @jax.jit
    def draws(step, evaluation):
        key, index = jax.random.key(0), jnp.arange(3)
        return [
            S2Guidance(2.0, redraw=redraw).draw(
                RandomDraws(key, step, evaluation, 20, index)
            )["weak"][0]
            for redraw in ("run", "step", "evaluation")
        ]

    steps = range(8)
    one, two = (np.array([draws(s, e) for s in steps])[..., 0].T for e in (0, 1))
    assert len(set(one[0])) == 1 and (one[0] == two[0]).all()
    assert len(set(one[1])) > 2 and (one[1] == two[1]).all()
    assert len(set(one[2])) > 2 and (one[2] != two[2]).any()


@pytest.mark.parametrize("num_steps, active", [(4, (1, 4)), (28, (3, 26))])
def test_the_default_window_at_both_ends(num_steps, active):
    """Steps 1..3 of 4, and 3..25 of 28: the 23 of the paper's Table 5."""
    segments = plan_segments(S2Guidance(7.5), Karras(num_steps), Euler())
    steps = [
        i
        for s in segments
        if type(s.rules[0]) is not CFG
        for i in range(s.start, s.stop)
    ]
    assert steps == list(range(*active))
