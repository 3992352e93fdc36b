"""Weights as others save them: wrappers, averages, heads, missing and extra rows."""

import dataclasses
import json
import struct
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from oracles import torch_zip
from oracles.dits import TINY, random_dit

import gmm_guidance as gg
from full_models import export_weights, load_weights
from full_models.models.dit.weights import official_table
from full_models.weights.load import open_checkpoint
from full_models.weights.safetensors_file import read_safetensors
from full_models.weights.table import dump

STATE = dump(random_dit().backbone, official_table(TINY))
OTHER = {name: array + 7 for name, array in STATE.items()}
BIAS = "x_embedder.proj.bias"
TABLE = "y_embedder.embedding_table.weight"


def prefixed(prefix, state=STATE):
    return {prefix + name: array for name, array in state.items()}


def written(tmp_path, content, suffix=".pt"):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.numpy.save_file(content, path)
    else:
        torch_zip.write(path, content)
    return path


def first_bias(path, **options):
    """Of the tensors chosen, one that tells ``STATE`` from ``OTHER``."""
    stored = open_checkpoint(path, TINY, **options).stored
    assert stored.keys() == STATE.keys()
    return np.asarray(stored[BIAS].read())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module.model.", "net."])
def test_prefixes_of_wrappers_are_dropped(tmp_path, prefix, suffix):
    extra = {"n_averaged": np.ones((1,)), f"{prefix}": np.ones(2)}  # swa_utils
    path = written(tmp_path, prefixed(prefix) | extra, suffix)
    with pytest.raises(ValueError, match="unexpected|does not fit"):
        load_weights(path, TINY)
    path = written(tmp_path, prefixed(prefix) | {"n_averaged": np.ones((1,))}, suffix)
    np.testing.assert_array_equal(first_bias(path), STATE[BIAS])


def test_checkpoints_of_lightning(tmp_path):
    path = written(tmp_path, {"state_dict": prefixed("model."), "epoch": 3}, ".ckpt")
    np.testing.assert_array_equal(first_bias(path), STATE[BIAS])
    both = prefixed("net.") | prefixed("ema.", OTHER)
    path = written(tmp_path, {"state_dict": both}, ".ckpt")
    with pytest.raises(ValueError, match=r"several models, under ema\., net\."):
        load_weights(path, TINY)
    for root, state in (("state_dict/ema.", OTHER), ("state_dict/net.", STATE)):
        np.testing.assert_array_equal(first_bias(path, root=root), state[BIAS])
        assert open_checkpoint(path, TINY, root=root).root == root
    path = written(tmp_path, both, ".safetensors")
    np.testing.assert_array_equal(first_bias(path, root="/ema."), OTHER[BIAS])
    with pytest.raises(ValueError, match=r"no tensor under 'ma\.'"):
        load_weights(path, TINY, root="/ma.")


@pytest.mark.parametrize(
    "name", ["ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict"]
)
def test_averages_are_preferred_and_named(tmp_path, name):
    path = written(tmp_path, {"model": STATE, name: OTHER})
    np.testing.assert_array_equal(first_bias(path), OTHER[BIAS])
    found = open_checkpoint(path, TINY)
    assert found.root == name and f"weights of the entry {name}" in found.title
    np.testing.assert_array_equal(first_bias(path, root="model"), STATE[BIAS])


def test_heads_that_sampling_does_not_use_are_left_out_by_name(tmp_path):
    heads = {"projectors.0.0.weight": np.zeros((4, 16), np.float32)}
    path = written(tmp_path, {"ema": STATE | heads})
    with pytest.raises(ValueError, match=r"unexpected: .*ignore=\('projectors',\)"):
        load_weights(path, TINY)
    for ignore in ("projectors", ("projectors.",)):
        np.testing.assert_array_equal(first_bias(path, ignore=ignore), STATE[BIAS])


def test_the_table_of_positions_may_be_missing(tmp_path):
    state = {name: a for name, a in STATE.items() if name != "pos_embed"}
    path = written(tmp_path, state, ".safetensors")
    found = load_weights(path, TINY)
    np.testing.assert_array_equal(found.backbone.patches.bias[...], STATE[BIAS])


def test_networks_without_a_null_class(tmp_path):
    rows = TINY.num_labels
    path = written(tmp_path, STATE | {TABLE: STATE[TABLE][:rows]})
    with pytest.raises(
        ValueError, match=f"num_labels is {rows - 1}, expected {rows}.*null_label=False"
    ):
        load_weights(path, TINY)
    config = dataclasses.replace(TINY, null_label=False)
    model = load_weights(path, config)
    assert model.num_labels == rows and not model.null_label
    key, steps = jax.random.key(0), gg.Karras(2)
    draw = dict(num_samples=2, schedule=steps, solver="euler")
    last = rows - 1
    drawn = gg.guided_sample(key, model, last, guidance=gg.Unguided(), **draw)
    assert jnp.isfinite(drawn).all()
    for label in (None, last):
        with pytest.raises(ValueError, match="no null class"):
            rule = gg.Unguided() if label is None else gg.CFG(2.0)
            gg.guided_sample(key, model, label, guidance=rule, **draw)
    with pytest.raises(
        ValueError, match=rf"label must be in 0\.\.{last}, got \[{rows}"
    ):
        gg.guided_sample(key, model, rows, guidance=gg.Unguided(), **draw)
    again = export_weights(model, tmp_path / "n.safetensors", "native")
    assert open_checkpoint(again).config == config
    with pytest.raises(ValueError, match="null_label must be True in diffusers"):
        export_weights(model, tmp_path / "d", "diffusers")
    alone = written(tmp_path, STATE | {TABLE: STATE[TABLE][:1]})
    fields = dataclasses.asdict(config) | {"num_labels": 1}
    fields["process"] = config.process
    assert not open_checkpoint(alone, type(TINY)(**fields)).config.null_label


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.index.json"])
@pytest.mark.parametrize(
    "content, message",
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2700611775\n",
         "pointer of Git LFS.*2.7 GB.*git lfs pull"),
        ("<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    ],
)  # fmt: skip
def test_pointers_and_pages_in_place_of_weights(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path / name, "DiT-XL/2")


@pytest.mark.parametrize(
    "content",
    [
        {"weight_map": {"w": "a.index.json"}},
        {"weight_map": {"w": 5}},
        {"weight_map": {"w": ["a"]}},
        {"weight_map": []},
        {},
        None,
        [],
    ],
)
def test_indices_of_other_kinds(tmp_path, content):
    path = tmp_path / "a.index.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a\.index\.json is damaged or of another"):
        read_safetensors(path)


def test_configurations_without_end_are_refused_at_once(tmp_path):
    folder = export_weights(random_dit(), tmp_path / "d")
    file = folder / "config.json"
    fields = json.loads(file.read_text())
    tracemalloc.start()
    for name, value in (
        ("num_layers", 10**6),
        ("num_layers", 10**30),
        ("attention_head_dim", 10**18),
        ("sample_size", 10**9),
        ("num_embeds_ada_norm", 2**62),
        ("num_layers", "4"),
    ):
        file.write_text(json.dumps(fields | {name: value}))
        with pytest.raises(ValueError, match=r"config\.json"):
            load_weights(folder)
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="damaged or of another kind"):
        load_weights(folder)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    path = tmp_path_factory.mktemp("native") / "n.safetensors"
    return export_weights(random_dit(), path, "native").read_bytes()


@pytest.mark.parametrize(
    "change",
    [{"mlp_ratio": "4"}, {"mlp_ratio": None}, {"mlp_ratio": float("nan")},
     {"width": 2**62}, {"process": {"kind": ["x"]}}, {"prediction": ["v"]}, None],
)  # fmt: skip
def test_descriptions_of_other_types(tmp_path, native, change):
    path, data = tmp_path / "n.safetensors", native
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    found = json.loads(header["__metadata__"]["description"])
    text = "[" * 100_000
    if change is not None:
        text = json.dumps(found | {"config": found["config"] | change})
    header["__metadata__"]["description"] = text
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])
    with pytest.raises(ValueError, match=r"n\.safetensors"):
        load_weights(path)
