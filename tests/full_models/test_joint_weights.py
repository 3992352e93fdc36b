"""Weights of SD3 and Flux: both layouts, prefixes, export; and what is refused."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from support.trees import assert_same_trees

from full_models import SD3, Flux, FluxConfig, SD3Config, export_weights, load_weights
from full_models.weights.load import open_checkpoint

TINY = dict(
    input_size=(8, 6),
    in_channels=2,
    width=16,
    num_heads=2,
    text_width=12,
    pooled_width=10,
)
SD3_TINY = SD3Config(**TINY, depth=3, qk_norm=True, num_dual=1, table_size=6)
FLUX_TINY = FluxConfig(**TINY, num_double=1, num_single=2, axes=(4, 2, 2))
CASES = {"sd3": (SD3, SD3_TINY), "flux": (Flux, FLUX_TINY)}


def random(kind, config, seed=0):
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
    return jax.tree.map(
        lambda a: np.asarray(0.1 * rng.normal(size=a.shape), np.float32), abstract
    )


@pytest.fixture(scope="module", params=CASES)
def network(request):
    return random(*CASES[request.param])


def swapped(array):
    first, second = np.split(array, 2)
    return np.concatenate([second, first])


def sd3_in_original_names(tensors, depth):
    """From the names of diffusers, by the correspondence of the two code bases."""
    result, taken = {}, set()

    def take(name, ours, change=lambda a: a):
        taken.add(ours)
        result[name] = change(tensors[ours])

    def both(name, ours, change=lambda a: a):
        for end in ("weight", "bias"):
            take(f"{name}.{end}", f"{ours}.{end}", change)

    def joined(name, parts):
        for end in ("weight", "bias"):
            taken.update(f"{part}.{end}" for part in parts)
            arrays = [tensors[f"{part}.{end}"] for part in parts]
            result[f"{name}.{end}"] = np.concatenate(arrays)

    take("pos_embed", "pos_embed.pos_embed")
    both("x_embedder.proj", "pos_embed.proj")
    both("context_embedder", "context_embedder")
    for new, old in (
        ("t_embedder", "timestep_embedder"),
        ("y_embedder", "text_embedder"),
    ):
        both(f"{new}.mlp.0", f"time_text_embed.{old}.linear_1")
        both(f"{new}.mlp.2", f"time_text_embed.{old}.linear_2")
    both("final_layer.adaLN_modulation.1", "norm_out.linear", swapped)
    both("final_layer.linear", "proj_out")
    for i in range(depth):
        old, last = f"transformer_blocks.{i}.", i == depth - 1
        x, c = f"joint_blocks.{i}.x_block.", f"joint_blocks.{i}.context_block."
        both(f"{x}adaLN_modulation.1", f"{old}norm1.linear")
        change = swapped if last else lambda a: a
        both(f"{c}adaLN_modulation.1", f"{old}norm1_context.linear", change)
        joined(f"{x}attn.qkv", [f"{old}attn.to_{n}" for n in "qkv"])
        joined(f"{c}attn.qkv", [f"{old}attn.add_{n}_proj" for n in "qkv"])
        both(f"{x}attn.proj", f"{old}attn.to_out.0")
        for n in "qk":
            take(f"{x}attn.ln_{n}.weight", f"{old}attn.norm_{n}.weight")
            take(f"{c}attn.ln_{n}.weight", f"{old}attn.norm_added_{n}.weight")
        both(f"{x}mlp.fc1", f"{old}ff.net.0.proj")
        both(f"{x}mlp.fc2", f"{old}ff.net.2")
        if not last:
            both(f"{c}attn.proj", f"{old}attn.to_add_out")
            both(f"{c}mlp.fc1", f"{old}ff_context.net.0.proj")
            both(f"{c}mlp.fc2", f"{old}ff_context.net.2")
        if f"{old}attn2.to_q.weight" in tensors:
            joined(f"{x}attn2.qkv", [f"{old}attn2.to_{n}" for n in "qkv"])
            both(f"{x}attn2.proj", f"{old}attn2.to_out.0")
            for n in "qk":
                take(f"{x}attn2.ln_{n}.weight", f"{old}attn2.norm_{n}.weight")
    assert taken == set(tensors)
    return result


def test_export_comes_back_exactly_from_each_layout(tmp_path, network):
    folder = export_weights(network, tmp_path / "diffusers", "diffusers")
    file = export_weights(network, tmp_path / "a.safetensors", "original")
    size = dataclasses.replace(network.config).input_size
    for path in (folder, file):
        checkpoint = open_checkpoint(path)
        config = dataclasses.replace(checkpoint.config, input_size=size)
        found = dataclasses.replace(checkpoint, config=config).load()
        assert_same_trees(found.backbone, network)


def test_the_original_files_of_sd3_hold_the_same(tmp_path):
    network = random(SD3, SD3_TINY)
    folder = export_weights(network, tmp_path / "diffusers", "diffusers")
    tensors = safetensors.numpy.load_file(
        folder / "diffusion_pytorch_model.safetensors"
    )
    original = sd3_in_original_names(tensors, SD3_TINY.depth)
    bundle = {f"model.diffusion_model.{n}": a for n, a in original.items()}
    bundle["first_stage_model.decoder.conv_in.bias"] = np.zeros(3, np.float32)
    bundle["text_encoders.t5xxl.shared.weight"] = np.zeros(3, np.int8)
    for tensors in (original, bundle):
        path = tmp_path / "sd3.safetensors"
        safetensors.numpy.save_file(tensors, path)
        found = load_weights(path, SD3_TINY)
        assert_same_trees(found.backbone, network)


def test_bfloat16_stays_as_it_is(tmp_path, network):
    narrow = jax.tree.map(lambda a: a.astype(ml_dtypes.bfloat16), network)
    folder = export_weights(narrow, tmp_path / "diffusers")
    found = load_weights(folder, network.config, dtype="bfloat16")
    assert_same_trees(found.backbone, narrow)


def flux_file(tmp_path, change, config=FLUX_TINY, kind=Flux):
    file = export_weights(random(kind, config), tmp_path / "a.safetensors", "original")
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)
    return file


def test_flux_without_guidance_needs_a_name(tmp_path):
    config = dataclasses.replace(FLUX_TINY, variant="dedistilled")
    file = flux_file(tmp_path, lambda tensors: None, config)
    with pytest.raises(ValueError, match="does not say the .*variant"):
        load_weights(file)
    assert load_weights(file, config).config == config
    with pytest.raises(ValueError, match="guidance_in.in_layer.weight"):
        load_weights(file, FLUX_TINY)
    dev = flux_file(tmp_path, lambda tensors: None)
    with pytest.raises(ValueError, match="variant is 'dev', expected 'dedistilled'"):
        load_weights(dev, config)


def test_a_config_of_another_variant_is_refused(tmp_path):
    folder = export_weights(random(Flux, FLUX_TINY), tmp_path / "diffusers")
    fields = json.loads((folder / "config.json").read_text())
    fields["guidance_embeds"] = False
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="guidance_embeds is False, but"):
        load_weights(folder)


@pytest.mark.parametrize(
    "name, dtype, message",
    [
        ("single_blocks.0.linear1.lora_A.weight", np.float32, "merge a LoRA"),
        ("double_blocks.7.img_mod.lin.bias", np.float32, "without a gap.*incomplete"),
        ("final_layer.linear.bias", ml_dtypes.float8_e4m3fn, "is quantized"),
    ],
)
def test_files_of_other_kinds(tmp_path, name, dtype, message):
    def change(tensors):
        tensors[name] = np.zeros(8, dtype)

    with pytest.raises(ValueError, match=message):
        load_weights(flux_file(tmp_path, change))


def test_quantized_containers(tmp_path):
    (tmp_path / "flux.gguf").touch()
    with pytest.raises(ValueError, match="quantized.*bfloat16"):
        load_weights(tmp_path / "flux.gguf")
