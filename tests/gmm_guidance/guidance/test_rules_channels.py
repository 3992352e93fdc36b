"""Guidance of the first channels leaves the others to the conditional prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.predictions import outputs_of, random_point
from oracles.toy_stack import ToyStack

import gmm_guidance as gg
from gmm_guidance import APG, CFG, CFGPlusPlus, GuidedChannels, Renoised, S2Guidance
from gmm_guidance.sampling.segments import plan_segments

POINT = random_point(shape=(3, 2, 4))


def combine(rule, cond, uncond):
    x, outputs = POINT.x, outputs_of(rule, {None: cond, "uncond": uncond})
    return rule.combine(outputs, x, jnp.float32(1.0), rule.init(x))[0]


def test_channels_are_guided_apart():
    cond, uncond = POINT.cond, POINT.uncond
    rule = GuidedChannels(CFG(3.0), 3)
    found = combine(rule, cond, uncond)
    wanted = np.asarray(uncond + 3.0 * (cond - uncond))
    np.testing.assert_allclose(found[..., :3], wanted[..., :3], rtol=1e-5)
    np.testing.assert_array_equal(found[..., 3:], cond[..., 3:])


def test_further_output_channels_are_conditional():
    """A learned variance: twice the sample's channels come in, and go out."""
    rule = GuidedChannels(CFG(3.0), 4)
    doubled = [jnp.concatenate([a, 10.0 + a], -1) for a in (POINT.cond, POINT.uncond)]
    found = combine(rule, *doubled)
    assert found.shape == (*POINT.x.shape[:-1], 8)
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
    guided = combine(rule, POINT.cond, POINT.uncond)
    assert isinstance(guided, Renoised)
    assert guided.denoised.shape == guided.renoise.shape == POINT.x.shape


def test_errors():
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
