"""The VAE's decoder against diffusers, live and by golden files; its loading."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from support.trees import assert_same_trees

from full_models import KLConfig, KLDecoder, load_autoencoder
from full_models.generation.images import to_uint8
from full_models.models.autoencoder.weights import original_table

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "vae"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@jax.jit
def decode(decoder, latents):
    return decoder.decode(latents)


def golden():
    with np.load(GOLDEN / "images.npz") as file:
        return file["latents"], file["images"]


def relative_error(found, wanted):
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


@pytest.fixture(scope="module")
def decoder():
    return load_autoencoder(GOLDEN)


def test_golden_images(decoder):
    latents, images = golden()
    assert relative_error(decode(decoder, latents), images) < 1e-5


def test_size_of_stable_diffusions_decoder():
    decoder = jax.eval_shape(lambda: KLDecoder(KLConfig(), rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(decoder))
    assert count == 49_490_199  # 49.49 M, of which 20 in post_quant_conv
    latents = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32)
    assert jax.eval_shape(decode, decoder, latents).shape == (1, 256, 256, 3)


VARIANTS = {
    "deeper": dict(block_out_channels=(8, 16, 16), layers_per_block=2),
    "sd3": dict(
        latent_channels=16,
        use_post_quant_conv=False,
        use_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    ),
    "without attention": dict(mid_block_add_attention=False),
}


@pytest.mark.ci  # the golden images are tested by the everyday command
@pytest.mark.parametrize("name", VARIANTS)
def test_parity_with_diffusers(tmp_path, name):
    torch = pytest.importorskip("torch", reason="the oracle extra is not installed")
    diffusers = pytest.importorskip("diffusers", reason="needs the oracle extra")
    torch.manual_seed(1)
    options = {
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        **VARIANTS[name],
    }
    widths = options["block_out_channels"]
    model = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        **options,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.15 * torch.randn_like(parameter))
    # As a part of a pipeline's folder.
    model.save_pretrained(tmp_path / "vae")
    latents = torch.randn(2, options["latent_channels"], 4, 4)
    with torch.no_grad():
        shift = model.config.shift_factor or 0.0
        theirs = model.decode(latents / model.config.scaling_factor + shift).sample
    decoder = load_autoencoder(tmp_path)
    ours = decode(decoder, latents.permute(0, 2, 3, 1).numpy())
    assert relative_error(ours, theirs.permute(0, 2, 3, 1).numpy()) < 1e-5


def test_bf16_is_near_float32(decoder):
    latents, images = golden()
    narrow = load_autoencoder(GOLDEN, compute_dtype="bfloat16")
    error = relative_error(decode(narrow, latents), images)
    assert 1e-5 < error < 5e-2


def test_gradient_reaches_the_latents(decoder):
    latents, _ = golden()
    gradient = jax.jit(jax.grad(lambda z: jnp.mean(decoder.decode(z) ** 2)))(latents)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_bytes_of_images():
    values = np.array([-3.0, -1.0, 0.5, 1.0, 1.2])
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 191, 255, 255])


def rewritten(tmp_path, change):
    """The golden folder with its tensors changed."""
    shutil.copytree(GOLDEN, tmp_path / "vae")
    path = tmp_path / "vae" / WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)
    return tmp_path / "vae"


@pytest.mark.parametrize("as_convolutions", [True, False])
def test_older_names_of_attention(tmp_path, decoder, as_convolutions):
    def age(tensors):
        prefix = "decoder.mid_block.attentions.0."
        names = {"to_q": "query", "to_k": "key", "to_v": "value"}
        for new, old in {**names, "to_out.0": "proj_attn"}.items():
            kernel = tensors.pop(f"{prefix}{new}.weight")
            shape = (*kernel.shape, 1, 1) if as_convolutions else kernel.shape
            tensors[f"{prefix}{old}.weight"] = kernel.reshape(shape)
            tensors[f"{prefix}{old}.bias"] = tensors.pop(f"{prefix}{new}.bias")

    assert_same_trees(load_autoencoder(rewritten(tmp_path, age)), decoder)


def test_one_file_with_its_config_beside(tmp_path, decoder):
    folder = rewritten(tmp_path, lambda tensors: None)
    file = (folder / WEIGHTS).rename(folder / "ema.safetensors")
    assert_same_trees(load_autoencoder(file), decoder)


def test_half_precision_variant(tmp_path, decoder):
    def halve(tensors):
        tensors |= {name: array.astype(np.float16) for name, array in tensors.items()}

    folder = rewritten(tmp_path, halve)
    variant = WEIGHTS.replace(".safetensors", ".fp16.safetensors")
    (folder / WEIGHTS).rename(folder / variant)
    rounded = jax.tree.map(
        lambda a: np.asarray(a).astype(np.float16).astype(np.float32), decoder
    )
    assert_same_trees(load_autoencoder(folder), rounded)


def test_without_a_config_the_shape_is_stable_diffusions(tmp_path):
    folder = rewritten(tmp_path, lambda tensors: None)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError) as error:
        load_autoencoder(folder)
    wanted = "decoder.conv_in.weight expected (512, 4, 3, 3), found (16, 4, 3, 3)"
    assert wanted in str(error.value)


def test_wrong_tensors_are_listed(tmp_path):
    def spoil(tensors):
        tensors["decoder.conv_in.bias"] = np.zeros(3, np.float32)
        del tensors["decoder.conv_out.bias"]
        tensors["decoder.more"] = np.zeros(2, np.float32)

    with pytest.raises(ValueError) as error:
        load_autoencoder(rewritten(tmp_path, spoil))
    text = str(error.value)
    assert "missing: decoder.conv_out.bias (3,)" in text
    assert "unexpected: decoder.more (2,)" in text
    assert "decoder.conv_in.bias expected (16,), found (3,)" in text


@pytest.mark.ci
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_original_names(tmp_path, prefix):
    """As diffusers itself translates them."""
    pytest.importorskip("torch", reason="the oracle extra is not installed")
    utils = pytest.importorskip(
        "diffusers.loaders.single_file_utils", reason="needs the oracle extra"
    )
    config = KLConfig(
        latent_channels=16,
        block_out_channels=(8, 16, 24),
        layers_per_block=1,
        norm_num_groups=4,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in original_table(config, {}).shapes().items()
    }
    file = tmp_path / "ae.safetensors"
    more = {"encoder.conv_in.bias": np.zeros(8, np.float32)}
    bundle = {f"{prefix}{name}": array for name, array in (tensors | more).items()}
    if prefix:
        bundle["model.diffusion_model.x_embedder.bias"] = np.zeros(3, np.float32)
    safetensors.numpy.save_file(bundle, file)
    theirs = utils.convert_ldm_vae_checkpoint(
        dict(tensors), {"down_block_types": 3 * [""], "up_block_types": 3 * [""]}
    )
    other = tmp_path / "diffusers.safetensors"
    theirs = {name: np.ascontiguousarray(array) for name, array in theirs.items()}
    safetensors.numpy.save_file(theirs, other)
    fields = dataclasses.asdict(config) | {"_class_name": "AutoencoderKL"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = load_autoencoder(file, config=config)
    assert_same_trees(found, load_autoencoder(other, config=config))
    with pytest.raises(ValueError, match="'SD3-VAE' or 'Flux.1-VAE'"):
        load_autoencoder(file)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("act_fn", "relu", "act_fn must be 'silu', got 'relu'"),
        ("up_block_types", ["UpDecoderBlock2D", "Attn"], "up_block_types must be"),
        ("_class_name", "AutoencoderTiny", "_class_name must be 'AutoencoderKL'"),
        ("latents_mean", [0.0], "latents_mean must be None"),
        ("layers_per_block", "2", "layers_per_block must be a whole number"),
        ("block_out_channels", 16, "block_out_channels must be a list"),
        ("scaling_factor", None, "scaling_factor must be > 0"),
        ("shift_factor", "0", "shift_factor must be a number"),
        ("mid_block_add_attention", None, "mid_block_add_attention must be True"),
    ],
)
def test_configs_of_other_models_are_refused(tmp_path, field, value, message):
    folder = rewritten(tmp_path, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        load_autoencoder(folder)


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="folder of diffusers.*subfolder vae"):
        load_autoencoder(tmp_path)
    folder = rewritten(tmp_path, lambda tensors: None)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json is damaged or of another kind"):
        load_autoencoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is damaged .*: no JSON"):
        load_autoencoder(folder)
    (folder / "config.json").write_text(config)
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="truncated or no safetensors"):
        load_autoencoder(folder)


def test_bad_input(decoder):
    with pytest.raises(ValueError, match=r"\[n, h, w, 4\], channels last"):
        decoder.decode(jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="compute_dtype must be 'float32'"):
        load_autoencoder(GOLDEN, compute_dtype="float16")
    with pytest.raises(ValueError, match="multiples of norm_num_groups=32"):
        KLConfig(block_out_channels=(8, 16))
    with pytest.raises(ValueError, match="scaling_factor"):
        dataclasses.replace(KLConfig(), scaling_factor=0.0)
