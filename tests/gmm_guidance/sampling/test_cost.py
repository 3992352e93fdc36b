"""The cost of a rule before it runs, against counting block by block."""

import itertools

import jax
import numpy as np
import pytest
from oracles.ledger import Ledger, rows_by_block
from oracles.toy_stack import ToyStack

from gmm_guidance import (
    APG,
    CFG,
    TCFG,
    AutoGuidance,
    CFGPlusPlus,
    CFGZeroStar,
    CustomSchedule,
    GuidanceRule,
    Karras,
    Pass,
    Rescaled,
    S2Guidance,
    SigmaWindow,
    SkipLayer,
    Unguided,
    Windowed,
    expected_cost,
    guidance_rule,
    guided_sample,
    measure_cost,
)
from gmm_guidance.blocks.drop import Bernoulli, FixedBlocks

ONE_STEP = CustomSchedule((1.0,))


def per_evaluation(rule, num_blocks):
    return expected_cost(rule, ONE_STEP, num_blocks, solver="euler")


def over_cfg(window, num_steps, solver="euler", **options):
    """Extra cost over CFG in per cent: shared, separate."""
    args = (Karras(num_steps), 28)
    cfg = expected_cost(CFG(4.0), *args, solver=solver)
    s2 = expected_cost(S2Guidance(4.0, window=window, **options), *args, solver=solver)
    return tuple(
        100 * (new / old - 1) for new, old in zip(s2[:2], cfg[:2], strict=True)
    )


@pytest.mark.parametrize(
    "num_blocks, protected, num_dropped, scale, num_full",
    [
        (6, (0,), 1, 3.0, 2),
        (6, (0,), 3, 1.0, 1),
        (7, (2, 6), 2, 3.0, 2),
        (7, (2, 6), 1, 1.0, 1),
        (4, (), 3, 3.0, 2),
        (4, (), 2, 1.0, 1),
    ],
)
def test_fixed_count_is_the_average_over_all_masks(
    num_blocks, protected, num_dropped, scale, num_full
):
    free = [b for b in range(num_blocks) if b not in protected]
    masks = list(itertools.combinations(free, num_dropped))
    rule = S2Guidance(scale, num_dropped=num_dropped, protected=protected, window=None)
    counts = [rows_by_block(num_blocks, num_full, [mask]) for mask in masks]
    cost = per_evaluation(rule, num_blocks)
    assert cost.shared == pytest.approx(np.mean(counts) / num_blocks)
    alone = num_full * num_blocks + (num_blocks - num_dropped)
    assert cost.separate == pytest.approx(alone / num_blocks)
    assert cost.evaluations == 1


@pytest.mark.parametrize("num_masks", [2, 3])
def test_several_masks_are_the_average_over_all_their_combinations(num_masks):
    together = itertools.product([(1,), (2,), (3,), (4,)], repeat=num_masks)
    mean = np.mean([rows_by_block(5, 2, masks) for masks in together])
    rule = S2Guidance(3.0, num_masks=num_masks, window=None)
    assert per_evaluation(rule, 5).shared == pytest.approx(mean / 5)


def test_all_masks_are_counted_once_each():
    masks = list(itertools.combinations(range(1, 6), 2))
    rule = S2Guidance(3.0, num_dropped=2, num_masks="all", window=None)
    cost = per_evaluation(rule, 6)
    assert cost.shared == pytest.approx(rows_by_block(6, 2, masks) / 6)
    assert cost.separate == pytest.approx(2 + len(masks) * 4 / 6)


def test_bernoulli_is_the_average_by_probability():
    rate, total, mean, dropped = 0.3, 0.0, 0.0, 0.0
    for size in (1, 2, 3, 4):
        for mask in itertools.combinations((1, 2, 3, 4), size):
            weight = rate**size * (1 - rate) ** (4 - size)
            total += weight
            mean += weight * rows_by_block(5, 2, [mask])
            dropped += weight * size
    rule = S2Guidance(3.0, distribution=Bernoulli(rate), window=None)
    cost = per_evaluation(rule, 5)
    assert cost.shared == pytest.approx(mean / total / 5)
    assert cost.separate == pytest.approx(3 - dropped / total / 5)


@pytest.mark.parametrize(
    "rule, shared, separate",
    [
        (Unguided(), 1, 1),
        (CFG(3.0), 2, 2),
        (CFG(1.0), 1, 1),
        (AutoGuidance("worse", 2.0), 2, 2),
        (AutoGuidance("worse", 1.0), 1, 1),
        (S2Guidance(3.0, 0.0, window=None), 2, 2),
        (S2Guidance(1.0, 0.0, window=None), 1, 1),
        (S2Guidance(3.0, distribution=FixedBlocks((1, 3)), window=None), 2.4, 2.6),
        (SkipLayer(1.0, (0,), window=None), 1.8, 1.8),
        (S2Guidance(3.0, per_sample=True, window=None), 3, 3),
    ],
    ids=repr,
)
def test_costs_of_one_evaluation(rule, shared, separate):
    assert per_evaluation(rule, 5)[:2] == pytest.approx((shared, separate))


def test_a_traced_scale_counts_as_on():
    costs = []
    jax.jit(lambda scale: costs.append(per_evaluation(CFG(scale), 5).shared))(1.0)
    assert costs == [2.0]


@pytest.mark.parametrize(
    "num_dropped, shared, separate", [(1, 23, 48), (2, 30, 46), (3, 32, 45)]
)
def test_the_published_arithmetic_of_28_blocks(num_dropped, shared, separate):
    extra = over_cfg(None, 50, num_dropped=num_dropped)
    assert np.round(extra).tolist() == [shared, separate]


class Unequal:
    """Blocks of five costs; only these and their number are asked for."""

    num_blocks = 5
    block_costs = (4.0, 1.0, 2.0, 0.5, 2.5)


@pytest.mark.parametrize("num_dropped, protected", [(1, (0,)), (2, (0, 3)), (3, ())])
def test_unequal_blocks_count_by_their_cost(num_dropped, protected):
    """Against each set of blocks, block by block."""
    free = [b for b in range(5) if b not in protected]
    shared, separate = [], []
    for mask in itertools.combinations(free, num_dropped):
        kept = [b for b in range(5) if b not in mask]
        separate.append(sum(Unequal.block_costs[b] for b in kept) / 10)
        after = [b for b in kept if b > min(mask)]
        shared.append(sum(Unequal.block_costs[b] for b in after) / 10)
    rule = S2Guidance(3.0, num_dropped=num_dropped, protected=protected, window=None)
    cost = per_evaluation(rule, Unequal())
    assert cost.shared == pytest.approx(2 + np.mean(shared))
    assert cost.separate == pytest.approx(2 + np.mean(separate))


@pytest.mark.parametrize("num_dropped, overhead", [(1, 16.3), (2, 21.4)])
def test_dual_attention_blocks_of_sd35_medium_are_in_the_shared_part(
    num_dropped, overhead
):
    """TFLOP at 1024 pixels; equal blocks would say 18.3 % for one."""

    class Medium:
        num_blocks = 24
        block_costs = (*[0.552] * 13, *[0.371] * 10, 0.357)

    rule = S2Guidance(3.0, num_dropped=num_dropped, window=None)
    extra = per_evaluation(rule, Medium()).shared - 2
    assert 100 * 0.8 * extra / 2 == pytest.approx(overhead, abs=0.1)


def test_costs_that_cannot_be():
    for costs in ((1.0,) * 4, (1.0, 1.0, 1.0, 1.0, 0.0)):
        model = Unequal()
        model.block_costs = costs
        with pytest.raises(ValueError, match="5 numbers above 0, one for each block"):
            per_evaluation(CFG(2.0), model)


def test_the_default_window_takes_forty_steps_of_fifty():
    assert over_cfg((0.1, 0.9), 50)[0] == pytest.approx(18.6, abs=0.05)


def test_windows_count_the_evaluations_inside():
    """Heun: steps at 8, 4, 2, 1, whose second evaluations are one level further."""
    schedule = CustomSchedule((8.0, 4.0, 2.0, 1.0))
    by_step = Windowed(CFG(3.0), (0.25, 0.75))
    assert expected_cost(by_step, schedule, 5).shared == 7 + 2 * 2
    by_sigma = Windowed(CFG(3.0), SigmaWindow(1.0, 4.0))
    assert expected_cost(by_sigma, schedule, 5).shared == 7 + 4
    assert expected_cost(by_sigma, schedule, 5, solver="euler").shared == 4 + 2
    for solver, evaluations in (("euler", 4), ("heun", 7), ("dpmpp_2m", 4)):
        cost = expected_cost(Unguided(), schedule, 5, solver=solver)
        assert cost == (evaluations, evaluations, evaluations)


def test_a_distribution_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_dropped=5 exceeds the 4 unprotected"):
        expected_cost(S2Guidance(3.0, num_dropped=5), Karras(10), 5)
    with pytest.raises(ValueError, match="solver must be one of"):
        expected_cost(CFG(3.0), Karras(10), 5, solver="hun")


# --- composed rules


FOUR_STEPS = CustomSchedule((8.0, 4.0, 2.0, 1.0))
FIXED = {"distribution": FixedBlocks((1, 3)), "window": None}  # joined, 0.4 of 5 blocks


def of_four_steps(rule):
    return expected_cost(rule, FOUR_STEPS, 5, solver="euler")


@pytest.mark.parametrize(
    "rule, passes",
    [
        (Rescaled(CFG(3.0)), 8),
        (Rescaled(CFG(0.0)), 8),  # D_u alone, and D_c for its spread
        (APG(1.0, 0.5), 4),
        (Rescaled(S2Guidance(APG(3.0), **FIXED)), 8 + 4 * 0.4),
        (S2Guidance(APG(1.0), **FIXED), 4 + 4 * 0.4),
        (S2Guidance(SkipLayer(3.0, (2,), window=(0.5, 1.0)), **FIXED), 9.6 + 2 * 0.4),
        (S2Guidance(CFGZeroStar(3.0, 2), **FIXED), 2 * 2.4),
        (Windowed(Rescaled(S2Guidance(APG(3.0), **FIXED)), (0.5, 1.0)), 2 + 2 * 2.4),
    ],
    ids=repr,
)
def test_a_run_costs_what_is_expected_and_each_pass_once(rule, passes):
    stack = Ledger(5)
    samples = guided_sample(
        jax.random.key(0), stack, 1, num_samples=2, guidance=rule,
        schedule=FOUR_STEPS, solver="euler",
    )  # fmt: skip
    jax.block_until_ready(samples)
    assert stack.count() == pytest.approx(5 * passes)
    assert of_four_steps(rule).shared == pytest.approx(passes)


@pytest.mark.parametrize(
    "rule, shared, separate",
    [
        (Rescaled(CFG(3.0), 0.0), 2, 2),
        (Rescaled(CFG(1.0)), 1, 1),
        (APG(3.0), 2, 2),
        (TCFG(3.0), 2, 2),
        (TCFG(1.0), 1, 1),
        (CFGPlusPlus(0.5), 2, 2),
        (S2Guidance(CFG(0.0), **FIXED), 2.4, 2.6),
        (S2Guidance(APG(3.0), 0.0, **FIXED), 2, 2),
        (S2Guidance(Unguided(), **FIXED), 1.4, 1.6),
        (S2Guidance(Rescaled(CFG(3.0)), **FIXED), 2.4, 2.6),
        (S2Guidance(CFGPlusPlus(0.5), **FIXED), 2.4, 2.6),
        (S2Guidance(AutoGuidance("worse", 2.0), **FIXED), 2.4, 2.6),
        (S2Guidance(S2Guidance(3.0, **FIXED), **FIXED), 2.8, 3.2),
        (S2Guidance(3.0, window=None, num_masks="all"), 2 + 1.2, 2 + 4 * 0.8),
    ],
    ids=repr,
)
def test_costs_of_composed_rules(rule, shared, separate):
    assert of_four_steps(rule)[:2] == pytest.approx((4 * shared, 4 * separate))


@guidance_rule
class Own(GuidanceRule):
    """A rule that drops blocks without saying what it costs."""

    def draw(self, random):
        return jax.random.randint(random.key(), (1,), 1, random.num_blocks)

    def passes(self, label, draws):
        return Pass(label), Pass(label, drop=draws)


def test_a_set_of_which_nothing_is_known_counts_in_full():
    assert of_four_steps(Own())[:2] == (8, 8)
    assert of_four_steps(Windowed(Own(), (0.0, 0.5)))[:2] == (6, 6)


def test_measured_costs_are_a_table_beside_cfg():
    rules = {"S²": S2Guidance(2.0, window=None), "none": Unguided()}
    stack = ToyStack.random()
    table = measure_cost(stack, rules, Karras(3), "euler", 4, repeats=1)
    assert list(table) == ["CFG", "S²", "none"]
    assert table["CFG"].over_cfg == 0.0 and table["CFG"].cost.shared == 6.0
    assert table["none"].cost.evaluations == 3
    assert all(row.seconds > 0 and row.megabytes > 0 for row in table.values())
    lines = str(table).splitlines()
    assert len(lines) == 5 and all(line.count("|") == 7 for line in lines)
    assert "| +0 % |" in lines[2]
    assert str(table["none"].cost) == "3 passes in 3 evaluations, 1 each"
