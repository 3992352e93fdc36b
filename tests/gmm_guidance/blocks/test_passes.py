"""The shared-prefix evaluator: what it computes, and what it does not run."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.ledger import BASE, NO_LABEL, Ledger, history, kept, rows_by_block

from gmm_guidance import (
    CFG,
    AutoGuidance,
    CustomSchedule,
    Pass,
    S2Guidance,
    SkipLayer,
    Unguided,
    Windowed,
    evaluate_passes,
    expected_cost,
    guided_sample,
)
from gmm_guidance.blocks.drop import FixedBlocks

L = 5
STACK, OTHER = Ledger(L), Ledger(3)
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
LABEL = jnp.array([0, 1, 1, 0])
SIGMA = jnp.asarray(0.5, jnp.float32)
DIGITS = (LABEL + 1).tolist()


@jax.jit
def cfg_and_weak(drops):
    """Rows: unconditional, conditional, then a weak one for each set of blocks."""
    return evaluate_passes(
        STACK, X, SIGMA, (Pass(None), Pass(LABEL), *(Pass(LABEL, d) for d in drops))
    )


@jax.jit
def weak_alone(drop):
    return evaluate_passes(STACK, X, SIGMA, (Pass(LABEL, drop),))


def padded(*sets):
    """Index sets of common length ``L``, as a drop distribution pads them."""
    return tuple(jnp.array([*sorted(s), *[L] * (L - len(s))]) for s in sets)


def ran(dropped, digits=DIGITS):
    """What the ledger of each sample must say."""
    return [(d, *kept(L, dropped)) for d in digits]


def non_empty_subsets():
    return [s for size in range(1, L) for s in itertools.combinations(range(L), size)]


@pytest.fixture(autouse=True)
def fresh_counts():
    STACK.count(), OTHER.count()


# --- values


def test_the_ledger_tells_what_ran():
    """The oracle itself: block 2 before 4, label 1."""
    assert history([[2 * BASE**2 + 3 * BASE + 5, 0.0]]) == [(2, 2, 4)]


def test_every_set_of_blocks_can_be_dropped():
    for dropped in non_empty_subsets():
        uncond, cond, weak = cfg_and_weak(padded(dropped))
        assert history(uncond) == ran((), [NO_LABEL] * 4)
        assert history(cond) == ran(())
        assert history(weak) == ran(dropped)
        np.testing.assert_array_equal(weak, weak_alone(*padded(dropped))[0])
        alone = L - len(dropped)
        assert STACK.count() == rows_by_block(L, 2, [dropped]) + alone
        if len(dropped) == 1:
            assert rows_by_block(L, 2, [dropped]) == 2 * L + (L - dropped[0] - 1)


@pytest.mark.parametrize(
    "sets",
    [
        [(4,), (2,), (1,)],
        [(1,), (3,), (2,)],
        [(2,), (2,), (2,)],
        [(0, 4), (3,), (0, 1, 2)],
        [(4,), (0,), (4,)],
        [(1, 2), (1, 3), (1, 2, 3, 4)],
    ],
    ids=str,
)
def test_weak_rows_come_in_the_order_asked(sets):
    rows = cfg_and_weak(padded(*sets))
    for row, dropped in zip(rows[2:], sets, strict=True):
        assert history(row) == ran(dropped)
    assert STACK.count() == rows_by_block(L, 2, sets)


def test_a_draw_of_nothing_is_the_full_pass():
    _, cond, weak = cfg_and_weak(padded(()))
    np.testing.assert_array_equal(weak, cond)


def test_each_sample_may_drop_its_own_blocks():
    sets = [[(1,), (4,), (0,), (2,)], [(2, 3), (0, 4), (3,), (1, 2)]]
    drops = [jnp.stack(padded(*s)) for s in sets]
    rows = cfg_and_weak(tuple(drops))
    assert history(rows[1]) == ran(())
    alone = weak_alone(drops[1])[0]
    for own, row in zip([*sets, sets[1]], [*rows[2:], alone], strict=True):
        assert history(row) == [
            (d, *kept(L, s)) for d, s in zip(DIGITS, own, strict=True)
        ]
    for i, dropped in enumerate(sets[0]):
        same = weak_alone(*padded(dropped))[0]
        np.testing.assert_array_equal(rows[2][i], same[i])


def test_batch_and_sample_drops_do_not_mix():
    drops = (jnp.array([1]), jnp.ones((4, 1), jnp.int32))
    with pytest.raises(ValueError, match="all drop blocks for the whole batch or all"):
        cfg_and_weak(drops)


def test_passes_of_any_kind_in_any_order():
    """Weak ones first and of both lengths, of another model, and one twice."""

    @jax.jit
    def evaluate(one, two):
        passes = (
            Pass(LABEL, two),
            Pass(LABEL, model=OTHER),
            Pass(None, one),
            Pass(LABEL),
            Pass(LABEL, one),
            Pass(LABEL, two, model=OTHER),
            Pass(LABEL),
        )
        return evaluate_passes(STACK, X, SIGMA, passes)

    rows = evaluate(jnp.array([2]), jnp.array([0, 1]))
    assert history(rows[0]) == ran((0, 1))
    assert history(rows[1]) == [(d, 0, 1, 2) for d in DIGITS]
    assert history(rows[2]) == ran((2,), [NO_LABEL] * 4)
    assert history(rows[3]) == history(rows[6]) == ran(())
    assert history(rows[4]) == ran((2,))
    assert history(rows[5]) == [(d, 2) for d in DIGITS]
    # The pass without condition has no full one to join.
    assert STACK.count() == (L - 1) + rows_by_block(L, 1, [(2,), (0, 1)])
    assert OTHER.count() == rows_by_block(3, 1, [(0, 1)])


def test_a_model_without_blocks_cannot_drop_them():
    def denoiser(x, sigma, label):
        return x

    message = "function is not a BlockStack .* Use a rule that drops none"
    with pytest.raises(TypeError, match=message):
        evaluate_passes(denoiser, X, SIGMA, (Pass(LABEL, jnp.array([1])),))
    for rule in (S2Guidance(2.0), SkipLayer(2.0, (1,), window=None)):
        with pytest.raises(TypeError, match="BlockStack .* Use a rule that drops none"):
            sample(rule, denoiser=denoiser)


def test_a_tree_of_passes_keeps_its_structure():
    """Full passes in several places run once; a tree without passes stays."""
    label, drop = LABEL, jnp.array([2])
    tree = {"base": (Pass(None), Pass(label)), "weak": [Pass(label, drop)], "none": ()}
    tree["again"] = Pass(label)
    found = jax.jit(lambda: evaluate_passes(STACK, X, SIGMA, tree))()
    assert history(found["base"][0]) == ran((), [NO_LABEL] * 4)
    assert history(found["base"][1]) == history(found["again"]) == ran(())
    assert history(found["weak"][0]) == ran((2,))
    assert found["none"] == () and evaluate_passes(STACK, X, SIGMA, ()) == ()
    assert STACK.count() == rows_by_block(L, 2, [(2,)])


# --- what guided sampling runs


def sample(guidance, num_steps=3, denoiser=STACK, seed=0, **options):
    levels = tuple(2.0 ** np.arange(num_steps)[::-1])
    return guided_sample(
        jax.random.key(seed),
        denoiser,
        LABEL,
        num_samples=4,
        guidance=guidance,
        schedule=CustomSchedule(levels),
        solver="euler",
        initial=X,
        **options,
    )


def blocks_run(guidance, num_steps):
    sample(guidance, num_steps)
    return STACK.count()


WEAK = {"window": None, "distribution": FixedBlocks((1, 3))}


@pytest.mark.parametrize(
    "rule, expected",
    [
        (Unguided(), L),
        (CFG(3.0), 2 * L),
        (CFG(1.0), L),
        (CFG(0.0), L),
        (S2Guidance(3.0, **WEAK), 2 * L + 2),
        (S2Guidance(1.0, **WEAK), L + 2),
        (S2Guidance(3.0, 0.0, **WEAK), 2 * L),
        (S2Guidance(1.0, 0.0, **WEAK), L),
        (S2Guidance(1.0, num_masks=2, **WEAK), L + 2 * 2),
        (S2Guidance(3.0, num_masks="all", protected=(0, 1, 4), window=None), 2 * L + 3),
        (S2Guidance(3.0, per_sample=True, **WEAK), 2 * L + L - 1),
        (SkipLayer(3.0, (4, 2), window=None), 2 * L + 1),
        (SkipLayer(3.0, (4, 2), 0.0, window=None), 2 * L),
    ],
    ids=repr,
)
def test_a_pass_is_run_only_where_its_weight_is_not_known_to_be_zero(rule, expected):
    assert blocks_run(rule, 1) == expected


@pytest.mark.parametrize(
    "rule, expected",
    [
        (Windowed(CFG(3.0), (0.5, 1.0)), 3 * L + L),
        (SkipLayer(3.0, (4, 2), window=(0.1, 0.6)), 3 * 2 * L + 1),
    ],
    ids=repr,
)
def test_a_pass_is_run_only_in_its_window(rule, expected):
    """Three steps, at shares 0, 1/3 and 2/3 of the run."""
    assert blocks_run(rule, 3) == expected


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_run_costs_what_is_expected(scale):
    """Heun's seven evaluations in four steps, some with a weak pass."""
    rule = S2Guidance(scale, distribution=FixedBlocks((1, 3)), window=(0.2, 0.5))
    schedule = CustomSchedule((3.0, 2.0, 1.5, 1.0))
    guided_sample(
        jax.random.key(0),
        STACK,
        LABEL,
        num_samples=4,
        guidance=rule,
        schedule=schedule,
    )
    expected = 7 * L * (1 if scale == 1.0 else 2) + 2 * 2
    assert STACK.count() == expected
    assert expected_cost(rule, schedule, L).shared * L == expected


def test_autoguidance_runs_both_models_once():
    sample(AutoGuidance(OTHER, 2.0), 2)
    assert (STACK.count(), OTHER.count()) == (2 * L, 2 * 3)
    sample(AutoGuidance(OTHER, 1.0), 2)
    assert (STACK.count(), OTHER.count()) == (2 * L, 0)


def test_one_program_serves_all_masks():
    rule = S2Guidance(3.0, num_dropped=2, window=None)
    sample(rule, 1)
    traces, costs = STACK.traces, set()
    for seed in range(16):
        STACK.count()
        sample(rule, 1, seed=seed)
        costs.add(STACK.count())
    assert STACK.traces == traces
    assert costs == {2 * L, 2 * L + 1, 2 * L + 2}  # first dropped: 3, 2 or 1
