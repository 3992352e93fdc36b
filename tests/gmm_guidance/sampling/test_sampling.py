"""``guided_sample``: the same samples however asked for, own denoisers, own rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.two_gaussians import TwoGaussians

from gmm_guidance import presets
from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.diffusion.schedule import Karras
from gmm_guidance.guidance import (
    CFG,
    GuidanceRule,
    Unguided,
    Windowed,
    guidance_rule,
)
from gmm_guidance.mixture.exact_denoiser import ExactDenoiser
from gmm_guidance.sampling.sample import guided_sample
from gmm_guidance.sampling.segments import plan_segments
from gmm_guidance.sampling.solvers import EDMStochastic, Heun

FEW = Karras(4)
SIMPLE = TwoGaussians(1.5, 0.5, 3.0)


def draw(denoiser=SIMPLE, label=1, guidance=Unguided(), n=6, **options):
    key = options.pop("key", jax.random.key(0))
    options = {"schedule": FEW, "solver": "euler", "sample_shape": (2,), **options}
    drawn = guided_sample(
        key, denoiser, label, num_samples=n, guidance=guidance, **options
    )
    return jax.tree.map(np.asarray, drawn)


# --- the same samples however they are asked for


def test_samples_do_not_depend_on_batches_or_on_what_is_drawn_besides():
    """Start and churn noise belong to the global index of a sample."""
    label = np.arange(8) % 2
    options = {
        "guidance": CFG(2.0),
        "solver": EDMStochastic(),
        "trajectory": True,
    }
    samples, path = draw(label=label, n=8, **options)
    in_parts, path_in_parts = draw(label=label, n=8, batch_size=4, **options)
    np.testing.assert_allclose(in_parts, samples, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(path_in_parts, path, rtol=1e-4, atol=1e-4)
    tail, _ = draw(label=label[4:], n=4, first_index=4, **options)
    np.testing.assert_allclose(tail, samples[4:], rtol=1e-4, atol=1e-4)
    again, _ = draw(label=label, n=8, **options)
    np.testing.assert_array_equal(again, samples)
    other, _ = draw(label=label, n=8, key=jax.random.key(1), **options)
    assert np.abs(other - samples).max() > 0.1


def test_trajectory_runs_from_noise_to_samples():
    samples, path = draw(n=4000, trajectory=True)
    assert samples.shape == (4000, 2) and path.shape == (5, 4000, 2)
    np.testing.assert_array_equal(path[-1], samples)
    # Noise of the first level, standard normal after division by it.
    noise = path[0] / 80.0
    assert abs(np.mean(noise)) < 4 / np.sqrt(8000)
    assert abs(np.std(noise) - 1) < 4 / np.sqrt(16_000)
    # A step of Euler's is a line from x to D(x): all noise levels are in their place.
    levels = FEW.sigmas()
    for i in range(4):
        denoised = SIMPLE(path[i], levels[i], 1)
        step = levels[i + 1] / levels[i]
        wanted = denoised + step * (path[i] - denoised)
        np.testing.assert_allclose(path[i + 1], wanted, rtol=1e-4, atol=1e-4)


def test_initial_noise_may_be_given():
    x = np.random.default_rng(0).integers(-80, 80, (6, 2))
    samples, path = draw(initial=x, trajectory=True)
    np.testing.assert_array_equal(path[0], x)
    for again in (x.tolist(), path[0]):
        options = {"trajectory": True, "key": jax.random.key(9)}
        np.testing.assert_array_equal(draw(initial=again, **options)[0], samples)


def test_each_sample_has_its_label():
    corners = ExactDenoiser(presets.four_corners())
    x = np.full((6, 2), 3.0, np.float32)  # no noise of its own tells samples apart
    label = np.array([0, 1, 2, 3, 4, 0])  # 4 is no condition
    options = {"guidance": CFG(2.0), "initial": x}
    samples = draw(corners, label, **options)
    signs = np.sign(samples[:4]).astype(int).tolist()
    assert signs == [[-1, -1], [-1, 1], [1, -1], [1, 1]]
    np.testing.assert_allclose(samples[5], samples[0], rtol=1e-6)
    alone = draw(corners, jnp.asarray(2), **options)
    np.testing.assert_allclose(alone[2], samples[2], rtol=1e-4, atol=1e-4)
    free = draw(corners, None, initial=x)
    np.testing.assert_allclose(samples[4], free[4], rtol=1e-4, atol=1e-4)


# --- denoisers and rules of one's own


def euler_by_hand(guided, x):
    """``guided(x, sigma)`` is the denoised value."""
    levels = FEW.sigmas()
    for sigma, after in zip(levels[:-1], levels[1:], strict=True):
        denoised = guided(x, sigma)
        x = denoised + after / sigma * (x - denoised)
    return x


def test_a_plain_function_is_a_denoiser():
    x, label = np.random.default_rng(0).normal(size=(6, 2)), np.arange(6)

    def denoiser(x, sigma, label):
        assert sigma.shape == () and (label is None or label.shape == (6,))
        mean = 0.0 if label is None else label[:, None].astype(x.dtype)
        return mean + (x - mean) / (1.0 + sigma**2)

    samples = draw(denoiser, label, CFG(2.0), initial=x)
    target = 2.0 * label[:, None]  # variances are equal: guidance moves the mean alone
    wanted = euler_by_hand(lambda x, s: target + (x - target) / (1 + s**2), x)
    np.testing.assert_allclose(samples, wanted, rtol=1e-4, atol=1e-4)


def test_an_equinox_module_is_a_denoiser():
    eqx = pytest.importorskip("equinox")
    x, traces, programs = np.random.default_rng(0).normal(size=(6, 2)), [], []

    class Network(eqx.Module):
        linear: eqx.nn.Linear
        activation: object = jax.nn.tanh  # a leaf that is no array

        def __call__(self, x, sigma, label):
            traces.append(1)
            y = self.activation(jax.vmap(self.linear)(x / sigma))
            return y if label is None else y + 1.0

    for key in jax.random.split(jax.random.key(0)):
        network = Network(eqx.nn.Linear(2, 2, key=key))
        samples = draw(network, guidance=CFG(3.0), initial=x)
        programs.append(len(traces))
        weight, bias = map(np.asarray, (network.linear.weight, network.linear.bias))

        def guided(x, sigma, weight=weight, bias=bias):
            return np.tanh(x / sigma @ weight.T + bias) + 3.0

        wanted = euler_by_hand(guided, x)
        np.testing.assert_allclose(samples, wanted, rtol=1e-4, atol=1e-4)
    assert programs[0] == programs[1]  # weights are data


@guidance_rule
class Counting(GuidanceRule):
    """Its state counts evaluations, and is the guided value."""

    def init(self, x):
        return jnp.zeros(())

    def passes(self, label, draws):
        return (Pass(label),)

    def combine(self, outputs, x, sigma, state):
        return 0.0 * outputs[0] + state, state + 1.0


@guidance_rule
class Halving(GuidanceRule):
    """In structure just like ``Unguided``."""

    def passes(self, label, draws):
        return (Pass(label),)

    def combine(self, outputs, x, sigma, state):
        return 0.5 * outputs[0], state


def test_rules_that_differ_in_their_class_alone_are_told_apart():
    """JAX 0.10 thinks that such dataclasses have equal tree structures."""
    options = {"denoiser": lambda x, s, c: jnp.ones_like(x)}
    for rule, wanted in ((Unguided(), 1.0), (Halving(), 0.5), (Unguided(), 1.0)):
        np.testing.assert_array_equal(draw(guidance=rule, **options), wanted)
    in_turn = Windowed(Unguided(), (0.0, 0.5), outside=Halving())
    assert len(plan_segments(in_turn, Karras(4), Heun())) == 3
    np.testing.assert_array_equal(draw(guidance=in_turn, **options), 0.5)


@pytest.mark.parametrize("solver, last", [("euler", 3), ("heun", 6)])
def test_a_rule_carries_its_state_through_all_evaluations(solver, last):
    samples = draw(guidance=Counting(), solver=solver)
    np.testing.assert_array_equal(samples, np.full((6, 2), last, np.float32))
