"""What composed rules cost, against counting the blocks that run."""

import jax
import pytest
from oracles.ledger import Ledger

from gmm_guidance import (
    APG,
    CFG,
    TCFG,
    AutoGuidance,
    CFGPlusPlus,
    CFGZeroStar,
    CustomSchedule,
    FixedBlocks,
    GuidanceRule,
    Pass,
    Rescaled,
    S2Guidance,
    SkipLayer,
    Unguided,
    Windowed,
    expected_cost,
    guidance_rule,
    guided_sample,
)

SCHEDULE = CustomSchedule((8.0, 4.0, 2.0, 1.0))
FIXED = {"distribution": FixedBlocks((1, 3)), "window": None}  # joined, 0.4 of 5 blocks


def cost(rule):
    return expected_cost(rule, SCHEDULE, 5, solver="euler")


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
        schedule=SCHEDULE, solver="euler",
    )  # fmt: skip
    jax.block_until_ready(samples)
    assert stack.count() == pytest.approx(5 * passes)
    assert cost(rule).shared == pytest.approx(passes)


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
def test_costs_of_one_evaluation(rule, shared, separate):
    assert cost(rule)[:2] == pytest.approx((4 * shared, 4 * separate))


@guidance_rule
class Own(GuidanceRule):
    """A rule that drops blocks without saying what it costs."""

    def draw(self, random):
        return jax.random.randint(random.key(), (1,), 1, random.num_blocks)

    def passes(self, label, draws):
        return Pass(label), Pass(label, drop=draws)


def test_a_set_of_which_nothing_is_known_counts_in_full():
    assert cost(Own())[:2] == (8, 8)
    assert cost(Windowed(Own(), (0.0, 0.5)))[:2] == (6, 6)
