"""Whole guided runs against diffusers' DDIM scheduler around diffusers' model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch_dit
from support.optional import Lazy, needs

import gmm_guidance as gg
from full_models import load_weights

torch, diffusers = Lazy("torch"), Lazy("diffusers")
pytestmark = [pytest.mark.ci, needs("torch", "diffusers")]

STEPS, CFG, OMEGA, BLOCK = 10, 3.0, 0.5, 1


@pytest.fixture(scope="module")
def model():
    # Small weights: predictions of order one, so that no run diverges.
    return torch_dit.make(std=0.08, **torch_dit.CONFIGS["small"])


@pytest.fixture(scope="module")
def network(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dit")
    model.save_pretrained(folder)
    return load_weights(folder)


def theirs(model, noise, labels, guided_channels, weak):
    """In the variables of diffusers: eps, x_t, integer time steps."""
    scheduler = diffusers.DDIMScheduler(
        beta_start=1e-4,
        beta_end=2e-2,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(STEPS)
    smaller = torch_dit.without_blocks(model, (BLOCK,))
    null = torch.full_like(labels, model.config.num_embeds_ada_norm)
    channels = model.config.in_channels
    x = noise
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            times = t.repeat(len(x))

            def eps(network, label, x=x, times=times):
                out = network(x, timestep=times, class_labels=label).sample
                return out[:, :channels]

            cond = eps(model, labels)
            guided = eps(model, null) + CFG * (cond - eps(model, null))
            if weak and 0.1 <= i / STEPS < 0.9:
                guided = guided + OMEGA * (cond - eps(smaller, labels))
            guided[:, guided_channels:] = cond[:, guided_channels:]
            x = scheduler.step(guided, t, x, eta=0.0).prev_sample
    return x.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    "channels, weak", [(4, False), (3, False), (4, True)], ids=["cfg", "cfg 3", "s2"]
)
def test_guided_ddim_is_diffusers(model, network, channels, weak):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((3, 4, 8, 8), generator=generator)
    labels = torch.tensor([1, 7, 9])
    wanted = theirs(model, noise, labels, channels, weak)
    rule = gg.CFG(CFG)
    if weak:
        rule = gg.S2Guidance(CFG, OMEGA, distribution=gg.drop.FixedBlocks((BLOCK,)))
    schedule = gg.DDPMSteps(STEPS)
    # x_t at time 999 is alpha x: the same start in our clock.
    alpha = np.sqrt(schedule.process.alpha_bars()[-1])
    with jax.default_matmul_precision("highest"):
        found = gg.guided_sample(
            jax.random.key(0),
            network,
            jnp.asarray(labels.numpy(), jnp.int32),
            num_samples=3,
            guidance=gg.GuidedChannels(rule, channels),
            schedule=schedule,
            solver="euler",
            initial=jnp.asarray(noise.permute(0, 2, 3, 1).numpy() / alpha, jnp.float32),
        )
    error = np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()
    assert error < 1e-4
    assert np.std(wanted) > 0.1
