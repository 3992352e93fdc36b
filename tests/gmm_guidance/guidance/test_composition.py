"""Rules inside of rules: a weak term on any base, rescaling of any result, windows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.predictions import random_point, step, value
from oracles.toy_stack import ToyStack

from gmm_guidance import (
    APG,
    CFG,
    MAMBOG,
    TCFG,
    CFGZeroStar,
    CustomSchedule,
    GuidanceRule,
    Karras,
    Pass,
    Rescaled,
    RuleWrapper,
    S2Guidance,
    SigmaWindow,
    SkipLayer,
    Unguided,
    Windowed,
    expected_cost,
    guidance_rule,
    guided_denoise,
    guided_sample,
)
from gmm_guidance.blocks.drop import FixedBlocks
from gmm_guidance.guidance.draws import RandomDraws
from gmm_guidance.sampling.segments import plan_segments
from gmm_guidance.sampling.solvers import Euler

POINT = random_point()
WEAK = random_point(7).cond
LEVELS = (8.0, 4.0, 2.0, 1.0)
STACK = ToyStack.random()
FIXED = {"distribution": FixedBlocks((1, 3)), "window": None}

BASES = [
    CFG(3.0),
    CFG(1.0),
    APG(4.0, 0.2, 1.5),
    APG(4.0, momentum=0.0),
    TCFG(3.0),
    CFGZeroStar(3.0),
    MAMBOG(5.0, 2.0),
    Rescaled(CFG(3.0), 0.6),
    SkipLayer(3.0, (1,), 0.5, window=None),
]


def draw(rule, stack=STACK, solver="euler", key=0, num_samples=3, **options):
    return guided_sample(
        jax.random.key(key),
        stack,
        1,
        num_samples=num_samples,
        guidance=rule,
        schedule=CustomSchedule(LEVELS),
        solver=solver,
        **options,
    )


@pytest.mark.parametrize("base", BASES[:-1], ids=repr)
@pytest.mark.parametrize("term", [S2Guidance, lambda b, w: SkipLayer(b, (0,), w)])
def test_a_weak_term_is_added_to_any_base(base, term):
    """``base + 0.5 (D_c - D_weak)``, and the base's own state."""
    plain, state = step(base, POINT)
    got, kept = step(term(base, 0.5), POINT, weak=(WEAK,))
    wanted = plain + np.float32(0.5) * (POINT.cond - WEAK)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(kept) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, kept, state)


def test_a_number_is_cfg():
    got = value(S2Guidance(CFG(3.0), 0.5), POINT, (WEAK,))
    np.testing.assert_array_equal(got, value(S2Guidance(3.0, 0.5), POINT, (WEAK,)))


def test_nested_random_masks_are_drawn_independently():
    index, at = jnp.zeros(1, jnp.uint32), jnp.zeros((), jnp.uint32)
    rule = S2Guidance(S2Guidance(2.0))

    def draws(rule, key):
        return rule.draw(RandomDraws(key, at, at, 5, index))

    @jax.jit
    def pair(key):
        found = draws(rule, key)
        return found["base"]["weak"][0][0], found["weak"][0][0]

    alone = jax.jit(lambda key: draws(S2Guidance(2.0), key)["weak"][0][0])
    keys = [jax.random.key(seed) for seed in range(60)]
    drawn = [tuple(int(block) for block in pair(key)) for key in keys]
    assert len(set(drawn)) > 12  # of 16 pairs
    assert [base for base, _ in drawn] == [int(alone(key)) for key in keys]


def test_two_weak_terms_add_up_in_either_order():
    options = {"window": None, "num_masks": "all"}
    turned = [
        S2Guidance(S2Guidance(2.0, 0.3, **options), 0.5, **FIXED),
        S2Guidance(S2Guidance(2.0, 0.5, **FIXED), 0.3, **options),
    ]
    twice = S2Guidance(S2Guidance(2.0, 0.3, **options), 0.5, **options)
    once = S2Guidance(2.0, 0.8, **options)
    x = jnp.asarray(POINT.x[:, 0, :2])

    @jax.jit
    def values():
        return [guided_denoise(STACK, r, x, 2.0, 1) for r in (*turned, twice, once)]

    first, second, third, fourth = values()
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(third, fourth, rtol=1e-5, atol=1e-5)
    assert np.abs(first - third).max() > 0.01


# --- state


def apg_by_hand(start, num_steps, weak_at=(), scale=3.0, momentum=-0.5):
    """A run of APG in NumPy, with a push of 0.4 at some of its steps."""
    x, d = np.asarray(start, float), 0.0
    for i, (now, after) in enumerate(itertools.pairwise((*LEVELS, 0.0))):
        if i == num_steps:
            break
        cond, uncond = 0.5 * x + [1.0, 0.0], 0.2 * x
        d = cond - uncond + momentum * d
        along = (d * cond).sum(1) / (cond * cond).sum(1)
        guided = cond + (scale - 1) * (d - along[:, None] * cond)
        guided = guided + (0.4 if i in weak_at else 0.0)
        x = guided + after / now * (x - guided)
    return x


class Pushed:
    """Two linear predictions, and a weak one that is 0.4 less than the conditional."""

    num_blocks, sample_shape, num_labels = 2, (2,), 2

    def embed(self, x, sigma, label):
        bias = jnp.array([1.0, 0.0])[None]
        return (0.2 * x if label is None else 0.5 * x + bias), ()

    def block(self, index, hidden, context):
        return hidden + jnp.where(jnp.asarray(index) == 1, 0.4, 0.0)

    def readout(self, hidden, context, x, sigma):
        return hidden - 0.4


@pytest.mark.parametrize(
    "window, pushed", [(None, {0, 1, 2, 3}), ((0.25, 0.75), {1, 2})]
)
def test_momentum_survives_the_ends_of_the_weak_terms_window(window, pushed):
    start = np.float32([[3.0, -5.0], [-6.0, 2.0]])
    rule = S2Guidance(APG(3.0), 1.0, window=window)
    got = draw(rule, Pushed(), num_samples=2, initial=start)
    np.testing.assert_allclose(got, apg_by_hand(start, 4, pushed), rtol=1e-4, atol=1e-4)


def test_a_state_may_begin_at_the_second_evaluation_of_a_step():
    """Heun from 8 to 4: APG acts at 4, the first evaluation has no state."""
    rule = Windowed(APG(3.0, momentum=-0.9), SigmaWindow(1.0, 4.0))
    assert np.isfinite(draw(rule, solver="heun")).all()


def test_two_kinds_of_state_cannot_share_a_step():
    @guidance_rule
    class Counting(APG):
        def init(self, x):
            return {"calls": jnp.zeros(())}

    rule = Windowed(APG(3.0), SigmaWindow(1.0, 4.0), outside=Counting(2.0))
    with pytest.raises(ValueError, match="two evaluations of one step carry different"):
        draw(rule, solver="heun")


@guidance_rule
class Blended(RuleWrapper):
    """A rule mixed with ``D_c``; its own draw leaves those of the rule unchanged."""

    rule: GuidanceRule
    weight: float

    def draw(self, random):
        return {"rule": super().draw(random), "own": random.key()}

    def passes(self, label, draws):
        return {"rule": super().passes(label, draws["rule"]), "cond": Pass(label)}

    def combine(self, outputs, x, sigma, state):
        guided, state = super().combine(outputs["rule"], x, sigma, state)
        return outputs["cond"] + self.weight * (guided - outputs["cond"]), state


@pytest.mark.parametrize("inner", [S2Guidance(APG(3.0), 0.5), CFGZeroStar(3.0, 2)])
def test_a_custom_wrapper_defines_only_what_it_changes(inner):
    """With weight 1 it is its rule: windows, masks, momentum, steps without a pass."""
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(draw(Blended(inner, 1.0)), draw(inner), **close)
    np.testing.assert_allclose(draw(Blended(inner, 0.0)), draw(Unguided()), **close)
    assert expected_cost(Blended(S2Guidance(3.0, **FIXED), 0.5), Karras(4), 5) == (
        expected_cost(S2Guidance(3.0, **FIXED), Karras(4), 5)
    )


def test_random_draws_are_independent_and_last_as_long_as_asked():
    def keys(step, evaluation):
        random = RandomDraws(jax.random.key(0), step, evaluation, 5, jnp.arange(2))
        for redraw in ("step", "step", "evaluation", "run"):
            yield tuple(jax.random.key_data(random.key(redraw)).tolist())

    first, other, later = (list(keys(*at)) for at in ((0, 0), (0, 1), (1, 0)))
    assert len(set(first)) == 4
    assert [a == b for a, b in zip(first, other, strict=True)] == [1, 1, 0, 1]
    assert [a == b for a, b in zip(first, later, strict=True)] == [0, 0, 0, 1]


# --- what each rule must have in common with the others

RULES = [
    *(rule for rule in BASES[:-1] if rule != CFG(1.0)),
    S2Guidance(APG(3.0), 0.5),
    Rescaled(S2Guidance(3.0, 0.5)),
    Rescaled(APG(5.0), 1.0),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_samples_of_a_batch_are_not_coupled(rule):
    """Each alone, and as a flat vector: norms are over all axes of one sample."""
    whole = value(rule, POINT, (WEAK,))
    for i in range(len(POINT.x)):
        alone = value(rule, POINT.sample(i), (WEAK[i : i + 1],))
        np.testing.assert_allclose(whole[i : i + 1], alone, rtol=1e-5, atol=1e-6)
    flat = POINT._replace(
        **{k: getattr(POINT, k).reshape(5, -1) for k in POINT._fields[:3]}
    )
    got = value(rule, flat, (WEAK.reshape(5, -1),))
    np.testing.assert_allclose(got, whole.reshape(5, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, jnp.asarray(1.0)], ids=["python", "array"])
@pytest.mark.parametrize(
    "make",
    [APG, TCFG, MAMBOG, lambda s: CFGZeroStar(s, 0), lambda s: Rescaled(CFG(s), 1.0)],
    ids=["APG", "TCFG", "MAMBOG", "CFGZeroStar", "Rescaled"],
)
def test_a_scale_of_one_is_the_conditional_denoiser_exactly(make, scale):
    np.testing.assert_array_equal(value(make(scale), POINT), POINT.cond)
    np.testing.assert_array_equal(draw(make(1.0)), draw(Unguided()))
    segments = plan_segments(make(1.0), CustomSchedule(LEVELS), Euler())
    assert all(s.rules == (Unguided(),) for s in segments)


def test_wrapped_rules_are_pytrees_whose_scales_are_leaves():
    rule = Rescaled(S2Guidance(APG(4.0, 0.1, 2.0), 0.25), 0.7)
    assert jax.tree.leaves(rule) == [4.0, 0.1, 2.0, -0.5, 0.25, 0.7]
    inside = plan_segments(rule, CustomSchedule(LEVELS), Euler())[1].rules[0]
    assert inside.rule == S2Guidance(APG(4.0, 0.1, 2.0), 0.25, window=None)
