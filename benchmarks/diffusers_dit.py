"""S² and PAG in random layers of a DiT: ours, and diffusers' hooks on its model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gmm_guidance as gg
from benchmarks.harness import paired
from benchmarks.s2_overhead import random_network

_CFG, _S2 = 4.0, 0.25


def diffusers_dit(
    name: str = "DiT-S/2", batch: int = 2, steps: int = 4, kind: str = "drop"
) -> Any:
    """Images per second of both, the same steps, scales and window (always on).

    The weak pass drops a random block, or its attention maps are the identity.
    """
    import torch
    from diffusers import DDIMScheduler, DiTTransformer2DModel
    from diffusers.hooks import HookRegistry, LayerSkipConfig
    from diffusers.hooks.layer_skip import _apply_layer_skip_hook  # as its guiders do

    network = random_network(name)
    c = network.config
    model = DiTTransformer2DModel(
        num_attention_heads=c.num_heads,
        attention_head_dim=c.width // c.num_heads,
        num_layers=c.depth,
        sample_size=c.input_size,
        patch_size=c.patch_size,
        num_embeds_ada_norm=c.num_labels,
    ).eval()
    scheduler = DDIMScheduler(
        beta_start=1e-4, beta_end=2e-2, timestep_spacing="trailing", clip_sample=False
    )
    labels = np.arange(batch) % c.num_labels
    rng = np.random.default_rng(0)
    dropped = rng.integers(1, c.depth, 10_000)
    calls = [0]

    def theirs():
        scheduler.set_timesteps(steps)
        x = torch.randn(batch, c.in_channels, c.input_size, c.input_size)
        conditional = torch.tensor(labels)
        both = torch.cat([conditional, torch.full((batch,), c.num_labels)])
        with torch.no_grad():
            for t in scheduler.timesteps:
                # Two rows in one batch, as diffusers' pipelines do for CFG.
                times = t.repeat(2 * batch)
                out = model(torch.cat([x, x]), timestep=times, class_labels=both).sample
                cond, uncond = out.chunk(2)
                block = int(dropped[calls[0] % len(dropped)])
                calls[0] += 1
                # The defaults drop the block; values alone are the PAG guider's.
                parts = dict.fromkeys(("skip_attention", "skip_ff"), kind == "drop")
                config = LayerSkipConfig(
                    indices=[block],
                    fqn="transformer_blocks",
                    skip_attention_scores=kind == "identity",
                    **parts,
                )
                _apply_layer_skip_hook(model, config, name="s2")
                weak = model(x, timestep=times[:batch], class_labels=conditional).sample
                registry = HookRegistry.check_if_exists_or_initialize(model)
                registry.remove_hook("s2", recurse=True)
                guided = uncond + _CFG * (cond - uncond) + _S2 * (cond - weak)
                eps = guided[:, : c.in_channels]
                x = scheduler.step(eps, t, x).prev_sample
        return x

    def ours():
        calls[0] += 1
        return gg.guided_sample(
            jax.random.key(calls[0]),
            network,
            jnp.asarray(labels),
            num_samples=batch,
            guidance=gg.S2Guidance(_CFG, _S2, window=None, kind=kind),
            schedule=gg.DDPMSteps(steps),
            solver="euler",
        )

    timing = paired(ours, theirs, repeats=5)
    images = {
        "ours_images_per_second": batch / timing["ours_seconds"],
        "theirs_images_per_second": batch / timing["theirs_seconds"],
    }
    rule = "S²" if kind == "drop" else "PAG in random layers:"
    return {
        f"{rule} sampling of {name}, batch {batch}, {steps} steps, over diffusers": {
            **images,
            **timing,
            "torch_threads": torch.get_num_threads(),
        }
    }
