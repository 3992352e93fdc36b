"""Scales that are off, scales that are swept, and how many programs that takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.toy_stack import ToyStack
from oracles.two_gaussians import TwoGaussians

from gmm_guidance import (
    CFG,
    AutoGuidance,
    S2Guidance,
    SigmaCurve,
    SigmaWindow,
    SkipLayer,
    Unguided,
    Windowed,
)
from gmm_guidance.diffusion.schedule import FlowSteps, Karras
from gmm_guidance.sampling import run
from gmm_guidance.sampling.sample import guided_sample
from gmm_guidance.sampling.segments import plan_segments
from gmm_guidance.sampling.solvers import Heun

KEY = jax.random.key(0)
STACK, WEAK = ToyStack.random(0), ToyStack.random(1, num_blocks=2)


START = 80.0 * np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)


def draw(denoiser=STACK, label=1, guidance=Unguided(), key=KEY, **options):
    options = {"schedule": Karras(4), "solver": "euler", "initial": START, **options}
    return guided_sample(
        key, denoiser, label, num_samples=6, guidance=guidance, **options
    )


# --- off values


OFF = {
    "cfg": CFG(1.0),
    "cfg of numpy": CFG(np.float32(1)),
    "autoguidance": AutoGuidance(WEAK, 1.0),
    "s2": S2Guidance(1.0, s2_scale=0.0),
    "skip layer": SkipLayer(1.0, (1,), skip_scale=0.0),
    "off in a window": Windowed(CFG(1.0), SigmaWindow(0.0, 200.0)),
}


@pytest.mark.parametrize("name", OFF)
def test_off_values_are_the_conditional_denoiser_itself(name):
    wanted = draw()
    np.testing.assert_array_equal(draw(guidance=OFF[name]), wanted)


def test_s2_off_is_cfg():
    wanted = draw(guidance=CFG(3.0))
    got = draw(guidance=S2Guidance(3.0, s2_scale=0.0))
    np.testing.assert_array_equal(got, wanted)
    assert np.abs(wanted - draw()).max() > 0.1


@pytest.mark.parametrize(
    "rule",
    [
        CFG,
        lambda scale: AutoGuidance(WEAK, scale),
        lambda scale: S2Guidance(scale, s2_scale=scale - 1.0, window=None),
    ],
    ids=["CFG", "AutoGuidance", "S2Guidance"],
)
def test_traced_off_values_run_all_passes_and_change_nothing(rule):
    got = jax.jit(lambda scale: draw(guidance=rule(scale)))(1.0)
    np.testing.assert_allclose(got, draw(), rtol=1e-4, atol=1e-4)


def test_cfg_of_zero_is_unconditional():
    wanted = draw(label=None)
    got = draw(guidance=CFG(0.0))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    null = draw(label=STACK.num_labels)
    np.testing.assert_allclose(null, wanted, rtol=1e-5, atol=1e-5)


def test_passes_that_are_off_are_never_traced():
    seen = []

    def denoiser(x, sigma, label):
        seen.append(label is None)
        return 0.5 * x

    draw(denoiser, guidance=CFG(1.0))
    assert seen and not any(seen)
    draw(denoiser, guidance=CFG(2.0))
    assert any(seen)


# --- sweeps


def test_a_sweep_over_scales_and_keys_compiles_once():
    traces = []

    def denoiser(x, sigma, label):
        traces.append(1)
        return 0.5 * x if label is None else 0.9 * x

    def sample(scale):
        key = jax.random.key(int(scale))
        return float(draw(denoiser, guidance=CFG(scale), key=key)[0, 0])

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
    swept = jax.vmap(lambda s: draw(guidance=rule(s)))(scales)
    for row, scale in zip(swept, scales, strict=True):
        alone = draw(guidance=rule(scale))
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-4)
    assert np.abs(swept[0] - swept[2]).max() > 0.1


def test_vmap_over_keys_and_jit_around_it():
    """Keys bring their own start and their own masks."""
    keys = jax.random.split(KEY, 3)
    rule, schedule = S2Guidance(2.0, 0.5, window=None), Karras(1)
    swept = jax.jit(jax.vmap(lambda k: draw(guidance=rule, key=k, schedule=schedule)))(
        keys
    )
    for row, key in zip(swept, keys, strict=True):
        alone = draw(guidance=rule, key=key, schedule=schedule)
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-4)


def test_gradient_with_respect_to_the_scale():
    def total(scale):
        gaussians = TwoGaussians(1.0, 0.5, 1.5)
        return draw(gaussians, guidance=CFG(scale)).sum()

    slope = (total(2.02) - total(1.98)) / 0.04
    np.testing.assert_allclose(jax.grad(total)(2.0), slope, rtol=5e-3)


def test_values_that_are_arguments_compile_nothing():
    """What the guide says of interactive use."""
    draw(guidance=CFG(SigmaCurve([0.1, 1.0], [2.0, 3.0])))
    before = run._take_steps._cache_size()
    curve = SigmaCurve(np.array([0.2, 9.0]), np.array([4.0, 2.5]))
    draw(guidance=CFG(curve), key=jax.random.key(1), label=np.arange(6) % 2)
    draw(guidance=CFG(curve), schedule=FlowSteps(4), initial=START + 1.0)
    draw(ToyStack.random(5), guidance=CFG(curve), first_index=7)
    assert run._take_steps._cache_size() == before
    draw(guidance=CFG(curve), schedule=Karras(5))
    assert run._take_steps._cache_size() > before
