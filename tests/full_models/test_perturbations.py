"""Perturbed blocks of SD3, Flux and Wan against blocks of diffusers edited by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import torch_joint
from oracles.joint_values import opened, relative_error

from full_models import SD3, Flux, FluxConfig, Prompts, SD3Config, Wan, WanConfig
from gmm_guidance import Pass, Perturbation, evaluate_passes
from gmm_guidance.blocks.perturbation import (
    CROSS_KINDS,
    JOINT_KINDS,
    BlockPerturbation,
)

pytestmark = pytest.mark.ci
TIMES, LABEL = torch_joint.TIMES, jnp.arange(2)
TOLERANCE = 4e-6


@pytest.fixture(scope="module", params=["SD3.5-medium", "dev", "Wan"])
def pair(request, tmp_path_factory):
    """Ours, and a function of a block and a kind to the output of diffusers' model."""
    pytest.importorskip("torch", reason="needs the oracle extra: torch")
    pytest.importorskip("diffusers", reason="needs the oracle extra: diffusers")
    from oracles import torch_perturbed

    folder = tmp_path_factory.mktemp("diffusers")
    make = _wan if request.param == "Wan" else _joint
    model, stack, x, wanted = make(folder, request.param)
    tokens = stack.backbone.config.num_tokens

    def output(block, kind):
        with torch_perturbed.perturbed(model, block, kind, tokens):
            return wanted()

    return stack, x, output


def _joint(folder, name):
    model = torch_joint.make(name)
    model.save_pretrained(folder)
    given = torch_joint.inputs(model.config)
    context, pooled = given["context"], given["pooled"]
    prompts = Prompts(context[:2], context[2], pooled[:2], pooled[2])
    stack = opened(folder, name).with_prompts(prompts)
    guidance = torch_joint.GUIDANCE if name == "dev" else None

    def wanted():
        found = torch_joint.velocity(
            model, given["x"], TIMES, context[:2], pooled[:2], guidance
        )
        return found.transpose(0, 2, 3, 1)

    return model, stack, jnp.asarray(given["x"].transpose(0, 2, 3, 1)), wanted


def _wan(folder, name):
    import dataclasses

    import torch
    from oracles import wans

    from full_models.weights.load import open_checkpoint

    model = wans.transformer()
    model.save_pretrained(folder)
    prompts = wans.prompts()
    checkpoint = open_checkpoint(folder)
    config = dataclasses.replace(checkpoint.config, latent_shape=(2, 4, 6))
    loaded = dataclasses.replace(checkpoint, config=config).load()
    stack = loaded.with_prompts(prompts)
    x = np.random.default_rng(3).normal(size=(2, 2, 4, 6, 4)).astype(np.float32)

    def wanted():
        with torch.no_grad():
            found = model(
                torch.tensor(x.transpose(0, 4, 1, 2, 3)),
                torch.tensor(np.floor(1000.0 * TIMES)),
                wans.padded(prompts.context),
                return_dict=False,
            )[0]
        return found.numpy().transpose(0, 2, 3, 4, 1)

    return model, stack, jnp.asarray(x), wanted


def predictions(backbone, x, perturbed, kind, **given):
    """What the network predicts with one block perturbed."""
    hidden, context = backbone.embed(x, jnp.asarray(TIMES), LABEL)
    number = 0
    segments = getattr(backbone, "segments", None) or (backbone.num_blocks,)
    for segment, size in enumerate(segments):
        for index in range(size):
            perturb = BlockPerturbation(kind, **given) if number == perturbed else None
            hidden = backbone.segment_block(segment, index, hidden, context, perturb)
            number += 1
    return backbone.readout(hidden, context)


def test_every_kind_in_every_segment(pair):
    stack, x, output = pair
    backbone = stack.backbone
    kinds = backbone.perturbations - {"grid_blur", "shuffle"}
    full = np.asarray(predictions(backbone, x, None, "drop"))
    with jax.default_matmul_precision("highest"):
        for block in {3: (0, 1, 2), 5: (1, 3)}[backbone.num_blocks]:
            for kind in sorted(kinds):
                found = predictions(backbone, x, block, kind)
                wanted = output(block, kind)
                error = relative_error(found, wanted)
                assert error < TOLERANCE, (block, kind, error)
                is_last = block == backbone.num_blocks - 1
                assert relative_error(wanted, full) > 1e-4 or is_last, (block, kind)


def test_a_soft_perturbation_starts_at_the_conditional_pass(pair):
    """Bit for bit at its off value; at 1 it is the full perturbation."""
    stack, x, _ = pair
    kinds = ["drop_attention", "drop_mlp", "identity", "blur"]
    kinds += sorted(stack.backbone.perturbations & {"identity_image", "drop_cross"})
    last = stack.num_blocks - 1
    sigma = jnp.asarray(TIMES / (1.0 - TIMES))  # of a rectified flow
    time = TIMES.reshape(-1, *(1,) * (x.ndim - 1))

    @jax.jit
    def run(x, amount):
        blocks = jnp.array([last])
        weak = {k: Pass(LABEL, perturb=Perturbation(k, blocks, amount)) for k in kinds}
        return evaluate_passes(stack, x, sigma, {"cond": Pass(LABEL)} | weak)

    off, on = run(x, jnp.float32(0.0)), run(x, jnp.float32(1.0))
    cond = off.pop("cond")
    for kind, row in off.items():
        np.testing.assert_array_equal(row, cond, err_msg=kind)
        full = predictions(stack.backbone, (1.0 - time) * x, last, kind)
        wanted = (1.0 - time) * x - time * full
        assert relative_error(on[kind], wanted) < 1e-5, kind


@pytest.mark.parametrize(
    "make, config",
    [
        (SD3, SD3Config.named("SD3.5-medium", input_size=(32, 32), depth=26)),
        (Flux, FluxConfig.named("Flux.1-dev", input_size=(32, 32))),
        (Wan, WanConfig.named("Wan2.1-1.3B", latent_shape=(3, 16, 16))),
    ],
)
def test_what_a_kind_saves_is_what_xla_counts(make, config):
    backbone = jax.eval_shape(lambda: make(config, rngs=nnx.Rngs(0)))
    assert backbone.perturbations == (CROSS_KINDS if make is Wan else JOINT_KINDS)
    width, image = config.width, config.num_tokens
    text = {SD3: 333, Flux: 512, Wan: 512}[make]
    shapes = {
        SD3: ([(image, width), (text, width)], (width,)),
        Flux: ((text + image, width), (width,)),
        Wan: ((image, width), [(text, width), (6, width), (width,)]),
    }[make]
    hidden, context = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct((1, *shape), jnp.float32),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple) and isinstance(s[0], int),
    )

    def count(segment, kind=None):
        def run(backbone, hidden, context):
            perturb = None if kind is None else BlockPerturbation(kind)
            return backbone.segment_block(segment, 0, hidden, context, perturb)

        lowered = jax.jit(run).lower(backbone, hidden, context)
        return lowered.cost_analysis()["flops"]

    first = 0
    for segment, size in enumerate(
        getattr(backbone, "segments", (backbone.num_blocks,))
    ):
        whole = count(segment)
        for kind, saved in backbone.perturbation_savings.items():
            fraction = np.broadcast_to(saved, backbone.num_blocks)[first]
            found = 1.0 - count(segment, kind) / whole
            # Norms, softmax and modulation are not counted; text stays to be read.
            tolerance = 0.05 if kind == "identity_image" else 0.02
            assert found == pytest.approx(fraction, abs=tolerance), (segment, kind)
        first += size
