"""``load_weights`` and ``export_weights``: formats, agreement, refusals, memory."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from oracles import torch_zip
from oracles.dits import TINY, random_dit
from support.trees import assert_same_trees

import full_models
from full_models import DiTConfig, export_weights, load_weights
from full_models.models.dit.config import NAMES, SIT
from full_models.models.dit.weights import diffusers_table, official_table
from full_models.weights import load
from full_models.weights.load import DIFFUSERS_FILE, open_checkpoint
from full_models.weights.table import StoredTensor, dump
from gmm_guidance._runtime.schema import sealed
from gmm_guidance._runtime.tensor_files import load_description, save_tree

LAYOUTS = ["diffusers", "official", "native", "orbax"]
FLOW = dataclasses.replace(TINY, **SIT, num_heads=4)
MODEL = random_dit()


class Wrapped:
    config = None


def place(folder, layout):
    return folder / ("a.safetensors" if layout in ("official", "native") else layout)


def write_official(path, model=MODEL, **changes):
    return torch_zip.write(
        path, dump(model.backbone, official_table(model.config)) | changes
    )


# --- round trips


@pytest.mark.parametrize("config", [TINY, FLOW], ids=["ddpm", "flow"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back_exactly_from_its_path_alone(tmp_path, config, layout):
    model = random_dit(config, seed=1)
    path = export_weights(model, place(tmp_path / "new", layout), layout)
    assert_same_trees(load_weights(path), model)
    assert_same_trees(load_weights(str(path), config), model)
    assert [*path.parent.iterdir()] == [path]  # nothing is left beside it
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    os.umask(mask := os.umask(0))
    for file in files:
        everything = 0o777 if file.is_dir() else 0o666
        assert file.stat().st_mode & 0o777 == everything & ~mask, file


@pytest.mark.parametrize("layout", LAYOUTS)
def test_types_of_parameters_and_tensors(tmp_path, layout):
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), MODEL)
    path = export_weights(MODEL, place(tmp_path, layout), layout, dtype="bfloat16")
    assert_same_trees(load_weights(path, dtype="bfloat16"), narrow)
    widened = jax.tree.map(lambda a: a.astype(jnp.float32), narrow)
    assert_same_trees(load_weights(path), widened)
    again = export_weights(narrow, place(tmp_path / "again", layout), layout)
    assert_same_trees(load_weights(again, dtype=jnp.bfloat16), narrow)
    if layout != "orbax":
        file = path / DIFFUSERS_FILE if path.is_dir() else path
        arrays = safetensors.numpy.load_file(file)
        wide = {n for n, a in arrays.items() if a.dtype != jnp.bfloat16}
        assert wide <= {"pos_embed"}


def test_how_a_network_is_run_is_the_callers_choice(tmp_path):
    config = dataclasses.replace(TINY, compute_dtype="bfloat16", remat=True)
    path = export_weights(random_dit(config), tmp_path / "a.safetensors", "native")
    assert load_weights(path).config == config
    assert load_weights(path, TINY).config == TINY
    wide = load_weights(path, compute_dtype="float32")
    assert wide.config == dataclasses.replace(config, compute_dtype="float32")
    assert wide.blocks.attn.dtype == "float32"
    assert load_weights(path, TINY, compute_dtype="bfloat16").config == (
        dataclasses.replace(TINY, compute_dtype="bfloat16")
    )
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or float16"):
        load_weights(path, dtype="float64")
    with pytest.raises(ValueError, match="compute_dtype must be"):
        load_weights(path, compute_dtype="float16")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors"])
def test_official_tensors_in_any_file(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        tensors = dump(MODEL.backbone, official_table(TINY))
        safetensors.numpy.save_file(tensors, path)
    else:
        write_official(path)
    assert_same_trees(load_weights(path, TINY), MODEL)


def test_entry_of_a_training_checkpoint(tmp_path):
    other = random_dit(seed=2)
    trees = [dump(m.backbone, official_table(TINY)) for m in (MODEL, other)]
    path = torch_zip.write(tmp_path / "a.pt", {"ema": trees[0], "model": trees[1]})
    assert_same_trees(load_weights(path, TINY), MODEL)
    assert_same_trees(load_weights(path, TINY, root="model"), other)
    native = export_weights(MODEL, tmp_path / "a.safetensors", "native")
    with pytest.raises(ValueError, match="root='ema' chooses an entry of a PyTorch"):
        load_weights(native, root="ema")


def test_diffusers_folders_and_files(tmp_path):
    """A pipeline's subfolder; another file beside the configuration; a lone file."""
    folder = export_weights(MODEL, tmp_path / "pipeline" / "transformer")
    assert_same_trees(load_weights(folder.parent), MODEL)
    assert_same_trees(load_weights(folder / DIFFUSERS_FILE), MODEL)
    variant = folder / "diffusion_pytorch_model.fp16.safetensors"
    (folder / DIFFUSERS_FILE).rename(variant)
    assert_same_trees(load_weights(folder), MODEL)
    other = variant.rename(folder / "ema.safetensors")
    assert_same_trees(load_weights(other), MODEL)
    with pytest.raises(ValueError, match="has a config.json, but none of diffusion_"):
        load_weights(folder)
    (folder / "config.json").unlink()
    assert_same_trees(load_weights(other, TINY), MODEL)
    with pytest.raises(ValueError, match="does not say the .*num_heads.*config.json"):
        load_weights(other)
    with pytest.raises(ValueError, match="must be a folder of diffusers.*ema"):
        load_weights(folder)
    tensors = dump(MODEL.backbone, diffusers_table(TINY, positions=True))
    path = torch_zip.write(tmp_path / "with_positions.pt", tensors)
    assert_same_trees(load_weights(path, TINY), MODEL)


def test_process_that_diffusers_does_not_record(tmp_path):
    folder = export_weights(MODEL, tmp_path / "a")
    fields = json.loads((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="process is DDPM.*, expected Rectified"):
        load_weights(folder, dataclasses.replace(TINY, **SIT))
    del fields["_gmm_guidance"]
    (folder / "config.json").write_text(json.dumps(fields))
    assert_same_trees(load_weights(folder), MODEL)
    flow = dataclasses.replace(TINY, **SIT)
    assert load_weights(folder, flow).config == flow


# --- what the model is


@pytest.fixture
def config_of(monkeypatch, tmp_path):
    """The config found for an official file of a shape, made without its numbers."""

    def find(shape, model=None):
        shapes = official_table(shape).shapes()
        stored = {
            name: StoredTensor(s, "F32", lambda: np.empty(0))
            for name, s in shapes.items()
        }
        monkeypatch.setattr(load, "_read", lambda path, root: (stored, ""))
        (tmp_path / "file.pt").touch()
        return open_checkpoint(tmp_path / "file.pt", model).config

    return find


@pytest.mark.parametrize("name", NAMES)
def test_names_of_published_models(name, config_of):
    shape = DiTConfig.named(name)
    assert config_of(shape, name) == shape
    size = name.partition("-")[2]
    with pytest.raises(ValueError, match=f"pass 'DiT-{size}' or 'SiT-{size}'"):
        config_of(shape)


def test_a_name_leaves_resolution_and_classes_to_the_file(config_of):
    shape = DiTConfig.named("SiT-XL/2", input_size=64, num_labels=10, learn_sigma=False)
    assert config_of(shape, "SiT-XL/2") == shape


def test_contradictions_name_the_fields(config_of):
    shape = DiTConfig.named("DiT-XL/2")
    with pytest.raises(ValueError) as caught:
        config_of(shape, "DiT-B/4")
    for part in (
        "file.pt does not hold 'DiT-B/4'",
        "depth is 28, expected 12",
        "width is 1152, expected 768",
        "patch_size is 2, expected 4",
    ):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="of the given config: input_size is 32, "):
        config_of(shape, DiTConfig.named("DiT-XL/2", input_size=64))
    with pytest.raises(ValueError, match="Did you mean 'DiT-XL/2'"):
        config_of(shape, "DiT-XL-2")
    with pytest.raises(
        TypeError, match=r"a config \(DiTConfig, .*\) or None, got dict"
    ):
        config_of(shape, {"depth": 28})
    uneven = dataclasses.replace(TINY, mlp_ratio=2.7)  # 43 over 16 in the file
    assert config_of(uneven, uneven) == uneven


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_that_know_their_model_contradict_another(tmp_path, layout):
    path = export_weights(MODEL, place(tmp_path, layout), layout)
    other = dataclasses.replace(TINY, num_heads=4, **SIT)
    message = (
        "num_heads is 2, expected 4; prediction is 'epsilon', expected 'velocity'; "
        "process is DDPM"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(path, other)
    with pytest.raises(ValueError, match="not hold 'DiT-S/2': depth is 4, expected"):
        load_weights(path, "DiT-S/2")


def test_unpublished_shapes_need_a_configuration(tmp_path):
    path = write_official(tmp_path / "a.pt")
    with pytest.raises(
        ValueError,
        match="num_heads, process, prediction of.*pass its DiTConfig",
    ):
        load_weights(path)
    with pytest.raises(ValueError, match="depth is 4, expected 5"):
        load_weights(path, dataclasses.replace(TINY, depth=5))


# --- files that do not fit


def test_tensors_that_do_not_fit_are_listed(tmp_path):
    path = write_official(
        tmp_path / "a.pt",
        **{
            "blocks.1.attn.qkv.bias": np.zeros(7, np.float32),
            "blocks.1.attn.norm.weight": np.zeros(8, np.float32),
        },
    )
    with pytest.raises(ValueError) as caught:
        load_weights(path, TINY)
    for part in (
        f"{path} does not fit this model",
        "unexpected: blocks.1.attn.norm.weight (8,)",
        "blocks.1.attn.qkv.bias expected (48,), found (7,)",
    ):
        assert part in str(caught.value)
    tensors = dump(MODEL.backbone, official_table(TINY))
    del tensors["x_embedder.proj.weight"]
    torch_zip.write(path, tensors)
    with pytest.raises(ValueError, match="missing: x_embedder.proj.weight"):
        load_weights(path, TINY)
    table = np.roll(tensors["pos_embed"], 1, axis=1)
    write_official(path, pos_embed=table)
    with pytest.raises(ValueError, match="pos_embed must equal the table of this"):
        load_weights(path, TINY)


def test_other_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_weights(tmp_path / "nothing")
    with pytest.raises(ValueError, match="it holds nothing"):
        load_weights(tmp_path)
    path = torch_zip.write(tmp_path / "a.pt", {"conv.weight": np.ones(3)})
    with pytest.raises(ValueError, match="holds no known model.*found conv.weight"):
        load_weights(path, TINY)
    path.rename(path.with_suffix(".npz"))
    with pytest.raises(ValueError, match=r"file ending in .safetensors.*rename it"):
        load_weights(path.with_suffix(".npz"), TINY)
    ours = save_tree(tmp_path / "a.safetensors", {"w": np.ones(2)}, {"kind": "toy"})
    with pytest.raises(ValueError, match="holds no known model.*found w"):
        load_weights(ours, TINY)
    content = export_weights(MODEL, ours, "native").read_bytes()
    for end in (0, 5, 100, len(content) // 2, len(content) - 1):
        ours.write_bytes(content[:end])
        with pytest.raises(ValueError, match="truncated"):
            load_weights(ours)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flipped_bits_in_our_own_files_are_noticed(tmp_path, layout):
    path = export_weights(MODEL, place(tmp_path, layout), layout)
    files = [path]
    if path.is_dir():
        sizes = {f: f.stat().st_size for f in path.rglob("*") if f.is_file()}
        files = [max(sizes, key=sizes.__getitem__)]
        if layout == "orbax":
            files.append(path / "description.json")
    for file in files:
        whole = file.read_bytes()
        places = [-1001 % len(whole), len(whole) // 2]
        if file.suffix == ".json":
            places = [whole.index(b'"num_heads": 2') + len(b'"num_heads": ')]
        elif layout == "native":  # the number of heads leaves no trace in the tensors
            places.append(whole.index(rb"\"num_heads\": 2") + len(rb"\"num_heads\": "))
        for position in places:
            damaged = bytearray(whole)
            damaged[position] ^= 4
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match="checksum"):
                load_weights(path, TINY if layout == "diffusers" else None)
        file.write_bytes(whole)
    assert_same_trees(load_weights(path), MODEL)


def test_configurations_beside_the_weights_that_do_not_fit(tmp_path):
    folder = export_weights(MODEL, tmp_path / "a")
    file = folder / "config.json"
    fields = json.loads(file.read_text())
    for content, message in (
        ("{", "config.json is damaged or of another kind: no JSON"),
        ("[]", "config.json is damaged or of another kind"),
        (json.dumps({"_class_name": "AutoencoderKL", "layers": 2}), "_class_name must"),
        (json.dumps(fields | {"norm_type": "x"}), "config.json: norm_type must"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            load_weights(folder)
    file.write_text(json.dumps(fields | {"num_layers": 3}))
    with pytest.raises(ValueError, match="unexpected: transformer_blocks.3"):
        load_weights(folder)


def test_descriptions_of_other_versions(tmp_path):
    path = export_weights(MODEL, tmp_path / "a.safetensors", "native")
    description = load_description(path)
    assert description["config"] == dataclasses.asdict(TINY)
    assert description["dtype"] == "float32"
    for change, message in (
        (
            {"config": {**description["config"], "rotary": True}},
            "version .unknown fields rota",
        ),
        ({"config": [1]}, "damaged or of another kind.*config"),
        ({"family": "DiT-3D"}, "another version.*family 'DiT-3D'"),
        ({"layout": "zip"}, "another version.*layout 'zip'"),
        ({"config": {**description["config"], "depth": "4"}}, "depth must be a whole"),
        ({"kind": "full_models.DiT"}, "another version.*Export the weights again"),
    ):
        save_tree(path, {"w": np.ones(2)}, description | change)
        with pytest.raises(ValueError, match=message):
            load_weights(path)


# --- orbax


def test_folders_of_orbax_that_do_not_fit(tmp_path):
    path = export_weights(MODEL, tmp_path / "a", "orbax")
    description = json.loads((path / "description.json").read_text())
    del description["sha256"]
    description["config"]["depth"] = 3
    (path / "description.json").write_text(json.dumps(sealed(description)))
    with pytest.raises(ValueError, match=r"attn.qkv.kernel expected \(3, 16, 48\), fo"):
        load_weights(path)
    description["config"]["depth"] = 4
    (path / "description.json").write_text(json.dumps(sealed(description)))
    (path / "arrays" / "_METADATA").unlink()
    with pytest.raises(ValueError, match="write it again"):
        load_weights(path)


def test_without_orbax(tmp_path, monkeypatch):
    path = export_weights(MODEL, tmp_path / "a", "orbax")
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match="pip install.*safetensors"):
        load_weights(path)
    with pytest.raises(ImportError, match="orbax-checkpoint"):
        export_weights(MODEL, tmp_path / "b", "orbax")
    assert [*tmp_path.iterdir()] == [path]


# --- where exports go


def test_nothing_is_overwritten_by_folders(tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes").write_text("mine")
    for layout in ("diffusers", "orbax"):
        with pytest.raises(ValueError, match="it is a folder with content; choose an"):
            export_weights(MODEL, taken, layout)
        with pytest.raises(ValueError, match="but it is a file"):
            export_weights(MODEL, taken / "notes", layout)
    assert (taken / "notes").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert_same_trees(load_weights(export_weights(MODEL, tmp_path / "empty")), MODEL)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch, layout):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    monkeypatch.setattr("full_models.weights.export.write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        export_weights(MODEL, place(tmp_path, layout), layout)
    assert [*tmp_path.iterdir()] == []


def test_requests_that_cannot_be_met(tmp_path):
    for layout in ("official", "native"):
        with pytest.raises(ValueError, match=r"use .*a.safetensors, or layout="):
            export_weights(MODEL, tmp_path / "a.pt", layout)
    with pytest.raises(ValueError, match="layout must be one of diffusers, official"):
        export_weights(MODEL, tmp_path / "a", "numpy")
    with pytest.raises(TypeError, match="one of load_weights .DiT, .*, got Wrapped"):
        export_weights(Wrapped(), tmp_path / "a")
    odd = random_dit(dataclasses.replace(TINY, mlp_ratio=3))
    with pytest.raises(ValueError, match="mlp_ratio must be 4 in diffusers"):
        export_weights(odd, tmp_path / "a")
    assert [*tmp_path.iterdir()] == []


# --- memory

_MEASURE = """
import dataclasses, json, sys
import jax, jax.numpy as jnp
from full_models import load_weights, DiTConfig

def resident(field):
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024

tiny, path, config = json.loads(sys.argv[1])
config = DiTConfig(**config)
load_weights(tiny)  # all that is imported and compiled on first use
jax.block_until_ready(jnp.ones(3) + 1)
before = resident("VmRSS")
model = load_weights(path, config)
jax.block_until_ready(model)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
print(json.dumps([resident("VmHWM") - before, resident("VmRSS") - before, size]))
"""
LARGE = DiTConfig(width=512, depth=9, num_heads=8)
# Buffers of allocators and libraries, whatever the size of the weights.
CONSTANT = 16e6


@pytest.fixture(scope="module")
def large():
    return random_dit(LARGE)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("layout", ["pt", *LAYOUTS])
def test_memory_of_loading(tmp_path, large, layout):
    if layout == "pt":
        path = write_official(tmp_path / "a.pt", large)
        tiny = export_weights(MODEL, tmp_path / "tiny.safetensors", "official")
    else:
        path = export_weights(large, place(tmp_path, layout), layout)
        tiny = export_weights(MODEL, place(tmp_path / "tiny", layout), layout)
    arguments = json.dumps([str(tiny), str(path), dataclasses.asdict(LARGE)])
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(full_models.__file__).parents[1],
    )
    peak, after, size = json.loads(done.stdout.splitlines()[-1])
    assert 150e6 < size < 200e6
    print(f"{layout}: peak {peak / size:.2f}, after {after / size:.2f} of {size:.3g} B")
    # orbax reads arrays at the same time.
    assert peak <= (2.0 if layout == "orbax" else 1.5) * size + CONSTANT
