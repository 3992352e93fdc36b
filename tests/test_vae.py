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

from full_models import VAEConfig, VAEDecoder, decode_in_chunks, load_vae

GOLDEN = Path(__file__).parent / "golden" / "vae"
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
    return load_vae(GOLDEN)


def test_golden_images(decoder):
    latents, images = golden()
    assert relative_error(decode(decoder, latents), images) < 1e-5


def test_size_of_stable_diffusions_decoder():
    decoder = jax.eval_shape(lambda: VAEDecoder(VAEConfig(), rngs=nnx.Rngs(0)))
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
    decoder = load_vae(tmp_path)
    ours = decode(decoder, latents.permute(0, 2, 3, 1).numpy())
    assert relative_error(ours, theirs.permute(0, 2, 3, 1).numpy()) < 1e-5


def test_bf16_is_near_float32(decoder):
    latents, images = golden()
    narrow = load_vae(GOLDEN, compute_dtype="bfloat16")
    error = relative_error(decode(narrow, latents), images)
    assert 1e-5 < error < 5e-2


def test_gradient_reaches_the_latents(decoder):
    latents, _ = golden()
    gradient = jax.jit(jax.grad(lambda z: jnp.mean(decoder.decode(z) ** 2)))(latents)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_chunks_do_not_change_images(decoder):
    latents = np.random.default_rng(0).normal(size=(5, 4, 4, 4)).astype(np.float32)
    reports = []
    whole = decode_in_chunks(decoder, latents, 5)
    parts = decode_in_chunks(decoder, latents, 2, lambda *r: reports.append(r))
    assert whole.shape == (5, 8, 8, 3) and whole.dtype == np.uint8
    assert np.abs(whole.astype(int) - parts).max() <= 1
    assert reports == [(2, 5), (4, 5), (5, 5)]


def rewritten(tmp_path, change):
    """The golden folder with its tensors changed."""
    shutil.copytree(GOLDEN, tmp_path / "vae")
    path = tmp_path / "vae" / WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)
    return tmp_path / "vae"


def test_older_names_of_attention(tmp_path, decoder):
    def age(tensors):
        prefix = "decoder.mid_block.attentions.0."
        names = {"to_q": "query", "to_k": "key", "to_v": "value"}
        for new, old in {**names, "to_out.0": "proj_attn"}.items():
            kernel = tensors.pop(f"{prefix}{new}.weight")
            tensors[f"{prefix}{old}.weight"] = kernel[:, :, None, None].copy()
            tensors[f"{prefix}{old}.bias"] = tensors.pop(f"{prefix}{new}.bias")

    aged = load_vae(rewritten(tmp_path, age))
    for found, wanted in zip(
        jax.tree.leaves(aged), jax.tree.leaves(decoder), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_wrong_tensors_are_listed(tmp_path):
    def spoil(tensors):
        tensors["decoder.conv_in.bias"] = np.zeros(3, np.float32)
        del tensors["decoder.conv_out.bias"]
        tensors["decoder.more"] = np.zeros(2, np.float32)

    with pytest.raises(ValueError) as error:
        load_vae(rewritten(tmp_path, spoil))
    text = str(error.value)
    assert "missing: decoder.conv_out.bias (3,)" in text
    assert "unexpected: decoder.more (2,)" in text
    assert "decoder.conv_in.bias expected (16,), found (3,)" in text


def test_whole_checkpoint_of_compvis_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"first_stage_model.decoder.conv_in.bias": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match="layout of CompVis"):
        load_vae(path)


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no autoencoder at"):
        load_vae(tmp_path)
    folder = rewritten(tmp_path, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"act_fn": "relu"}))
    with pytest.raises(ValueError, match="act_fn must be 'silu', got 'relu'"):
        load_vae(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        load_vae(folder)
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="truncated or no safetensors"):
        load_vae(folder)


def test_bad_input(decoder):
    with pytest.raises(ValueError, match=r"\[n, h, w, 4\], channels last"):
        decoder.decode(jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        decode_in_chunks(decoder, np.zeros((1, 4, 4, 4)), 0)
    with pytest.raises(ValueError, match="multiples of norm_num_groups=32"):
        VAEConfig(block_out_channels=(8, 16))
    with pytest.raises(ValueError, match="scaling_factor"):
        dataclasses.replace(VAEConfig(), scaling_factor=0.0)
