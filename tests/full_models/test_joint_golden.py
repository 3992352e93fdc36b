"""SD3.5 and Flux against golden outputs of diffusers, which is not needed.

``tests/golden/make_joint_golden.py`` made them.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from oracles import torch_joint
from oracles.joint_values import opened, predictions, relative_error

from full_models import FluxConfig, Prompts, SD3Config
from full_models.models.flux import weights as flux
from full_models.models.sd3 import weights as sd3

GOLDEN = Path(__file__).parents[1] / "golden" / "joint.npz"
COMMON = dict(num_heads=2, text_width=12, pooled_width=10, in_channels=4)
MADE = {
    "SD3.5-medium": SD3Config(
        **COMMON, input_size=(8, 6), width=16, depth=3, qk_norm=True, num_dual=1,
        table_size=12,
    ),
    "dev": FluxConfig(
        **COMMON, input_size=(8, 6), width=32, num_double=2, num_single=3,
        axes=(4, 6, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_outputs_and_dropped_blocks(tmp_path, name):
    config = MADE[name]
    if name == "dev":
        table = flux.table_of("diffusers", config)
        fields = flux.config_to_diffusers(config)
    else:
        table = sd3.table_of("diffusers", config, {})
        fields = sd3.config_to_diffusers(config)
    tensors = torch_joint.tensors(table.shapes())
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    safetensors.numpy.save_file(tensors, file)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    given = torch_joint.inputs(torch_joint.CONFIGS[name])
    context, pooled = given["context"], given["pooled"]
    prompts = Prompts(context[:2], context[2], pooled[:2], pooled[2])
    network = opened(tmp_path, name).with_prompts(prompts).backbone
    x = jnp.asarray(given["x"].transpose(0, 2, 3, 1))
    with np.load(GOLDEN) as golden, jax.default_matmul_precision("highest"):
        for skip in ((), (1,), (2,)):
            drop = np.isin(np.arange(network.num_blocks), skip)
            found = predictions(network, x, jnp.arange(2), drop)
            wanted = golden[f"{name} {skip}"]
            assert relative_error(found.transpose(0, 3, 1, 2), wanted) < 1e-6
