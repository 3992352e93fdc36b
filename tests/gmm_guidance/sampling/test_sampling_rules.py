"""Every rule in numbers: a run of one step returns the guided value itself.

The network is evaluated in NumPy, with the dropped blocks left out of it.
"""

import jax
import numpy as np
import pytest
from oracles.toy_stack import ToyStack

from gmm_guidance import CFG, AutoGuidance, Karras, S2Guidance, SkipLayer, guided_sample

STACK, WEAK = ToyStack.random(0), ToyStack.random(1, num_blocks=2)
SIGMA, LABEL = 10.0, 1
START = SIGMA * np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)


def predict(label, without=(), stack=STACK):
    """The network's value at the start."""
    table, shift = np.asarray(stack.table, float), np.asarray(stack.shift, float)
    scale = np.sqrt(1 + SIGMA**2)
    hidden = (START - shift) / scale
    for i in range(stack.num_blocks):
        if i not in without:
            weights = np.asarray(stack.weights[i], float)
            hidden = hidden + np.tanh(hidden @ weights + table[label])
    return shift + (START - shift) / scale**2 + SIGMA / scale * hidden


def draw(rule, key=0):
    return guided_sample(
        jax.random.key(key),
        STACK,
        LABEL,
        num_samples=len(START),
        guidance=rule,
        schedule=Karras(1, 0.01, SIGMA),
        solver="euler",
        initial=START,
    )


COND, UNCOND = predict(LABEL), predict(2)
GUIDED = UNCOND + 3.0 * (COND - UNCOND)
ALL_WEAK = [predict(LABEL, (i,)) for i in (1, 2, 3)]  # block 0 is protected
MEAN_WEAK = np.mean(ALL_WEAK, axis=0)


def s2(scale=3.0, **options):
    return S2Guidance(scale, 0.8, window=None, **options)


RULES = {
    "cfg": (CFG(3.0), GUIDED),
    "autoguidance": (
        AutoGuidance(WEAK, 2.5),
        -1.5 * predict(LABEL, stack=WEAK) + 2.5 * COND,
    ),
    "skip layer": (
        SkipLayer(3.0, (1, 2), 0.8, window=None),
        GUIDED + 0.8 * (COND - predict(LABEL, (1, 2))),
    ),
    "s2 over all masks": (s2(1.0, num_masks="all"), COND + 0.8 * (COND - MEAN_WEAK)),
    "s2 subtract": (s2(form="subtract", num_masks="all"), GUIDED - 0.8 * MEAN_WEAK),
    "s2 subtract_eps": (
        s2(form="subtract_eps", num_masks="all"),
        GUIDED + 0.8 * (START - MEAN_WEAK),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_its_formula(name):
    rule, wanted = RULES[name]
    np.testing.assert_allclose(draw(rule), wanted, rtol=1e-4, atol=1e-4)


def test_one_mask_is_one_of_all():
    found = set()
    for key in range(12):
        got = draw(s2(), key)
        gaps = [np.abs(got - GUIDED - 0.8 * (COND - weak)).max() for weak in ALL_WEAK]
        assert sorted(gaps)[0] < 1e-3 < 1e-1 < sorted(gaps)[1]
        found.add(int(np.argmin(gaps)))
    assert found == {0, 1, 2}


def test_several_masks_are_averaged():
    got = np.asarray(draw(s2(num_masks=2)), float)
    pairs = [(a + b) / 2 for a in ALL_WEAK for b in ALL_WEAK]
    gaps = [np.abs(got - GUIDED - 0.8 * (COND - weak)).max() for weak in pairs]
    assert min(gaps) < 1e-3 < 1e-1 < max(gaps)
