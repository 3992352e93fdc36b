"""SD3, SD3.5 and Flux against diffusers: outputs and dropped blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch_joint
from oracles.joint_values import opened, predictions, relative_error

import gmm_guidance as gg
from full_models import Prompts, sd3_schedule

# The golden files test the same in the everyday command.
pytestmark = pytest.mark.ci
# A looser bound misses the epsilon of the RMS norms.
TOLERANCE = 1e-6
TIMES, GUIDANCE = torch_joint.TIMES, torch_joint.GUIDANCE


@pytest.fixture(scope="module", params=torch_joint.CONFIGS)
def pair(request, tmp_path_factory):
    """A model of diffusers and ours, of the folder it wrote."""
    pytest.importorskip("torch", reason="needs the oracle extra: torch")
    pytest.importorskip("diffusers", reason="needs the oracle extra: diffusers")
    model = torch_joint.make(request.param)
    folder = tmp_path_factory.mktemp("diffusers")
    model.save_pretrained(folder)
    return model, opened(folder, request.param)


def dropped_sets(stack):
    last = stack.num_blocks - 1
    return [(), (0,), (1,), (last,), (0, last), (1, last)]


def test_outputs_and_dropped_blocks(pair):
    model, stack = pair
    given = torch_joint.inputs(model.config)
    context, pooled = given["context"], given["pooled"]
    stack = stack.with_prompts(Prompts(context[:2], context[2], pooled[:2], pooled[2]))
    assert type(stack).__name__ == "PromptStack" and stack.num_labels == 2
    x = jnp.asarray(given["x"].transpose(0, 2, 3, 1))
    backbone = stack.backbone
    guidance = GUIDANCE if "guidance_embeds" in model.config else None
    if guidance and not model.config.guidance_embeds:
        guidance = None

    with jax.default_matmul_precision("highest"):
        full = None
        for skip in dropped_sets(stack):
            wanted = torch_joint.velocity(
                model, given["x"], TIMES, context[:2], pooled[:2], guidance, skip
            )
            drop = np.isin(np.arange(stack.num_blocks), skip)
            found = predictions(backbone, x, jnp.arange(2), drop).transpose(0, 3, 1, 2)
            assert relative_error(found, wanted) < TOLERANCE, skip
            full = wanted if full is None else full
            assert not skip or relative_error(wanted, full) > 1e-3
        two = np.repeat(context[2:], 2, 0), np.repeat(pooled[2:], 2, 0)
        wanted = torch_joint.velocity(model, given["x"], TIMES, *two, guidance)
        drop = np.zeros(stack.num_blocks, bool)
        found = predictions(backbone, x, None, drop).transpose(0, 3, 1, 2)
        assert relative_error(found, wanted) < TOLERANCE


def test_a_guided_run_of_28_steps_is_that_of_the_pipeline(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the oracle extra: torch")
    diffusers = pytest.importorskip("diffusers", reason="needs the oracle extra")
    model = torch_joint.make("SD3.5-medium")
    model.save_pretrained(tmp_path)
    given = torch_joint.inputs(model.config)
    context, pooled = given["context"], given["pooled"]
    prompts = Prompts(context[:2], context[2], pooled[:2], pooled[2])
    stack = opened(tmp_path, "SD3.5-medium").with_prompts(prompts)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(28)
    schedule = sd3_schedule(28)
    levels = schedule.sigmas()
    np.testing.assert_allclose(
        levels / (1 + levels), scheduler.sigmas.numpy(), atol=3e-7
    )
    x = torch.tensor(given["x"])
    negative = np.repeat(context[2:], 2, 0), np.repeat(pooled[2:], 2, 0)
    for step in scheduler.timesteps:
        times = 2 * [float(step) / 1000.0]
        state = x.numpy()
        cond = torch_joint.velocity(model, state, times, context[:2], pooled[:2])
        uncond = torch_joint.velocity(model, state, times, *negative)
        guided = torch.tensor(uncond + 7.5 * (cond - uncond))
        x = scheduler.step(guided, step, x, return_dict=False)[0]
    noise = jnp.asarray(given["x"].transpose(0, 2, 3, 1))
    with jax.default_matmul_precision("highest"):
        found = gg.guided_sample(
            jax.random.key(0),
            stack,
            jnp.arange(2),
            num_samples=2,
            guidance=gg.CFG(7.5),
            schedule=schedule,
            solver="euler",
            initial=noise * levels[0],
        )
    assert relative_error(found.transpose(0, 3, 1, 2), x.numpy()) < 1e-5
