"""DiT and SiT against diffusers: outputs, dropped blocks, gradients, its own files."""

import copy
import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch_dit
from oracles.dit_values import drop_blocks, predictions, relative_error
from support.optional import Lazy, needs
from support.trees import assert_same_trees

import gmm_guidance as gg
from full_models import DiTConfig, export_weights, load_weights
from full_models.models.dit.config import DIT, SIT
from full_models.models.dit.weights import official_table
from full_models.weights.table import dump

torch = Lazy("torch")

# The golden files test the same in the everyday command.
pytestmark = [pytest.mark.ci, needs("torch", "diffusers")]
FAMILIES = {"ddpm": DIT, "flow": SIT}
TOLERANCE = 1e-5
STEPS = np.array([0, 1, 250, 999])
TIMES = np.array([0.01, 0.25, 0.5, 0.99], np.float32)


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("diffusers")


@pytest.fixture(scope="module", params=torch_dit.CONFIGS)
def saved(request, folder):
    """A network of diffusers, and the folder it wrote."""
    model = torch_dit.make(**torch_dit.CONFIGS[request.param])
    model.save_pretrained(folder / request.param)
    return model, folder / request.param


@pytest.fixture(scope="module")
def small():
    return torch_dit.make(**torch_dit.CONFIGS["small"])


@pytest.fixture(scope="module")
def small_folder(small, folder):
    small.save_pretrained(folder / "small-too")
    return folder / "small-too"


def inputs(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    c = model.config
    shape = (4, c.in_channels, c.sample_size, c.sample_size)
    x = torch.randn(shape, generator=generator)
    return x, torch.tensor([0, 3, c.num_embeds_ada_norm, 9])


def sample(model, x, times, labels):
    with torch.no_grad():
        return model(x, torch.tensor(times), labels).sample.numpy()


@pytest.mark.parametrize("process, times", [("ddpm", STEPS), ("flow", TIMES)])
def test_outputs(saved, process, times):
    model, path = saved
    network = load_weights(path)
    assert network.config.process == gg.DDPM(integer_times=True)
    if process == "flow":
        config = dataclasses.replace(network.config, **SIT)
        network = load_weights(path, config)
    x, labels = inputs(model)
    expected = sample(model, x, times, labels)
    found = predictions(network, x, times, labels)
    assert relative_error(found, expected) < TOLERANCE
    # The error would be as large as the values with diffusers' own time features.
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 1
    if process == "ddpm":
        assert relative_error(sample(model, x, times, labels), expected) > 0.01
    torch_dit.as_published(model)


def test_null_label_is_no_label(small, small_folder):
    network = load_weights(small_folder)
    x, _ = inputs(small)
    null = torch.full((4,), small.config.num_embeds_ada_norm)
    expected = sample(small, x, STEPS, null)
    assert relative_error(predictions(network, x, STEPS, null), expected) < TOLERANCE
    assert relative_error(predictions(network, x, STEPS, None), expected) < TOLERANCE


@pytest.mark.parametrize("dropped", [(1,), (0,), (0, 2), (1, 2)])
@pytest.mark.parametrize(
    "process, times",
    [("ddpm", np.array([150, 400, 700, 999])), ("flow", TIMES[[0, 1, 2, 2]])],
)
def test_dropped_blocks(small, small_folder, process, times, dropped):
    config = DiTConfig(
        input_size=8, width=16, depth=3, num_heads=2, num_labels=10, **FAMILIES[process]
    )
    network = load_weights(small_folder, config)
    x, labels = inputs(small)
    padded = jnp.array([*dropped, 3][:2], jnp.int32)
    full, weak = drop_blocks(network, x, times, labels, padded)
    expected = sample(small, x, times, labels)[:, :4]
    assert relative_error(full, expected) < TOLERANCE
    smaller = torch_dit.without_blocks(small, dropped)
    expected = sample(smaller, x, times, labels)[:, :4]
    assert relative_error(weak, expected) < TOLERANCE


class _Values:
    """Attention of diffusers with the identity as its map."""

    def __call__(self, layer, hidden_states, *args, **options):
        return layer.to_out[1](layer.to_out[0](layer.to_v(hidden_states)))


def zero(*parameters):
    for parameter in parameters:
        parameter.zero_()


EDITS = {
    "identity": lambda block: block.attn1.set_processor(_Values()),
    "temper": lambda block: zero(*block.attn1.to_q.parameters()),
    "drop_attention": lambda block: zero(*block.attn1.to_out[0].parameters()),
    "drop_mlp": lambda block: zero(*block.ff.net[2].parameters()),
}


@pytest.mark.parametrize("kind", EDITS)
def test_perturbed_blocks_are_those_of_a_network_edited_by_hand(
    small, small_folder, kind
):
    """Not those of diffusers' own hooks, of which some are no removal."""
    network = load_weights(small_folder)
    x, labels = inputs(small)
    times = np.array([150, 400, 700, 999])
    blocks = jnp.array([1, 2], jnp.int32)
    full, weak = drop_blocks(network, x, times, labels, blocks, kind)
    expected = sample(small, x, times, labels)[:, :4]
    assert relative_error(full, expected) < TOLERANCE
    edited = copy.deepcopy(small)
    with torch.no_grad():
        for block in edited.transformer_blocks[1:]:
            EDITS[kind](block)
    expected = sample(edited, x, times, labels)[:, :4]
    assert relative_error(weak, expected) < TOLERANCE
    assert relative_error(weak, full) > 1e-3


@pytest.mark.slow  # those of the golden files are checked every day
@pytest.mark.parametrize("remat", [False, True])
def test_gradients_of_all_parameters(small, small_folder, remat):
    config = dataclasses.replace(load_weights(small_folder).config, remat=remat)
    network = load_weights(small_folder, config)
    x, labels = inputs(small)
    weights = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    small.zero_grad()
    (small(x, torch.tensor(STEPS), labels).sample * weights).sum().backward()
    expected = torch_dit.official_state(
        small, {n: p.grad for n, p in small.named_parameters()}
    )

    def loss(network):
        return jnp.sum(predictions(network, x, STEPS, labels) * weights.numpy())

    gradients = jax.jit(jax.grad(loss))(network).backbone
    gradients = dump(gradients, official_table(config))
    assert gradients.keys() == expected.keys()
    for name in gradients.keys() - {"pos_embed"}:
        assert relative_error(gradients[name], expected[name]) < 1e-4, name


# --- files


def test_official_file_of_torch(small, small_folder, tmp_path):
    """Its table of positions is the one that diffusers computed."""
    network = load_weights(small_folder)
    state = torch_dit.official_state(small)
    torch.save(state, tmp_path / "official.pt")
    assert_same_trees(load_weights(tmp_path / "official.pt", network.config), network)
    wrapped = {f"module.{name}": t for name, t in state.items()}
    torch.save({"ema": wrapped, "epoch": 3}, tmp_path / "ema.pt")
    assert_same_trees(load_weights(tmp_path / "ema.pt", network.config), network)
    export_weights(network, tmp_path / "ours.safetensors", "official")
    ours = load_weights(tmp_path / "ours.safetensors")
    assert_same_trees(ours, network)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_types(small, small_folder, tmp_path, dtype):
    state = torch_dit.official_state(small)
    kind = getattr(torch, dtype)
    torch.save({n: t.to(kind) for n, t in state.items()}, tmp_path / "a.pt")
    config = load_weights(small_folder).config
    found = dump(
        load_weights(tmp_path / "a.pt", config).backbone, official_table(config)
    )
    for name in state.keys() - {"pos_embed"}:
        np.testing.assert_array_equal(found[name], state[name].to(kind).float())
    narrow = load_weights(tmp_path / "a.pt", config, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype("bfloat16")}


def test_tensors_that_are_views(small, small_folder, tmp_path):
    """All in one storage, half of them transposed in it."""
    state = torch_dit.official_state(small)
    storage = torch.zeros(sum(t.numel() for t in state.values()) + 5)
    start, views = 5, {}
    for i, (name, tensor) in enumerate(state.items()):
        part = storage[start : start + tensor.numel()]
        start += tensor.numel()
        if i % 2 and tensor.ndim == 2:
            views[name] = part.view(tensor.T.shape).T
        else:
            views[name] = part.view(tensor.shape)
        views[name].copy_(tensor)
    torch.save(views, tmp_path / "views.pt")
    network = load_weights(small_folder)
    assert len({v.untyped_storage().data_ptr() for v in views.values()}) == 1
    assert not all(v.is_contiguous() for v in views.values())
    assert_same_trees(load_weights(tmp_path / "views.pt", network.config), network)


def test_diffusers_in_parts_in_a_pipeline_and_as_pickle(small, small_folder, tmp_path):
    network = load_weights(small_folder)
    small.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 3
    assert_same_trees(load_weights(tmp_path / "parts"), network)
    index = tmp_path / "parts" / "diffusion_pytorch_model.safetensors.index.json"
    assert_same_trees(load_weights(index), network)
    small.save_pretrained(tmp_path / "pipeline" / "transformer")
    assert_same_trees(load_weights(tmp_path / "pipeline"), network)
    small.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    assert not list((tmp_path / "pickle").glob("*.safetensors"))
    assert_same_trees(load_weights(tmp_path / "pickle"), network)
    part = next((tmp_path / "parts").glob("*-00002-of-*"))
    part.unlink()
    with pytest.raises(FileNotFoundError, match=part.name):
        load_weights(tmp_path / "parts")


def test_shared_embedders_saved_once_are_missing_not_guessed(small, tmp_path):
    """Tied copies are written once by safetensors; the file is then incomplete."""
    state = {n: t for n, t in small.state_dict().items() if ".1.norm1.emb." not in n}
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    small.save_config(tmp_path)
    with pytest.raises(ValueError, match="missing: transformer_blocks.1.norm1.emb"):
        load_weights(tmp_path)


@pytest.mark.parametrize("process", ["ddpm", "flow"])
def test_diffusers_loads_what_is_exported(small, small_folder, tmp_path, process):
    """Without a word, with equal values, and back again."""
    import diffusers

    config = dataclasses.replace(load_weights(small_folder).config, **FAMILIES[process])
    network = load_weights(small_folder, config)
    export_weights(network, tmp_path / "ours")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "ours")
    assert not [w for w in said if "config" in str(w.message)]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name])
    assert model.config.norm_eps == 1e-6
    model.save_pretrained(tmp_path / "theirs")
    fields = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert fields["_gmm_guidance"]["process"]["name"] == config.process.name
    for name in ("ours", "theirs"):
        assert_same_trees(load_weights(tmp_path / name), network)
    x, labels = inputs(small)
    times = STEPS if process == "ddpm" else TIMES
    expected = sample(torch_dit.as_published(model), x, times, labels)
    found = predictions(network, x, times, labels)
    assert relative_error(found, expected) < TOLERANCE


def test_exported_official_file_loads_into_torch(small, small_folder, tmp_path):
    import safetensors.torch

    network = load_weights(small_folder)
    path = export_weights(network, tmp_path / "a.safetensors", "official", "bfloat16")
    tensors = safetensors.torch.load_file(path)
    for name, tensor in torch_dit.official_state(small).items():
        if name != "pos_embed":
            assert torch.equal(tensors[name], tensor.bfloat16())
