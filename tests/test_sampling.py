"""``guided_sample``: reproducibility, trajectories, own denoisers, sweeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.toy_stack import ToyStack
from oracles.two_gaussians import TwoGaussians

from gmm_guidance import presets
from gmm_guidance.denoiser import ExactDenoiser
from gmm_guidance.guidance import (
    CFG,
    AutoGuidance,
    GuidanceRule,
    S2Guidance,
    SkipLayer,
    Unguided,
    Windowed,
    guidance_rule,
)
from gmm_guidance.passes import Pass
from gmm_guidance.plan import plan_segments
from gmm_guidance.sampling import guided_sample
from gmm_guidance.schedule import Karras, SigmaWindow
from gmm_guidance.solvers import EDMStochastic, Heun

KEY = jax.random.key(0)
FEW = Karras(4)
CORNERS = ExactDenoiser(presets.four_corners())
STACK, WEAK = ToyStack.random(0), ToyStack.random(1, num_blocks=2)


def draw(denoiser=CORNERS, label=1, guidance=Unguided(), n=6, **options):
    options = {"schedule": FEW, "solver": "euler", **options}
    key = options.pop("key", KEY)
    return guided_sample(
        key, denoiser, label, num_samples=n, guidance=guidance, **options
    )


# --- off values


OFF = {
    "cfg": CFG(1.0),
    "cfg of numpy": CFG(np.float32(1)),
    "autoguidance": AutoGuidance(WEAK, 1.0),
    "s2": S2Guidance(1.0, s2_scale=0.0),
    "skip layer": SkipLayer(1.0, (1,), skip_scale=0.0),
    "empty window": Windowed(CFG(3.0), SigmaWindow(100.0, 200.0)),
}


@pytest.mark.parametrize("name", OFF)
def test_off_values_are_the_conditional_denoiser_itself(name):
    wanted = draw(STACK)
    np.testing.assert_array_equal(draw(STACK, guidance=OFF[name]), wanted)


def test_s2_off_is_cfg():
    wanted = draw(STACK, guidance=CFG(3.0))
    got = draw(STACK, guidance=S2Guidance(3.0, s2_scale=0.0))
    np.testing.assert_array_equal(got, wanted)
    assert np.abs(wanted - draw(STACK)).max() > 0.1


@pytest.mark.parametrize(
    "rule",
    [
        CFG(jnp.asarray(1.0)),
        AutoGuidance(WEAK, jnp.asarray(1.0)),
        S2Guidance(jnp.asarray(1.0), s2_scale=jnp.asarray(0.0), window=None),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_traced_off_values_run_all_passes_and_change_nothing(rule):
    got = draw(STACK, guidance=rule)
    np.testing.assert_allclose(got, draw(STACK), rtol=1e-4, atol=1e-4)


def test_cfg_of_zero_is_unconditional():
    wanted = draw(STACK, label=None)
    got = draw(STACK, guidance=CFG(0.0))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    null = draw(STACK, label=STACK.num_labels)
    np.testing.assert_allclose(null, wanted, rtol=1e-5, atol=1e-5)


def test_passes_that_are_off_are_never_traced():
    seen = []

    def denoiser(x, sigma, label):
        seen.append(label is None)
        return 0.5 * x

    draw(denoiser, guidance=CFG(1.0), sample_shape=(2,))
    assert seen and not any(seen)
    draw(denoiser, guidance=CFG(2.0), sample_shape=(2,))
    assert any(seen)


# --- the same samples however they are asked for


def test_samples_do_not_depend_on_batches_or_on_what_is_drawn_besides():
    """Start and churn noise belong to the global index of a sample."""
    label = np.arange(12) % 4
    options = {
        "guidance": CFG(2.0),
        "solver": EDMStochastic(),
        "trajectory": True,
    }
    samples, path = draw(label=label, n=12, **options)
    in_parts, path_in_parts = draw(label=label, n=12, batch_size=4, **options)
    np.testing.assert_allclose(in_parts, samples, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(path_in_parts, path, rtol=1e-4, atol=1e-4)
    tail, _ = draw(label=label[8:], n=4, first_index=8, **options)
    np.testing.assert_allclose(tail, samples[8:], rtol=1e-4, atol=1e-4)
    again, _ = draw(label=label, n=12, **options)
    np.testing.assert_array_equal(again, samples)
    other, _ = draw(label=label, n=12, key=jax.random.key(1), **options)
    assert np.abs(other - samples).max() > 0.1


def test_trajectory_runs_from_noise_to_samples():
    samples, path = draw(trajectory=True)
    assert samples.shape == (6, 2) and path.shape == (5, 6, 2)
    np.testing.assert_array_equal(path[-1], samples)
    np.testing.assert_allclose(draw(), samples, rtol=1e-5)
    # Noise of the first level, standard normal after division by it.
    noise = draw(n=4000, trajectory=True)[1][0] / 80.0
    assert abs(np.mean(noise)) < 4 / np.sqrt(8000)
    assert abs(np.std(noise) - 1) < 4 / np.sqrt(16_000)
    # A step of Euler's is a line from x to D(x): all noise levels are in their place.
    levels = FEW.sigmas()
    for i in range(4):
        denoised = CORNERS(path[i], float(levels[i]), 1)
        step = levels[i + 1] / levels[i]
        wanted = denoised + step * (path[i] - denoised)
        np.testing.assert_allclose(path[i + 1], wanted, rtol=1e-4, atol=1e-4)


def test_initial_noise_may_be_given():
    x = np.random.default_rng(0).integers(-80, 80, (6, 2))
    samples, path = draw(initial=x, trajectory=True)
    np.testing.assert_array_equal(path[0], x)
    np.testing.assert_array_equal(draw(initial=x.tolist(), trajectory=True)[0], samples)
    again = draw(initial=path[0], trajectory=True, key=jax.random.key(9))[0]
    np.testing.assert_array_equal(again, samples)


def test_each_sample_has_its_label():
    label = np.array([0, 1, 2, 3, 4, 0])  # 4 is no condition
    samples = draw(label=label, guidance=CFG(2.0))
    for c in range(4):
        alone = draw(label=jnp.asarray(c), guidance=CFG(2.0))
        own = label == c
        np.testing.assert_allclose(samples[own], alone[own], rtol=1e-4, atol=1e-4)
    signs = np.sign(samples[:4]).astype(int).tolist()
    assert signs == [[-1, -1], [-1, 1], [1, -1], [1, 1]]
    free = draw(label=None)
    np.testing.assert_allclose(samples[4], free[4], rtol=1e-4, atol=1e-4)


# --- sweeps


def test_a_sweep_over_scales_and_keys_compiles_once():
    traces = []

    def denoiser(x, sigma, label):
        traces.append(1)
        return 0.5 * x if label is None else 0.9 * x

    def sample(scale):
        options = {"sample_shape": (2,), "key": jax.random.key(int(scale))}
        return float(draw(denoiser, guidance=CFG(scale), **options)[0, 0])

    first, programs = sample(1.5), len(traces)
    assert programs > 0
    others = {sample(float(scale)) for scale in np.linspace(2.0, 8.0, 19)}
    assert len(traces) == programs
    assert len(others - {first}) == 19


@pytest.mark.parametrize("scale", [2.0, jnp.asarray(2.0)], ids=["python", "array"])
@pytest.mark.parametrize(
    "rule",
    [
        CFG,
        lambda s: AutoGuidance(WEAK, s),
        lambda s: S2Guidance(s, s, window=None),
        lambda s: SkipLayer(s, (1,), s, window=None),
        lambda s: Windowed(AutoGuidance(WEAK, s), (0.0, 1.0)),
    ],
    ids=["CFG", "AutoGuidance", "S2Guidance", "SkipLayer", "Windowed"],
)
def test_steps_alike_are_one_loop(rule, scale):
    """All but the last, which a second-order solver takes differently."""
    segments = plan_segments(rule(scale), Karras(9), Heun())
    assert [(s.start, s.stop) for s in segments] == [(0, 8), (8, 9)]


@pytest.mark.parametrize("rule", [CFG, lambda s: AutoGuidance(WEAK, s)])
def test_vmap_over_scales_is_a_loop_over_them(rule):
    scales = jnp.array([0.5, 2.0, 4.0])
    swept = jax.vmap(lambda s: draw(STACK, guidance=rule(s)))(scales)
    for row, scale in zip(swept, scales, strict=True):
        alone = draw(STACK, guidance=rule(scale))
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-4)
    assert np.abs(swept[0] - swept[2]).max() > 0.1


def test_vmap_over_keys_and_jit_around_it():
    keys = jax.random.split(KEY, 3)
    rule = S2Guidance(2.0, 0.5, window=None)
    swept = jax.jit(jax.vmap(lambda k: draw(STACK, guidance=rule, key=k)))(keys)
    for row, key in zip(swept, keys, strict=True):
        alone = draw(STACK, guidance=rule, key=key)
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-4)


def test_gradient_with_respect_to_the_scale():
    x = 80.0 * np.linspace(-1, 1, 6, dtype=np.float32)[:, None]

    def total(scale):
        gaussians = TwoGaussians(1.0, 0.5, 1.5)
        return draw(gaussians, guidance=CFG(scale), initial=x).sum()

    slope = (total(2.02) - total(1.98)) / 0.04
    np.testing.assert_allclose(jax.grad(total)(2.0), slope, rtol=5e-3)


# --- denoisers and rules of one's own


def test_a_plain_function_is_a_denoiser():
    mixture = presets.four_corners()

    def denoiser(x, sigma, label):
        assert sigma.shape == () and (label is None or label.shape == (6,))
        return mixture.denoise(x, sigma, label)

    got = draw(denoiser, guidance=CFG(2.0), sample_shape=(2,))
    np.testing.assert_allclose(got, draw(guidance=CFG(2.0)), rtol=1e-4, atol=1e-4)


def test_an_equinox_module_is_a_denoiser():
    eqx = pytest.importorskip("equinox")
    traces = []

    class Network(eqx.Module):
        layers: eqx.nn.MLP
        name: str = "not an array"

        def __call__(self, x, sigma, label):
            traces.append(1)
            level = jnp.full_like(x[:, :1], jnp.log(sigma))
            label = jnp.full(len(x), 2) if label is None else label
            inputs = jnp.concatenate([x, level, jax.nn.one_hot(label, 3)], axis=1)
            return x / (1.0 + sigma**2) + jax.vmap(self.layers)(inputs)

    networks = [Network(eqx.nn.MLP(6, 2, 8, 1, key=k)) for k in jax.random.split(KEY)]
    options = {"guidance": CFG(2.0), "sample_shape": (2,)}
    samples = [draw(networks[0], **options)]
    programs = len(traces)
    samples.append(draw(networks[1], **options))
    assert len(traces) == programs  # weights are data
    as_function = draw(lambda *inputs: networks[1](*inputs), **options)
    np.testing.assert_allclose(samples[1], as_function, rtol=1e-4, atol=1e-4)
    assert np.abs(samples[0] - samples[1]).max() > 0.01


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
    options = {"denoiser": lambda x, s, c: jnp.ones_like(x), "sample_shape": (2,)}
    for rule, wanted in ((Unguided(), 1.0), (Halving(), 0.5), (Unguided(), 1.0)):
        np.testing.assert_array_equal(draw(guidance=rule, **options), wanted)
    in_turn = Windowed(Unguided(), (0.0, 0.5), outside=Halving())
    assert len(plan_segments(in_turn, Karras(4), Heun())) == 3
    np.testing.assert_array_equal(draw(guidance=in_turn, **options), 0.5)


@pytest.mark.parametrize("solver, last", [("euler", 3), ("heun", 6)])
def test_a_rule_carries_its_state_through_all_evaluations(solver, last):
    samples = draw(guidance=Counting(), solver=solver)
    np.testing.assert_array_equal(samples, np.full((6, 2), last, np.float32))
