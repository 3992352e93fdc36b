"""Rescaled and GuidedChannels: hand-made numbers, exact limits, what is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.predictions import Point, outputs_of, random_point, value
from oracles.toy_stack import ToyStack

import gmm_guidance as gg
from gmm_guidance import (
    APG,
    CFG,
    CFGPlusPlus,
    CustomSchedule,
    GuidedChannels,
    Renoised,
    Rescaled,
    S2Guidance,
    Unguided,
    guided_sample,
)
from gmm_guidance.guidance.windows import Position
from gmm_guidance.sampling.segments import plan_segments

# --- Rescaled


POINT = random_point(shape=(6, 3, 4))
START = Position(0.0, 1.0, 0, 10)


@pytest.mark.parametrize(
    "factor, wanted", [(0.0, (0, 8)), (1.0, (0, 4)), (0.75, (0, 5)), (0.5, (0, 6))]
)
def test_by_hand(factor, wanted):
    """D_c = (1, 5) has a spread of 2, the guided D = (0, 8) of 4."""
    rows = np.float32([[1, 5]]), np.float32([[2, 2]])
    point = Point(*rows, np.float32([[7, 7]]), 1.0)
    assert value(CFG(2.0), point).tolist() == [[0, 8]]
    np.testing.assert_allclose(value(Rescaled(CFG(2.0), factor), point), [wanted])


def test_each_sample_is_pulled_back_to_its_own_spread():
    """Fully at 1, whatever the rule; 0.7 of the way by default."""
    weak = (0.5 * POINT.uncond,)
    for rule in (CFG(4.0), APG(7.0, 1.0), S2Guidance(4.0, 0.1)):
        got, plain = (value(r, POINT, weak) for r in (Rescaled(rule, 1.0), rule))
        spreads = [np.std(a, axis=(1, 2)) for a in (got, POINT.cond, plain)]
        np.testing.assert_allclose(spreads[0], spreads[1], rtol=1e-4)
        assert (spreads[2] > spreads[1]).all()
        np.testing.assert_allclose(
            value(Rescaled(rule), POINT, weak),
            0.7 * got + 0.3 * plain,
            rtol=1e-4,
            atol=1e-5,
        )


def test_off_values_are_the_rule_alone():
    for factor in (0.0, jnp.asarray(0.0)):
        np.testing.assert_array_equal(
            value(Rescaled(CFG(4.0), factor), POINT), value(CFG(4.0), POINT)
        )
    assert Rescaled(CFG(4.0), 0.0).at(START) == CFG(4.0)
    assert Rescaled(CFG(1.0)).at(START) == Unguided()
    # Equal spreads change nothing, to the last bit.
    np.testing.assert_array_equal(value(Rescaled(CFG(1.0)), POINT), POINT.cond)


def test_flat_results_stay_finite():
    flat = POINT._replace(
        cond=np.ones_like(POINT.cond), uncond=np.zeros_like(POINT.cond)
    )
    np.testing.assert_allclose(value(Rescaled(CFG(4.0), 1.0), flat), 4.0)


def test_it_depends_on_the_space():
    """The same formula in noise is another rule."""
    in_x0 = value(Rescaled(CFG(4.0)), POINT)
    x, sigma = POINT.x, np.float32(POINT.sigma)
    noise = Point((x - POINT.cond) / sigma, (x - POINT.uncond) / sigma, x, POINT.sigma)
    in_noise = x - sigma * value(Rescaled(CFG(4.0)), noise)
    assert np.abs(in_x0 - in_noise).max() > 0.1


def test_a_sample_of_one_number_has_no_spread():
    line = ToyStack.random(dim=1)
    with pytest.raises(
        ValueError, match=r"at least two numbers.*samples of shape \(1,"
    ):
        guided_sample(
            jax.random.key(0),
            line,
            1,
            num_samples=3,
            guidance=Rescaled(CFG(2.0)),
            schedule=CustomSchedule((2.0, 1.0)),
        )


@pytest.mark.parametrize("factor", [-0.1, 1.5, np.nan])
def test_factors_are_shares(factor):
    with pytest.raises(ValueError, match=r"factor must be (in \[0, 1\]|finite), got"):
        Rescaled(CFG(2.0), factor)


# --- GuidedChannels


CHANNELS = random_point(shape=(3, 2, 4))


def on_channels(rule, cond, uncond):
    x, outputs = CHANNELS.x, outputs_of(rule, {None: cond, "uncond": uncond})
    return rule.combine(outputs, x, jnp.float32(1.0), rule.init(x))[0]


def test_channels_are_guided_apart():
    cond, uncond = CHANNELS.cond, CHANNELS.uncond
    rule = GuidedChannels(CFG(3.0), 3)
    found = on_channels(rule, cond, uncond)
    wanted = np.asarray(uncond + 3.0 * (cond - uncond))
    np.testing.assert_allclose(found[..., :3], wanted[..., :3], rtol=1e-5)
    np.testing.assert_array_equal(found[..., 3:], cond[..., 3:])


def test_further_output_channels_are_conditional():
    """A learned variance: twice the sample's channels come in, and go out."""
    rule = GuidedChannels(CFG(3.0), 4)
    doubled = [
        jnp.concatenate([a, 10.0 + a], -1) for a in (CHANNELS.cond, CHANNELS.uncond)
    ]
    found = on_channels(rule, *doubled)
    assert found.shape == (*CHANNELS.x.shape[:-1], 8)
    np.testing.assert_array_equal(found[..., 4:], doubled[0][..., 4:])


@pytest.mark.ci
def test_all_channels_are_the_rule_itself():
    stack = ToyStack.random()
    args = dict(num_samples=3, schedule=gg.Karras(4), solver="euler")
    for rule in (S2Guidance(3.0), APG(3.0), CFGPlusPlus(0.7)):
        key = jax.random.key(0)
        channels = stack.sample_shape[-1]
        plain = gg.guided_sample(key, stack, 1, guidance=rule, **args)
        whole = gg.guided_sample(
            key, stack, 1, guidance=GuidedChannels(rule, channels), **args
        )
        np.testing.assert_allclose(whole, plain, rtol=1e-6, atol=1e-6)


def test_costs_no_further_pass():
    for rule in (CFG(2.0), S2Guidance(2.0)):
        plain = gg.expected_cost(rule, gg.Karras(10), 8)
        assert gg.expected_cost(GuidedChannels(rule), gg.Karras(10), 8) == plain


def test_windows_resolve_inside():
    rule = GuidedChannels(gg.Windowed(CFG(2.0), (0.5, 1.0)))
    segments = plan_segments(rule, gg.Karras(10), gg.Euler())
    assert isinstance(segments[0].rules[0], gg.Unguided)
    assert isinstance(segments[1].rules[0], GuidedChannels)


def test_noise_of_renoised_rules_keeps_its_shape():
    rule = GuidedChannels(CFGPlusPlus(0.5), 2)
    guided = on_channels(rule, CHANNELS.cond, CHANNELS.uncond)
    assert isinstance(guided, Renoised)
    assert guided.denoised.shape == guided.renoise.shape == CHANNELS.x.shape


def test_channels_that_do_not_exist():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        GuidedChannels(CFG(2.0), 0)
    with pytest.raises(ValueError, match="at most the sample's 2 channels, got 3"):
        gg.guided_sample(
            jax.random.key(0),
            ToyStack.random(),
            1,
            num_samples=2,
            guidance=GuidedChannels(CFG(2.0)),
        )
