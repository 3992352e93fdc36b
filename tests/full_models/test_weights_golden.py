"""Frozen files of PyTorch and diffusers: the same weights and values without them.

``tests/golden/make_dit_golden.py`` made them.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.dit_values import drop_blocks, predictions, relative_error

from full_models import DiTConfig, load_weights
from full_models.models.dit.config import DIT, SIT
from full_models.models.dit.weights import official_table
from full_models.weights.table import dump
from full_models.weights.torch_file import read_torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "golden" / "dit"
CONFIG = DiTConfig(
    input_size=8, patch_size=2, width=8, depth=3, num_heads=2, num_labels=6
)
FILES = {
    "official": FOLDER / "official.pt",
    "training": FOLDER / "training.pt",
    "folder": FOLDER / "diffusers",
    "file": FOLDER / "diffusers" / "diffusion_pytorch_model.safetensors",
}
TOLERANCE = 1e-5
FAMILIES = {"ddpm": DIT, "flow": SIT}


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "values.npz") as file:
        return dict(file)


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def times(golden, process):
    return golden["steps"] if process == "ddpm" else golden["times"]


@pytest.mark.parametrize("process, name", [("ddpm", "noise"), ("flow", "velocity")])
@pytest.mark.parametrize("file", FILES)
def test_outputs(golden, file, process, name):
    config = dataclasses.replace(CONFIG, **FAMILIES[process])
    network = load_weights(FILES[file], config)
    assert network.config == config
    found = predictions(network, golden["x"], times(golden, process), golden["labels"])
    assert relative_error(found, golden[name]) < TOLERANCE


@pytest.mark.parametrize("process, name", [("ddpm", "noise"), ("flow", "velocity")])
def test_outputs_of_dropped_blocks(golden, process, name):
    network = load_weights(
        FILES["official"], dataclasses.replace(CONFIG, **FAMILIES[process])
    )
    dropped = jnp.asarray(golden["dropped"], jnp.int32)
    inputs = golden["x"], times(golden, process), golden["labels"]
    full, weak = drop_blocks(network, *inputs, dropped)
    # Not the first sample, of little noise: what is denoised hardly shows the network.
    expected = golden[name][1:, :4], golden[f"{name}_dropped"][1:, :4]
    assert relative_error(full[1:], expected[0]) < TOLERANCE
    assert relative_error(weak[1:], expected[1]) < TOLERANCE
    assert relative_error(full, weak) > 0.01


@pytest.mark.parametrize("remat", [False, True])
def test_gradients(golden, remat):
    config = dataclasses.replace(CONFIG, remat=remat)
    network = load_weights(FILES["official"], config)

    def loss(network):
        out = predictions(network, golden["x"], golden["steps"], golden["labels"])
        return jnp.sum(out * golden["weights"])

    gradients = jax.jit(jax.grad(loss))(network).backbone
    gradients = dump(gradients, official_table(config))
    names = [n.removeprefix("gradient ") for n in golden if n.startswith("gradient ")]
    assert len(names) == 5
    for name in names:
        expected = golden[f"gradient {name}"]
        assert relative_error(gradients[name], expected) < 1e-4


def test_training_checkpoint_has_other_weights_beside_the_average():
    average = read_torch(FILES["training"])
    live = read_torch(FILES["training"], root="model")
    assert average.keys() == live.keys()
    name = "blocks.0.mlp.fc1.bias"
    ratio = live[name].read() / average[name].read()
    np.testing.assert_allclose(ratio, 0.9, atol=0.05)
    with pytest.raises(ValueError, match="entry 'opt'.* got one of 'state'"):
        read_torch(FILES["training"], root="opt")


def test_views_of_shared_storages():
    stored = read_torch(FOLDER / "views.pt")
    whole = read_torch(FILES["official"])["blocks.0.attn.qkv.weight"].read()
    expected = {
        "whole": whole,
        "transposed": whole.T,
        "queries": whole[:8],
        "gaps": whole[2::5, 1::3],
        "expanded": np.broadcast_to(whole[:1], (3, 8)),
        "brain": whole.astype(jnp.bfloat16).T,
        "half": whole.astype(np.float16)[3],
        "count": np.arange(3),
    }
    assert stored.keys() == expected.keys()
    for name, array in expected.items():
        found = stored[name].read()
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
