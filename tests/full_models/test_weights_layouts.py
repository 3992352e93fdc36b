"""The tables of weights: names, shapes and values, in both directions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles.dits import TINY, random_backbone
from support.trees import assert_same_trees

from full_models import DiT, DiTConfig
from full_models.models.dit.config import SIT
from full_models.models.dit.weights import (
    POSITIONS,
    config_from_diffusers,
    config_to_diffusers,
    diffusers_table,
    infer_official,
    official_table,
)
from full_models.weights.table import (
    Entry,
    Source,
    StoredTensor,
    Table,
    copied,
    dump,
    fill,
    native_table,
    parameters,
)

ODD = DiTConfig(
    input_size=12,
    patch_size=4,
    in_channels=3,
    width=24,
    depth=2,
    num_heads=3,
    num_labels=7,
    learn_sigma=False,
    **SIT,
)
CONFIGS = pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
LAYOUTS = {
    "official": lambda config, model: official_table(config),
    "diffusers": lambda config, model: diffusers_table(config),
    "positions": lambda config, model: diffusers_table(config, positions=True),
    "native": lambda config, model: native_table(model),
}
WORDS = {"float32": "F32", "bfloat16": "BF16", "int32": "I32"}


def in_memory(tensors):
    return {
        name: StoredTensor(a.shape, WORDS[a.dtype.name], lambda a=a: a)
        for name, a in tensors.items()
    }


def abstract(config):
    return jax.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0)))


@CONFIGS
@pytest.mark.parametrize("name", LAYOUTS)
def test_written_tensors_have_the_listed_shapes_and_come_back(config, name):
    model = random_backbone(config)
    layout = LAYOUTS[name](config, model)
    tensors = dump(model, layout)
    assert {n: a.shape for n, a in tensors.items()} == layout.shapes()
    assert_same_trees(fill(abstract(config), layout, in_memory(tensors), "x"), model)
    half = dump(model, layout, jnp.dtype("bfloat16"))
    narrow = fill(abstract(config), layout, in_memory(half), "x", jnp.bfloat16)
    assert_same_trees(narrow, jax.tree.map(lambda a: a.astype(jnp.bfloat16), model))


@CONFIGS
def test_official_tensors_by_hand(config):
    """Each product as PyTorch has it, ``weight @ input``, on the module's own parts."""
    model = random_backbone(config)
    tensors = dump(model, official_table(config))
    rng = np.random.default_rng(0)
    p, channels, width = config.patch_size, config.in_channels, config.width
    patch = rng.normal(size=(channels, p, p))  # PyTorch's order
    convolved = np.einsum("dcij,cij->d", tensors["x_embedder.proj.weight"], patch)
    ours = model.patches.kernel[...].T @ patch.transpose(1, 2, 0).reshape(-1)
    np.testing.assert_allclose(ours, convolved, rtol=1e-4, atol=1e-5)
    last = config.depth - 1
    for theirs, kernel, bias in (
        ("t_embedder.mlp.0", model.time.fc1.kernel, model.time.fc1.bias),
        ("t_embedder.mlp.2", model.time.fc2.kernel, model.time.fc2.bias),
        ("final_layer.linear", model.final.linear.kernel, model.final.linear.bias),
        (
            f"blocks.{last}.attn.qkv",
            model.blocks.attn.qkv.kernel[last],
            model.blocks.attn.qkv.bias[last],
        ),
        (
            f"blocks.{last}.adaLN_modulation.1",
            model.blocks.modulation.kernel[last],
            model.blocks.modulation.bias[last],
        ),
    ):
        np.testing.assert_array_equal(tensors[f"{theirs}.weight"], kernel[...].T)
        np.testing.assert_array_equal(tensors[f"{theirs}.bias"], bias[...])
    table = tensors["y_embedder.embedding_table.weight"]
    np.testing.assert_array_equal(table, model.labels[...])
    assert table.shape == (config.num_labels + 1, width)
    grid = config.input_size // p
    assert tensors["pos_embed"].shape == (1, grid * grid, width)


@CONFIGS
def test_diffusers_has_the_same_tensors_under_other_names(config):
    model = random_backbone(config)
    theirs = dump(model, official_table(config))
    ours = dump(model, diffusers_table(config))
    expected = {}
    for name, array in theirs.items():
        kind = name.rpartition(".")[2]
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            block = f"transformer_blocks.{index}."
            if rest.startswith("attn.qkv"):
                for part, rows in zip("qkv", np.split(array, 3), strict=True):
                    expected[f"{block}attn1.to_{part}.{kind}"] = rows
                continue
            new = {
                "attn.proj": "attn1.to_out.0",
                "mlp.fc1": "ff.net.0.proj",
                "mlp.fc2": "ff.net.2",
                "adaLN_modulation.1": "norm1.linear",
            }[rest.rpartition(".")[0]]
            expected[f"{block}{new}.{kind}"] = array
        elif name.startswith(("t_embedder", "y_embedder")):
            new = {
                "t_embedder.mlp.0": "timestep_embedder.linear_1",
                "t_embedder.mlp.2": "timestep_embedder.linear_2",
                "y_embedder.embedding_table": "class_embedder.embedding_table",
            }[name.rpartition(".")[0]]
            for i in range(config.depth):
                expected[f"transformer_blocks.{i}.norm1.emb.{new}.{kind}"] = array
        elif name != "pos_embed":
            new = {
                "x_embedder.proj": "pos_embed.proj",
                "final_layer.adaLN_modulation.1": "proj_out_1",
                "final_layer.linear": "proj_out_2",
            }[name.rpartition(".")[0]]
            expected[f"{new}.{kind}"] = array
    assert ours.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(ours[name], array)
    with_table = dump(model, diffusers_table(config, positions=True))
    np.testing.assert_array_equal(with_table.pop(POSITIONS), theirs["pos_embed"])
    assert with_table.keys() == ours.keys()


def test_native_names_are_paths_in_the_module():
    assert {*native_table(abstract(TINY)).entries} == {*parameters(random_backbone())}
    assert "blocks.attn.qkv.kernel" in parameters(random_backbone())


# --- refusals


def test_missing_unexpected_and_misshapen_tensors_are_listed():
    layout = official_table(TINY)
    tensors = dump(random_backbone(), layout)
    del tensors["blocks.2.mlp.fc1.weight"]
    tensors["blocks.4.mlp.fc1.weight"] = np.zeros((3, 4), np.float32)
    tensors["pos_embed"] = tensors["pos_embed"][:, :9]
    tensors["t_embedder.mlp.0.bias"] = np.zeros(16, np.int32)
    with pytest.raises(ValueError) as caught:
        fill(abstract(TINY), layout, in_memory(tensors), "the file")
    for part in (
        "the file does not fit",
        r"missing: blocks.2.mlp.fc1.weight (64, 16).",
        r"unexpected: blocks.4.mlp.fc1.weight (3, 4).",
        r"of another shape: pos_embed expected (1, 16, 16), found (1, 9, 16).",
        "of a type other than F64, F32, F16, BF16: t_embedder.mlp.0.bias is I32.",
    ):
        assert part in str(caught.value)


def test_many_problems_are_counted():
    layout = official_table(TINY)
    with pytest.raises(ValueError, match=r"missing: .* and \d+ more\."):
        fill(abstract(TINY), layout, {}, "the file")


@pytest.mark.parametrize("name", ["official", "positions"])
def test_another_table_of_positions_is_refused(name):
    layout = LAYOUTS[name](TINY, None)
    tensors = dump(random_backbone(), layout)
    key = "pos_embed" if name == "official" else POSITIONS
    rows = tensors[key].reshape(4, 4, 16)
    tensors[key] = rows.transpose(1, 0, 2).reshape(1, 16, 16)  # rows for columns
    with pytest.raises(ValueError, match=f"{key} must equal the table.*differs by"):
        fill(abstract(TINY), layout, in_memory(tensors), "x")
    tensors[key] = np.full((1, 16, 16), np.nan, np.float32)
    with pytest.raises(ValueError, match="must equal the table"):
        fill(abstract(TINY), layout, in_memory(tensors), "x")


def test_table_of_positions_in_half_precision_is_rounded():
    layout = official_table(TINY)
    tensors = dump(random_backbone(), layout)
    tensors["pos_embed"] = tensors["pos_embed"].astype(jnp.bfloat16)
    fill(abstract(TINY), layout, in_memory(tensors), "x")


@pytest.mark.parametrize(
    "name",
    [
        "timestep_embedder.linear_1.weight",
        "timestep_embedder.linear_2.bias",
        "class_embedder.embedding_table.weight",
    ],
)
def test_copies_of_embeddings_must_be_equal(name):
    layout = diffusers_table(TINY)
    tensors = dump(random_backbone(), layout)
    key = f"transformer_blocks.3.norm1.emb.{name}"
    tensors[key].reshape(-1)[-1] += 1e-5
    with pytest.raises(ValueError, match=f"{key} must equal transformer_blocks.0.*a c"):
        fill(abstract(TINY), layout, in_memory(tensors), "x")


def test_faulty_tables_are_noticed():
    model = abstract(TINY)
    layout = native_table(model)
    stored = in_memory(dump(random_backbone(), layout))
    wrong = Table({n: e for n, e in layout.entries.items() if n != "labels"})
    stored_without = {n: t for n, t in stored.items() if n != "labels"}
    with pytest.raises(ValueError, match="disagree on .*labels"):
        fill(model, wrong, stored_without, "x")
    flat = Entry(((Source("labels", (6, 16), np.ravel, np.ravel),),))
    wrong = Table({**layout.entries, "labels": flat})
    with pytest.raises(ValueError, match=r"gives \(96,\) where \(6, 16\) is needed"):
        fill(model, wrong, stored, "x")
    assert copied("labels", (6, 16)).rows[0][0].shape == (6, 16)


# --- configurations of diffusers


@CONFIGS
def test_configurations_come_back(config):
    assert config_from_diffusers(config_to_diffusers(config)) == config


def test_published_configuration_of_the_older_class():
    """The fields of facebook/DiT-XL-2-256, with those of the class it had in 2022."""
    fields = {
        "_class_name": "Transformer2DModel",
        "_diffusers_version": "0.12.0.dev0",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": 72,
        "cross_attention_dim": None,
        "dropout": 0.0,
        "in_channels": 4,
        "norm_elementwise_affine": False,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": 16,
        "num_embeds_ada_norm": 1000,
        "num_layers": 28,
        "num_vector_embeds": None,
        "only_cross_attention": False,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": 32,
        "upcast_attention": False,
        "use_linear_projection": False,
    }
    assert config_from_diffusers(fields) == DiTConfig.named("DiT-XL/2")
    assert not config_from_diffusers(fields | {"out_channels": None}).learn_sigma


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"_class_name": "AutoencoderKL"}, "_class_name must be 'DiTTransformer2D"),
        ({"norm_type": "ada_norm_single"}, "norm_type must be 'ada_norm_zero', got"),
        ({"activation_fn": "geglu"}, "activation_fn must be 'gelu-approximate'"),
        ({"attention_bias": False}, "attention_bias must be True, got False"),
        ({"cross_attention_dim": 768}, "cross_attention_dim must be None, got 768"),
        ({"only_cross_attention": True}, "only_cross_attention must be False"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine must be False"),
        ({"norm_eps": 1e-3}, "norm_eps must be 1e-05 or 1e-06, got 0.001"),
        ({"dropout": 0.1}, "dropout must be 0.0, got 0.1"),
        ({"interpolation_scale": 2}, "interpolation_scale must be 1.0, got 2"),
        ({"caption_channels": 4096}, "caption_channels"),
        ({"qk_norm": "rms_norm"}, "has qk_norm = 'rms_norm', which no DiT has"),
        ({"out_channels": 3}, "out_channels must be in_channels=2.*got 3"),
        ({"num_layers": None}, "must have num_layers"),
        ({"sample_size": [8, 8]}, "input_size must be a whole number"),
        ({"attention_head_dim": 9}, "width must be a multiple"),
        ({"_gmm_guidance": {"process": "edm"}}, "a process must have a name"),
    ],
)
def test_configurations_that_are_not_ours(changes, message):
    fields = config_to_diffusers(TINY) | changes
    with pytest.raises(ValueError, match=message):
        config_from_diffusers(fields)


def test_harmless_fields_are_passed_over():
    fields = config_to_diffusers(TINY)
    more = {"_name_or_path": "somewhere", "upcast_attention": True, "new_field": None}
    assert config_from_diffusers(fields | more) == TINY
    assert config_from_diffusers(fields | {"norm_eps": 1e-5}) == TINY
    del fields["norm_eps"], fields["dropout"], fields["_gmm_guidance"]
    assert config_from_diffusers(fields) == TINY


def test_mlp_ratio_cannot_be_told_to_diffusers():
    with pytest.raises(ValueError, match="mlp_ratio must be 4 in diffusers, got 2"):
        config_to_diffusers(dataclasses.replace(TINY, mlp_ratio=2))


# --- shapes from tensors


@CONFIGS
@pytest.mark.parametrize("ratio", [4.0, 2.7])
def test_shape_is_inferred(config, ratio):
    config = dataclasses.replace(config, mlp_ratio=ratio)
    layout = official_table(config)
    tensors = {n: np.empty(s, np.float32) for n, s in layout.shapes().items()}
    fields = infer_official(in_memory(tensors))
    guess = dataclasses.replace(config, **fields)
    assert guess.mlp_width == config.mlp_width
    assert dataclasses.replace(guess, mlp_ratio=ratio) == config
    assert {"num_heads", "process"}.isdisjoint(fields)


def test_ratios_round_down_to_the_width_they_come_from():
    for inner in (12, 20, 384, 1152):
        for outer in range(1, 6 * inner, 7):
            shape = StoredTensor((outer, inner), "F32", lambda: np.empty(0))
            ratio = infer_official({"blocks.0.mlp.fc1.weight": shape})["mlp_ratio"]
            assert int(inner * ratio) == outer
