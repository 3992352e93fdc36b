"""SD3 and Flux sampled: noise levels, S² against removed blocks, prompts, commands."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import gmm_guidance as gg
from full_models import (
    SD3,
    FluxConfig,
    Prompts,
    SD3Config,
    as_stack,
    export_weights,
    flux_schedule,
    load_prompts,
    sd3_schedule,
)
from full_models.cli import main

TINY = SD3Config(
    input_size=(4, 6),
    in_channels=2,
    width=16,
    depth=3,
    num_heads=2,
    text_width=12,
    pooled_width=10,
    qk_norm=True,
    num_dual=1,
    table_size=6,
)


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(lambda: SD3(TINY, rngs=nnx.Rngs(0)))
    return jax.tree.map(
        lambda a: jnp.asarray(0.15 * rng.normal(size=a.shape), a.dtype), abstract
    )


def some_prompts(count=2, **changes):
    rng = np.random.default_rng(1)
    arrays = dict(
        context=rng.normal(size=(count, 5, 12)),
        negative_context=rng.normal(size=(5, 12)),
        pooled=rng.normal(size=(count, 10)),
        negative_pooled=rng.normal(size=10),
    )
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return Prompts(**arrays | changes)


def test_noise_levels():
    times = sd3_schedule(28).sigmas()
    times = times / (1.0 + times)
    wanted = [1, 0.98738, 0.97411]
    np.testing.assert_allclose(times[:3], wanted, atol=1e-5)
    np.testing.assert_allclose(times[-4:], [0.19983, 0.11091, 0.00893, 0], atol=1e-5)
    times = flux_schedule(28, 4096).times()
    np.testing.assert_allclose(times[:3], [1, 0.98841, 0.97622], atol=1e-5)
    np.testing.assert_allclose(times[-3:], [0.19545, 0.10472, 0], atol=1e-5)
    np.testing.assert_allclose(
        flux_schedule(4).times(), [1, 0.75, 0.5, 0.25, 0], atol=1e-6
    )
    shift = flux_schedule(3, 1024).shift
    assert math.isclose(math.log(shift), 0.63, rel_tol=1e-9)


def test_defaults_of_the_family():
    assert SD3Config.named("SD3.5-medium").num_dual == 13
    dev = FluxConfig.named("Flux.1-dev")
    from full_models.models.flux.pipeline import FluxPipeline

    assert FluxPipeline(dev).defaults.cfg_scale == 1.0
    schnell = FluxPipeline(dataclasses.replace(dev, variant="schnell"))
    assert schnell.defaults.steps == 4
    levels = schnell.schedule(4).times()
    np.testing.assert_allclose(levels, [1, 0.75, 0.5, 0.25, 0], atol=1e-6)


def test_s2_equals_separate_passes_of_fewer_blocks(network):
    """The rule by hand, from networks without each block; CFG 3, weight 0.5."""
    model = as_stack(network).with_prompts(some_prompts())
    key = jax.random.key(3)
    rule = gg.S2Guidance(3.0, 0.5, window=(0.0, 1.0))
    x = 2.0 * jax.random.normal(key, (2, 4, 6, 2))
    found = jax.jit(
        lambda model, x: gg.guided_denoise(model, rule, x, 2.0, jnp.arange(2), key=key)
    )(model, x)

    @jax.jit
    def value(model, x, label, drop):
        hidden, context = model.embed(x, jnp.full(2, 2.0), label)
        for index in range(3):
            new = model.block(index, hidden, context)
            hidden = jax.tree.map(
                lambda a, b, i=index: jnp.where(drop == i, a, b), hidden, new
            )
        return model.readout(hidden, context, x, jnp.full(2, 2.0))

    label = jnp.arange(2)
    uncond, cond = value(model, x, None, -1), value(model, x, label, -1)
    guided = [
        uncond + 3.0 * (cond - uncond) + 0.5 * (cond - value(model, x, label, block))
        for block in (1, 2)
    ]
    errors = [
        min(float(jnp.abs(found[i] - g[i]).max()) for g in guided) for i in range(2)
    ]
    assert max(errors) < 1e-5
    assert float(jnp.abs(guided[0] - guided[1]).max()) > 1e-3


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(family="flux1"), "embedded for sd3, got those of flux1"),
        (dict(context=np.ones((2, 5, 7))), r"context must have shape \[N, S, 12\]"),
        (dict(negative_context=np.ones((4, 12))), "with the same lengths"),
        (dict(pooled=None), "must have pooled"),
        (dict(pooled=np.zeros((2, 10))), "zeros for pooled of 0"),
        (dict(context=np.full((2, 5, 12), np.nan)), "must be finite"),
    ],
)
def test_unfit_prompts(network, changes, message):
    with pytest.raises(ValueError, match=message):
        as_stack(network).with_prompts(some_prompts(**changes))
    with pytest.raises(ValueError, match="numbers of prompts must agree"):
        some_prompts(pooled=np.ones((3, 10)))


@pytest.mark.parametrize("size", [(100, 64), (64, 8)])
def test_unfit_sizes(size):
    with pytest.raises(ValueError, match="must be a multiple of 16 pixels.*use"):
        TINY.for_image(*size)


def prompts_file(path, family="sd3", rows=3, **metadata):
    rng = np.random.default_rng(2)
    shapes = dict(t5=(2, 12), clip=(3, 7), pooled=(10,))
    tensors = {
        f"{start}{name}": rng.normal(size=(n, *shape)).astype(np.float32)
        for name, shape in shapes.items()
        for start, n in (("", rows), ("negative.", 1))
    }
    said = dict(kind="full_models prompts", version="1", family=family)
    said |= dict(prompts=json.dumps(["a", "b", "c"]), ids=json.dumps(["0", "1", "2"]))
    safetensors.numpy.save_file(tensors, path, said | metadata)
    return tensors


def test_files_of_prompts(tmp_path):
    path = tmp_path / "prompts.safetensors"
    tensors = prompts_file(path)
    found = load_prompts(path)
    assert found.context.shape == (3, 5, 12) and found.texts == ("a", "b", "c")
    np.testing.assert_array_equal(found.context[:, :3, :7], tensors["clip"])
    assert not found.context[:, :3, 7:].any()
    np.testing.assert_array_equal(found.context[:, 3:], tensors["t5"])
    prompts_file(path, rows=2)
    with pytest.raises(ValueError, match="3 rows of .*one for each prompt, got 2"):
        load_prompts(path)
    prompts_file(path, version="9")
    with pytest.raises(ValueError, match="of version 1"):
        load_prompts(path)
    with pytest.raises(FileNotFoundError):
        load_prompts(tmp_path / "none")


@pytest.mark.ci
def test_sample_with_prompts(tmp_path, network, capsys):
    weights = export_weights(network, tmp_path / "weights")
    prompts_file(tmp_path / "p.safetensors")
    given = ["sample", "--weights", str(weights), "--num", "3", "--steps", "3"]
    given += ["--size", "48x32", "--batch-size", "3"]
    prompts = ["--prompts", str(tmp_path / "p.safetensors")]
    assert main([*given, *prompts, "--out", str(tmp_path / "out")]) == 0
    with np.load(tmp_path / "out" / "samples.npz") as file:
        assert file["samples"].shape == (3, 4, 6, 2)
        assert np.isfinite(file["samples"]).all()
        np.testing.assert_array_equal(file["labels"], [0, 1, 2])
    assert main([*given, "--out", str(tmp_path / "b")]) != 0
    assert "needs --prompts" in capsys.readouterr().err
    assert main([*given, *prompts, "--labels", "3", "--out", str(tmp_path / "c")]) != 0
    assert "use --prompts" in capsys.readouterr().err
