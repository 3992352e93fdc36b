"""Wan against diffusers: the network, dropped blocks, layouts and noise levels."""

import dataclasses
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from support.trees import assert_same_trees

import gmm_guidance as gg
from full_models import Wan, WanConfig, export_weights, load_weights, wan_schedule
from full_models.models.family import as_stack
from full_models.models.wan.layers import axis_tables
from full_models.models.wan.weights import table_of
from full_models.weights.table import dump

SHAPE = (3, 4, 6)
TINY = WanConfig(
    latent_shape=SHAPE,
    in_channels=4,
    width=32,
    depth=3,
    num_heads=2,
    mlp_width=48,
    text_width=20,
    text_length=16,
)


class Prompts(NamedTuple):
    context: np.ndarray
    negative_context: np.ndarray


@pytest.fixture(scope="module")
def network():
    """Random values in every parameter, biases and norms as well."""
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(lambda: Wan(TINY, rngs=nnx.Rngs(0)))
    return jax.tree.map(
        lambda a: jnp.asarray(0.15 * rng.normal(size=a.shape), jnp.float32), abstract
    )


@pytest.fixture(scope="module")
def prompts():
    context = np.random.default_rng(1).normal(size=(3, 5, 20)).astype(np.float32)
    return Prompts(context[:2], context[2])


def relative_error(found, wanted):
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


# --- sizes


@pytest.mark.parametrize(
    "name, count", [("Wan2.1-1.3B", 1_418_996_800), ("Wan2.1-14B", 14_288_491_584)]
)
def test_sizes_of_the_published_models(name, count):
    config = WanConfig.named(name)
    network = jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(network)) == count
    assert config.num_tokens == 32_760
    assert config.for_video(81, 720, 1280).num_tokens == 75_600
    assert (
        len(table_of("official", config).shapes()) == {30: 825, 40: 1095}[config.depth]
    )


@pytest.mark.parametrize(
    "size, message",
    [
        ((80, 480, 832), "frames must be 4 k . 1, got 80; use 77 or 81"),
        ((81, 480, 830), "width must be a multiple of 16 pixels, got 830; use 816 or"),
        ((81, 0, 832), "height must be a multiple of 16 pixels, got 0; use 16 or 32"),
    ],
)
def test_bad_sizes(size, message):
    with pytest.raises(ValueError, match=message):
        WanConfig().for_video(*size)


def test_positions_have_a_third_of_the_pairs_for_rows_and_columns():
    assert [t.shape for t in axis_tables((21, 30, 52), 128)] == [
        (2, 21, 22),
        (2, 30, 21),
        (2, 52, 21),
    ]


# --- prompts


def test_prompts_are_labels(network, prompts):
    stack = as_stack(network)
    x = jax.random.normal(jax.random.key(0), (2, *SHAPE, 4))
    with pytest.raises(ValueError, match=r"no prompts yet; use model\.with_prompts"):
        stack(x, 1.0)
    bound = stack.with_prompts(prompts)
    assert bound.num_labels == 2 and bound.pipeline.condition == "prompts"
    # No label is the negative prompt, and padding with zeros changes nothing.
    as_label = Prompts(
        np.pad(prompts.negative_context, ((0, 4), (0, 0)))[None],
        prompts.negative_context,
    )
    other = stack.with_prompts(as_label)
    evaluate = jax.jit(lambda model, label: model(x, 1.0, label))
    negative = evaluate(bound, None)
    np.testing.assert_array_equal(evaluate(other, jnp.zeros(2, jnp.int32)), negative)
    assert np.abs(evaluate(bound, jnp.zeros(2, jnp.int32)) - negative).max() > 1e-3


@pytest.mark.parametrize(
    "context, negative, message",
    [
        ((2, 5, 19), (5, 20), r"^context must .*\[N, up to 16, 20\], got \(2, 5, 19\)"),
        ((2, 17, 20), (5, 20), r"^context must .*got \(2, 17, 20\)"),
        ((2, 5, 20), (1, 5, 20), r"^negative_context must .*\[up to 16, 20\], got"),
    ],
)
def test_bad_prompts(network, context, negative, message):
    with pytest.raises(ValueError, match=message):
        network.with_prompts(Prompts(np.zeros(context), np.zeros(negative)))
    if negative == (5, 20):
        return
    with pytest.raises(ValueError, match="prompts must be finite"):
        network.with_prompts(Prompts(np.full((1, 2, 20), np.nan), np.ones((2, 20))))
    with pytest.raises(ValueError, match="zeros for the negative prompt"):
        network.with_prompts(Prompts(np.ones((1, 2, 20)), np.zeros((2, 20))))


# --- noise levels


def test_the_grid_of_wan_is_that_of_even_flow_steps():
    s = wan_schedule(50, 5.0).times()
    np.testing.assert_allclose(s[[0, 49]], [0.99980, 0.0925], atol=5e-5)
    assert wan_schedule(50, 5.0, "diffusers-0.36") == wan_schedule(50, 5.0)
    with pytest.raises(ValueError, match="grid must be one of wan, diffusers"):
        wan_schedule(50, 5.0, "euler")


@pytest.mark.ci  # diffusers is imported
@pytest.mark.parametrize("steps, shift", [(8, 3.0), (20, 5.0), (50, 8.0)])
def test_the_grid_of_diffusers(steps, shift):
    diffusers = pytest.importorskip("diffusers", reason="needs the oracle extra")
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(steps)
    sigmas = wan_schedule(steps, shift, "diffusers").sigmas()
    times = sigmas / (1 + sigmas)
    np.testing.assert_allclose(times, scheduler.sigmas, atol=1e-6)
    # What the network is told, from levels in float32.
    time = gg.RectifiedFlow().time(jnp.asarray(sigmas[:-1], jnp.float32))
    np.testing.assert_array_equal(jnp.floor(1000 * time), scheduler.timesteps)


# --- weights


def test_both_layouts_hold_the_same_parameters(tmp_path, network):
    for layout in ("diffusers", "official"):
        written = export_weights(network, tmp_path / layout, layout)
        config = json.loads((written / "config.json").read_text())
        assert config["num_layers"] == 3
        assert_same_trees(load_weights(written, TINY).backbone, network)
    # A single file of another program, without a config.
    tensors = dump(network, table_of("official", TINY))
    prefixed = {f"model.diffusion_model.{n}": a for n, a in tensors.items()}
    path = tmp_path / "single.safetensors"
    safetensors.numpy.save_file(prefixed, path)
    assert_same_trees(load_weights(path, TINY).backbone, network)
    with pytest.raises(ValueError, match="depth is 3, expected 30|width is 32"):
        load_weights(path, "Wan2.1-1.3B")


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("img_emb.proj.0.weight", (4,), r"image to video \(I2V\); only text to video"),
        ("blocks.0.cross_attn.k_img.weight", (4,), "image to video"),
        ("vace_blocks.0.modulation", (4,), "of VACE"),
        ("patch_embedding.weight", (32, 36, 1, 2, 2), "needs the latents of an image"),
        ("patch_embedding.weight", (32, 48, 1, 2, 2), "Wan 2.2 TI2V-5B"),
    ],
)
def test_other_models_are_refused(tmp_path, network, name, shape, message):
    tensors = dump(network, table_of("official", TINY))
    tensors[name] = np.zeros(shape, np.float32)
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match=message):
        load_weights(path, TINY)


def test_configs_of_other_models_are_refused(tmp_path, network):
    path = export_weights(network, tmp_path / "a", "official")
    beside = path / "config.json"
    config = json.loads(beside.read_text())
    for change, message in (
        ({"model_type": "i2v"}, "the weights are of the type 'i2v'"),
        ({"eps": 1e-5}, "eps must be 1e-06, got 1e-05"),
        ({"freq_dim": 32}, "freq_dim must be 256"),
    ):
        beside.write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            load_weights(path, TINY)
    beside.write_text(json.dumps(config))
    (tmp_path / "transformer_2").mkdir()
    with pytest.raises(ValueError, match="one of the two networks of Wan 2.2"):
        load_weights(path, TINY)


# --- diffusers


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """diffusers' tiny transformer, ours of its folder with prompts, and those."""
    from oracles import wans

    theirs = wans.transformer()
    path = tmp_path_factory.mktemp("oracle") / "transformer"
    theirs.save_pretrained(path)
    config = dataclasses.replace(TINY, text_length=512)
    prompts = wans.prompts()
    return theirs, load_weights(path, config).with_prompts(prompts), prompts


def inputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, *SHAPE, 4)).astype(np.float32)


def velocity_of(model, x, step, context):
    from oracles import wans

    states = wans.torch.tensor(x).permute(0, 4, 1, 2, 3)
    steps = wans.torch.full((len(x),), step)
    with wans.torch.no_grad():
        output = model(states, steps, wans.padded(context)).sample
    return output.permute(0, 2, 3, 4, 1).numpy()


@pytest.mark.ci
@pytest.mark.parametrize("step", [20, 654, 999])
def test_velocity_is_that_of_diffusers(oracle, step):
    theirs, stack, prompts = oracle
    x, time = inputs(), (step + 0.7) / 1000  # is given to the network as ``step``
    predict = jax.jit(lambda network, *given: network.predict(*given))
    ours = predict(stack.backbone, x, jnp.full(2, time), jnp.arange(2))
    wanted = velocity_of(theirs, x, step, prompts.context)
    # Angles of the time are rounded by either code, to 3e-5 near 1000.
    assert relative_error(ours, wanted) < (5e-6 if step < 100 else 2e-5)


@pytest.mark.ci
@pytest.mark.parametrize("blocks", [(1,), (0, 2)])
def test_dropped_blocks_are_layers_that_diffusers_skips(oracle, blocks):
    from oracles import wans

    theirs, stack, prompts = oracle
    sigma = 2.0
    x = inputs() * (1 + sigma)

    @jax.jit
    def weak(stack):
        hidden, context = stack.embed(x, sigma, jnp.arange(2))
        for block in set(range(3)) - set(blocks):
            hidden = stack.block(block, hidden, context)
        return stack.readout(hidden, context, x, sigma)

    ours = weak(stack)
    with wans.skipped(theirs, blocks):
        velocity = velocity_of(theirs, x / (1 + sigma), 666, prompts.context)
    wanted = (x - sigma * velocity) / (1 + sigma)
    assert relative_error(ours, wanted) < 2e-5
    full = velocity_of(theirs, x / (1 + sigma), 666, prompts.context)
    assert relative_error(velocity, full) > 1e-2  # the hook acts


@pytest.mark.ci
def test_names_of_wan_ai(tmp_path, oracle):
    from oracles import wans

    theirs, stack, _ = oracle
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(wans.official_names(theirs.state_dict()), path)
    ours = load_weights(path, stack.config).backbone
    bound = stack.backbone
    for name in ("blocks", "text", "time", "final", "patches", "modulation"):
        assert_same_trees(getattr(ours, name), getattr(bound, name))


@pytest.mark.ci
def test_bf16_is_near_float32(oracle):
    """The residual stream stays float32: Wan's own run errs by 0.3 % as well."""
    _, stack, prompts = oracle
    leaves, structure = jax.tree.flatten(stack.backbone)
    network = jax.tree.unflatten(structure, leaves)
    config = dataclasses.replace(stack.config, compute_dtype="bfloat16")
    narrow = jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0)))
    network.prompts = None
    narrow = jax.tree.unflatten(jax.tree.structure(narrow), jax.tree.leaves(network))
    predict = jax.jit(lambda network, *given: network.predict(*given))
    given = inputs(), jnp.full(2, 0.5), jnp.arange(2)
    wide = predict(stack.backbone, *given)
    error = predict(narrow.with_prompts(prompts), *given) - wide
    assert 1e-5 < np.sqrt(np.mean(error**2) / np.mean(wide**2)) < 1e-2
