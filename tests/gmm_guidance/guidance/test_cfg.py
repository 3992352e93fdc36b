"""CFG++ against DDIM in the paper's own notation, and as CFG of another scale."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.two_gaussians import TwoGaussians

from gmm_guidance import (
    CFG,
    CFGPlusPlus,
    CustomSchedule,
    EDMStochastic,
    Heun,
    Renoised,
    Rescaled,
    SigmaWindow,
    Unguided,
    Windowed,
    expected_cost,
    guided_sample,
)
from gmm_guidance.guidance.rule import Unconditional
from gmm_guidance.sampling.solvers import DPMSolverPP2M, Euler, Step

DENOISER = TwoGaussians(1.5, 0.5, 3.0)
LEVELS = (8.0, 4.0, 1.5, 0.5)
START = np.linspace(-10, 10, 6, dtype=np.float32).reshape(3, 2)


def draw(rule, solver="euler", levels=LEVELS, start=START, **options):
    return guided_sample(
        jax.random.key(0),
        DENOISER,
        0,
        num_samples=len(start),
        guidance=rule,
        schedule=CustomSchedule(levels),
        solver=solver,
        initial=jnp.asarray(start),
        trajectory=True,
        **options,
    )[1]


def ddim_of_the_paper(scale, x):
    """VP scale, noise predictions, ``alpha_bar = 1 / (1 + sigma^2)`` (Algorithm 2)."""
    levels = (*LEVELS, 0.0)
    bars = [1 / (1 + s**2) for s in levels]
    x_t = np.asarray(x, float) * np.sqrt(bars[0])
    path = [x_t / np.sqrt(bars[0])]
    for (bar, after), sigma in zip(itertools.pairwise(bars), levels, strict=False):
        noises = [
            (x_t - np.sqrt(bar) * DENOISER(x_t / np.sqrt(bar), sigma, label))
            / np.sqrt(1 - bar)
            for label in (None, 0)
        ]
        guided = noises[0] + scale * (noises[1] - noises[0])
        clean = (x_t - np.sqrt(1 - bar) * guided) / np.sqrt(bar)
        x_t = np.sqrt(after) * clean + np.sqrt(1 - after) * noises[0]
        path.append(x_t / np.sqrt(after))
    return np.stack(path)


@pytest.mark.parametrize("scale", [0.0, 0.3, 0.6, 1.0])
def test_euler_is_the_papers_ddim(scale):
    wanted = ddim_of_the_paper(scale, START)
    np.testing.assert_allclose(draw(CFGPlusPlus(scale)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("now, after", [(8.0, 4.0), (4.0, 0.5), (1.0, 0.9)])
def test_one_step_is_cfg_of_a_scale_that_depends_on_the_step(now, after):
    got = draw(CFGPlusPlus(0.6), levels=(now, after))[1]
    same = draw(CFG(0.6 / (1 - after / now)), levels=(now, after))[1]
    np.testing.assert_allclose(got, same, rtol=1e-4, atol=1e-4)
    assert np.abs(got - draw(CFG(0.6), levels=(now, after))[1]).max() > 1e-3


def test_the_last_step_is_the_interpolation():
    got, cfg = (draw(rule, levels=(2.0,))[1] for rule in (CFGPlusPlus(0.6), CFG(0.6)))
    np.testing.assert_allclose(got, cfg, rtol=1e-5)


def test_dpm_solver_extrapolates_the_unconditional_prediction():
    """Its first-order part is Euler's: written out in exponentials of the log-SNR."""
    scale, levels = 0.6, (*LEVELS, 0.0)
    x, path, before = START.astype(float), [START.astype(float)], None
    for i, (now, after) in enumerate(itertools.pairwise(levels)):
        uncond, cond = (DENOISER(x, now, label) for label in (None, 0))
        guided = uncond + scale * (cond - uncond)
        if after == 0:
            x = guided
        else:
            h = np.log(now) - np.log(after)
            x = guided + np.exp(-h) * (x - uncond)
            if i:
                h_last = np.log(levels[i - 1]) - np.log(now)
                x = x - np.expm1(-h) * h / (2 * h_last) * (uncond - before)
        before = uncond
        path.append(x)
    got = draw(CFGPlusPlus(scale), "dpmpp_2m")
    np.testing.assert_allclose(got, path, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got[1], draw(CFGPlusPlus(scale))[1])


def test_equal_parts_are_a_plain_value():
    """Of a D that moves, so that the extrapolation counts."""
    for solver in (Euler(), DPMSolverPP2M()):
        ends = []
        for kind in (lambda d: d, lambda d: Renoised(d, d)):

            def denoise(x, sigma, state, evaluation, kind=kind):
                return kind(jnp.sin(x)), state

            x = jnp.asarray(START)
            carry = solver.init(x)
            for now, after in ((4.0, 2.0), (2.0, 1.0)):
                step = Step(jnp.asarray(now), jnp.asarray(after), False, 2, None)
                x, carry, _ = solver.step(denoise, x, step, carry, ())
            ends.append(x)
        np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("solver", ["heun", "edm_stochastic", Heun(), EDMStochastic()])
@pytest.mark.parametrize("levels", [LEVELS, (2.0,)])
def test_solvers_of_two_stages_refuse_it(solver, levels):
    with pytest.raises(
        TypeError, match='Heun, EDMStochastic and UniPC .* "euler" or "dpmpp'
    ):
        draw(CFGPlusPlus(0.6), solver, levels)


def test_a_scale_of_zero_runs_the_unconditional_pass_alone():
    schedule = CustomSchedule(LEVELS)
    costs = [
        expected_cost(CFGPlusPlus(s), schedule, 1, solver="euler").shared
        for s in (0.0, 0.5, 1.0)
    ]
    assert costs == [4, 8, 8]
    np.testing.assert_array_equal(draw(CFGPlusPlus(0.0)), draw(Unconditional()))
    # At 1 it is not the conditional denoiser: the noise is another.
    assert np.abs(draw(CFGPlusPlus(1.0)) - draw(Unguided())).max() > 0.1


def test_it_may_act_in_a_window():
    """Steps at 4 and 1.5 only: the others are those without guidance."""
    rule = Windowed(CFGPlusPlus(0.6), SigmaWindow(1.0, 5.0))
    path = draw(rule)
    np.testing.assert_allclose(path[1], draw(Unguided())[1], rtol=1e-5)
    inside = draw(CFGPlusPlus(0.6), levels=(4.0, 1.5), start=path[1])
    np.testing.assert_allclose(path[2], inside[1], rtol=1e-5)


def test_rescaling_leaves_the_noise_alone():
    """A constant factor on D, per sample; the noise is still x - D_u."""
    uncond, cond = (DENOISER(START, 8.0, label) for label in (None, 0))
    guided = uncond + 0.6 * (cond - uncond)
    wide = cond.std(axis=1, keepdims=True) / guided.std(axis=1, keepdims=True)
    wanted = wide * guided + 0.5 * (START - uncond)
    got = draw(Rescaled(CFGPlusPlus(0.6), 1.0))[1]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [-0.1, 1.1, 7.5, np.nan])
def test_scales_are_between_zero_and_one(scale):
    with pytest.raises(ValueError, match=r"scale must be (in \[0, 1\]|finite), got"):
        CFGPlusPlus(scale)
