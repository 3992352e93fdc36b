"""A whole run of Wan against the pipeline of diffusers, and the cost of S2 windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.optional import needs

import gmm_guidance as gg
from full_models import WanConfig, load_autoencoder, load_weights, wan_schedule
from full_models.models.wan.pipeline import WanPipeline

CONFIG = WanConfig(
    latent_shape=(3, 4, 6),
    in_channels=4,
    width=32,
    depth=3,
    num_heads=2,
    mlp_width=48,
    text_width=20,
)


@pytest.mark.ci
@needs("torch", "diffusers", "transformers")
def test_latents_and_video_are_those_of_diffusers(tmp_path):
    """CFG 5, five steps of UniPC on the levels of diffusers, without its encoder."""
    from oracles import wans

    torch, diffusers = wans.torch, wans.diffusers
    network, vae, prompts = wans.transformer(), wans.autoencoder(), wans.prompts(1)
    network.save_pretrained(tmp_path / "transformer")
    vae.save_pretrained(tmp_path / "vae")
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=network,
        vae=vae,
        scheduler=scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = np.random.default_rng(0).normal(size=(1, 3, 4, 6, 4)).astype(np.float32)

    def run(output_type):
        return pipeline(
            prompt_embeds=wans.padded(prompts.context),
            negative_prompt_embeds=wans.padded(prompts.negative_context[None]),
            latents=torch.tensor(noise).permute(0, 4, 1, 2, 3),
            height=32,
            width=48,
            num_frames=9,
            num_inference_steps=5,
            guidance_scale=5.0,
            output_type=output_type,
        ).frames

    with torch.no_grad():
        wanted = run("latent").permute(0, 2, 3, 4, 1).numpy()
        video = run("np")

    model = load_weights(tmp_path, CONFIG).with_prompts(prompts)
    schedule = wan_schedule(5, 3.0, "diffusers")
    sigma = schedule.sigmas()[0]
    latents = gg.guided_sample(
        jax.random.key(0),
        model,
        0,
        num_samples=1,
        guidance=gg.CFG(5.0),
        schedule=schedule,
        solver="unipc",
        initial=jnp.asarray(noise * (1 + sigma), jnp.float32),  # x_t is the noise
    )
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(latents, wanted, atol=1e-5 * max(scale, 1.0))
    frames = jax.jit(lambda d, z: d.decode(z))(load_autoencoder(tmp_path), latents)
    np.testing.assert_allclose((np.asarray(frames) + 1) / 2, video, atol=3e-6)


def test_defaults_and_sizes():
    pipeline = WanPipeline(WanConfig().for_video(33, 480, 832))
    assert pipeline.sample_shape == (9, 60, 104, 16)
    assert (pipeline.frames, pipeline.sizes) == (33, ((480, 832),))
    assert "33 frames of 832 x 480" in pipeline.title
    assert pipeline.defaults.solver == pipeline.solver("unipc") == "unipc"
    with pytest.raises(ValueError, match="ancestral solver needs a DDPM chain"):
        pipeline.solver("ancestral")
    with pytest.raises(ValueError, match="numbers of prompts, got 'a cat'"):
        pipeline.labels_of("a cat")


@pytest.mark.parametrize(
    "shift, by_noise, overhead",
    [(3.0, 0.71, 16.7), (5.0, 0.62, 14.5), (8.0, 0.52, 12.0)],
)
def test_cost_of_windows_by_steps_and_by_noise(shift, by_noise, overhead):
    """S2 between the steps 10 and 90 %, and between the flow times 0.1 and 0.9.

    The shift crowds steps at high noise, where the second window does not act. A weak
    pass joins the conditional one at its first dropped block, E = L / 2 of L - 1.
    """
    schedule = wan_schedule(50, shift)
    window = gg.SigmaWindow(0.1 / 0.9, 0.9 / 0.1)
    times = schedule.times()[:-1]
    inside = np.mean((times > 0.1) & (times <= 0.9))
    assert inside == pytest.approx(by_noise, abs=0.011)
    cfg = 2 * 50
    for acting, part in (((0.1, 0.9), 0.8), (window, inside)):
        rule = gg.S2Guidance(5.0, 0.25, window=acting)
        cost = gg.expected_cost(rule, schedule, 30, solver="unipc")
        # Blocks 1 to 29 are dropped alike: what remains after the first, without it.
        weak = np.mean([(30 - first - 1) / 30 for first in range(1, 30)])
        assert cost.shared / cfg - 1 == pytest.approx(part * weak / 2, abs=1e-3)
    assert 100 * (cost.shared / cfg - 1) == pytest.approx(overhead, abs=0.3)
