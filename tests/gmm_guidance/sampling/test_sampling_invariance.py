"""What guidance must not depend on: where the origin is, and what a network predicts.

A rule whose coefficients sum to one moves with the data. It is then also the same in
data, noise, velocity and score.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.toy_stack import ToyStack
from oracles.two_gaussians import TwoGaussians

from gmm_guidance import (
    CFG,
    VE,
    VP,
    AutoGuidance,
    ExactDenoiser,
    GaussianMixture,
    Karras,
    ProcessStack,
    RectifiedFlow,
    S2Guidance,
    SkipLayer,
    Unguided,
    Windowed,
    guided_sample,
    presets,
)

KEY = jax.random.key(0)
SHIFT = np.array([3.0, -5.0], np.float32)
STACK, WEAK = ToyStack.random(0), ToyStack.random(1, num_blocks=2)
START = 10.0 * np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)


def draw(denoiser, rule, start=START, solver="euler", steps=4):
    return np.asarray(
        guided_sample(
            KEY,
            denoiser,
            1,
            num_samples=len(start),
            guidance=rule,
            schedule=Karras(steps, 0.01, 10.0),
            solver=solver,
            initial=start,
        )
    )


# --- translation


def s2(scale=3.0, **options):
    return S2Guidance(scale, 0.8, window=None, **options)


MOVING = {
    "unguided": (4, lambda weak: Unguided()),
    "cfg": (4, lambda weak: CFG(3.0)),
    "interval": (4, lambda weak: Windowed(CFG(3.0), (0.25, 0.75))),
    "autoguidance": (4, lambda weak: AutoGuidance(weak, 2.5)),
    "skip layer": (1, lambda weak: SkipLayer(3.0, (1, 2), 0.8, window=None)),
    "s2": (1, lambda weak: s2()),
    "s2 over all masks": (1, lambda weak: s2(1.0, num_masks="all")),
    # In noise space: eps - w eps_weak holds x fixed, and eps does not move.
    "s2 subtract_eps": (1, lambda weak: s2(form="subtract_eps", num_masks="all")),
}


@pytest.mark.parametrize("name", MOVING)
def test_samples_move_with_the_data(name):
    steps, rule = MOVING[name]
    still = draw(STACK, rule(WEAK), steps=steps)
    there = STACK.shifted(SHIFT)
    moved = draw(there, rule(WEAK.shifted(SHIFT)), START + SHIFT, steps=steps)
    np.testing.assert_allclose(moved - SHIFT, still, rtol=1e-3, atol=1e-3)
    if name != "unguided":  # the rule did something
        assert np.abs(still - draw(STACK, Unguided(), steps=steps)).max() > 0.01


def test_subtracting_a_whole_prediction_does_not_move_with_the_data():
    """``- w D_weak`` without ``+ w D_c``: coefficients that sum to 1 - w."""
    rule = s2(form="subtract", num_masks="all")
    still = draw(STACK, rule, steps=1)  # the guided value itself
    moved = draw(STACK.shifted(SHIFT), rule, START + SHIFT, steps=1)
    missing = still + SHIFT - moved
    wanted = np.broadcast_to(0.8 * SHIFT, missing.shape)
    np.testing.assert_allclose(missing, wanted, rtol=1e-3, atol=1e-3)


def test_a_moved_mixture_is_guided_alike():
    mixture = presets.four_corners(labels="diagonal")
    moved = GaussianMixture(mixture.means + SHIFT[None], 1.0, labels=mixture.labels)
    still = draw(ExactDenoiser(mixture), CFG(3.0), solver="heun")
    there = draw(ExactDenoiser(moved), CFG(3.0), START + SHIFT, solver="heun")
    np.testing.assert_allclose(there - SHIFT, still, rtol=1e-3, atol=1e-3)


# --- parameterization


class Network:
    """A perfect network for N(1.5, 0.5) given a label and N(0, 3) without.

    It says what it was trained to say: mean and variance of x_t, from those of the data
    and the process's own clock, give each prediction in closed form. With ``scale`` its
    output is already guided, in its own space.
    """

    sample_shape = (2,)

    def __init__(self, process, kind, scale=None):
        self.process, self.kind, self.scale = process, kind, scale

    def __call__(self, x_t, t, label):
        cond, uncond = self.predict(x_t, t, 1.5, 0.5), self.predict(x_t, t, 0.0, 3.0)
        if self.scale is not None:
            return (1 - self.scale) * uncond + self.scale * cond
        return uncond if label is None else cond

    def predict(self, x_t, t, mean, variance):
        t, ones = t[:, None], jnp.ones_like(t)[:, None]
        alpha, alpha_rate = jax.jvp(self.process.alpha, (t,), (ones,))
        std, std_rate = jax.jvp(self.process.noise_std, (t,), (ones,))
        total = alpha**2 * variance + std**2
        offset = x_t - alpha * mean
        return {
            "x0": mean + alpha * variance / total * offset,
            "epsilon": std / total * offset,
            "v": alpha * std * (1 - variance) / total * offset - std * mean,
            "velocity": alpha_rate * mean
            + (alpha * alpha_rate * variance + std * std_rate) / total * offset,
        }[self.kind]


@pytest.mark.parametrize(
    "process, kind",
    [
        (VE(), "x0"),
        (VP(), "epsilon"),
        (VP(), "v"),
        (RectifiedFlow(), "velocity"),
    ],
)
def test_guidance_is_the_same_in_every_space(process, kind):
    """Guided denoisers of a network's predictions; then of its guided predictions."""
    wanted = draw(TwoGaussians(1.5, 0.5, 3.0), CFG(3.0))
    plain = ProcessStack(Network(process, kind), process, kind)
    tolerance = {"rtol": 2e-3, "atol": 2e-3}
    got = draw(plain, CFG(3.0))
    np.testing.assert_allclose(got, wanted, **tolerance)
    inside = ProcessStack(Network(process, kind, 3.0), process, kind)
    got = draw(inside, Unguided())
    np.testing.assert_allclose(got, wanted, **tolerance)
    assert np.abs(wanted - draw(TwoGaussians(1.5, 0.5, 3.0), Unguided())).max() > 0.5
