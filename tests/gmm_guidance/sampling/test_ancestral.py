"""The ancestral sampler against the textbook's step, diffusers, and a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmm_guidance import (
    Ancestral,
    CFGPlusPlus,
    CustomSchedule,
    DDPMSteps,
    ExactDenoiser,
    GaussianMixture,
    guided_sample,
)
from gmm_guidance.diffusion.process import DDPM
from gmm_guidance.sampling.solvers import Step

CHAIN = DDPM()


class OneStep:
    """Hands a solver a fixed prediction."""

    is_uniform = True

    def __init__(self, output):
        self.output = output

    def __call__(self, x, sigma, state, evaluation):
        return self.output, state


def step(variance, x, output, sigma, sigma_next, noise):
    levels = (jnp.asarray(s, jnp.float32) for s in (sigma, sigma_next))
    one = Step(*levels, is_final=False, num_steps=10, noise=lambda: noise)
    return Ancestral(variance).step(OneStep(output), x, one, (), ())[0]


def inputs():
    rng = np.random.default_rng(0)
    shape = (4, 3, 3, 2)
    return rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=shape)


def textbook(variance, x_t, denoised, noise, t, previous, v):
    """x_{t-1} as in Ho et al., Eqs. 6 and 7, from the chain's tables, float64."""
    bars = CHAIN.alpha_bars()
    bar, bar_next = bars[t], bars[previous]
    alpha = bar / bar_next
    beta = 1 - alpha
    mean = np.sqrt(bar_next) * beta / (1 - bar) * denoised
    mean = mean + np.sqrt(alpha) * (1 - bar_next) / (1 - bar) * x_t
    posterior = beta * (1 - bar_next) / (1 - bar)
    spread = {
        "posterior": posterior,
        "beta": beta,
        "learned": np.exp((v + 1) / 2 * np.log(beta) + (1 - v) / 2 * np.log(posterior)),
    }
    return mean + np.sqrt(spread[variance]) * noise


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
@pytest.mark.parametrize("t, previous", [(999, 900), (500, 499), (20, 0)])
def test_step_is_the_textbooks(variance, t, previous):
    x_t, denoised, noise = inputs()
    v = np.random.default_rng(1).uniform(-1, 1, x_t.shape)
    sigma, sigma_next = CHAIN.sigmas()[[t, previous]]
    root, root_next = np.sqrt(CHAIN.alpha_bars()[[t, previous]])
    output = np.concatenate([denoised, v], -1) if variance == "learned" else denoised
    found = step(
        variance,
        jnp.asarray(x_t / root, jnp.float32),
        jnp.asarray(output, jnp.float32),
        sigma,
        sigma_next,
        jnp.asarray(noise, jnp.float32),
    )
    wanted = textbook(variance, x_t, denoised, noise, t, previous, v)
    np.testing.assert_allclose(np.asarray(found) * root_next, wanted, atol=2e-5)


def test_learned_step_is_diffusers():
    """The whole step of diffusers' scheduler, with its own noise."""
    torch = pytest.importorskip("torch", reason="the oracle extra is not installed")
    diffusers = pytest.importorskip("diffusers", reason="needs the oracle extra")
    scheduler = diffusers.DDPMScheduler(
        beta_start=1e-4,
        beta_end=2e-2,
        variance_type="learned_range",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(20)
    t, previous = (int(s) for s in scheduler.timesteps[[3, 4]])
    x_t, eps, _ = inputs()
    v = np.random.default_rng(1).uniform(-1, 1, x_t.shape)
    output = torch.tensor(np.moveaxis(np.concatenate([eps, v], -1), -1, 1))
    generator = torch.Generator().manual_seed(0)
    sample = torch.tensor(np.moveaxis(x_t, -1, 1))
    theirs = scheduler.step(output, t, sample, generator=generator).prev_sample
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(sample.shape, generator=generator, dtype=output.dtype)
    sigma, sigma_next = CHAIN.sigmas()[[t, previous]]
    root, root_next = np.sqrt(CHAIN.alpha_bars()[[t, previous]])
    found = step(
        "learned",
        jnp.asarray(x_t / root, jnp.float32),
        jnp.asarray(np.concatenate([x_t / root - sigma * eps, v], -1), jnp.float32),
        sigma,
        sigma_next,
        jnp.asarray(np.moveaxis(noise.numpy(), 1, -1), jnp.float32),
    )
    theirs = np.moveaxis(theirs.numpy(), 1, -1)
    np.testing.assert_allclose(np.asarray(found) * root_next, theirs, atol=2e-4)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_many_steps_give_the_law(variance):
    """One Gaussian, 4,000 samples: mean and width within 5 standard errors."""
    mixture = GaussianMixture(jnp.array([[1.5]]), 0.49)
    x = guided_sample(
        jax.random.key(0),
        ExactDenoiser(mixture),
        num_samples=4000,
        schedule=DDPMSteps(500),
        solver=Ancestral(variance),
    )
    assert abs(x.mean() - 1.5) < 5 * 0.7 / np.sqrt(4000)
    assert abs(x.std() - 0.7) < 5 * 0.7 / np.sqrt(8000) + 0.005


def test_one_step_ends_at_the_prediction():
    denoiser = lambda x, sigma, label: 0.5 * x  # noqa: E731
    x = jnp.ones((3, 2))
    out = guided_sample(
        jax.random.key(0),
        denoiser,
        num_samples=3,
        schedule=CustomSchedule((2.0,)),
        solver="ancestral",
        initial=x,
    )
    np.testing.assert_array_equal(out, 0.5 * x)


def test_errors():
    with pytest.raises(ValueError, match="'posterior', 'beta' or 'learned'"):
        Ancestral("small")
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="returns 6 channels for samples of 3, got 3"):
        step("learned", x, x, 2.0, 1.0, x)
    with pytest.raises(ValueError, match="returns 3 channels"):
        step("beta", x, jnp.zeros((2, 6)), 2.0, 1.0, x)
    mixture = GaussianMixture(jnp.array([[1.0], [-1.0]]), 1.0, labels=[0, 1])
    with pytest.raises(TypeError, match="Ancestral draws its own"):
        guided_sample(
            jax.random.key(0),
            ExactDenoiser(mixture),
            0,
            num_samples=2,
            guidance=CFGPlusPlus(0.5),
            solver="ancestral",
        )
