"""The causal decoder of videos against diffusers, in parts and as a whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.trees import assert_same_trees

from full_models import WanDecoder, WanVAEConfig, load_autoencoder
from full_models.models.autoencoder import wan_weights

TINY = WanVAEConfig(
    latent_channels=4,
    base_width=4,
    width_multiples=(1, 2),
    doubles_time=(True,),
    layers_per_block=1,
    latents_mean=(0.1, -0.2, 0.3, 0.0),
    latents_std=(1.5, 0.5, 2.0, 1.0),
)


@pytest.fixture(scope="module")
def decoder():
    """Random values in every parameter, biases and norms as well."""
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(lambda: WanDecoder(TINY, rngs=nnx.Rngs(0)))
    return jax.tree.map(
        lambda a: jnp.asarray(0.15 * rng.normal(size=a.shape), jnp.float32), abstract
    )


decode = jax.jit(
    lambda decoder, latents, at_once=1: decoder.decode(
        latents, latents_at_once=at_once
    ),
    static_argnums=2,
)


def latents_of(count, channels=4):
    rng = np.random.default_rng(count)
    return rng.normal(size=(1, count, 2, 2, channels)).astype(np.float32)


def test_size_of_wans_decoder():
    decoder = jax.eval_shape(lambda: WanDecoder(WanVAEConfig(), rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(decoder))
    assert count == 73_295_331 + 272  # with post_quant_conv
    latents = jax.ShapeDtypeStruct((1, 3, 4, 6, 16), jnp.float32)
    assert jax.eval_shape(decode, decoder, latents).shape == (1, 9, 32, 48, 3)


@pytest.mark.ci
def test_latents_in_a_row_are_the_whole_sequence(decoder):
    """One by one, two at once with one left over, and all after the first at once."""
    latents = latents_of(4)
    wanted = decode(decoder, latents, 3)
    assert wanted.shape == (1, 7, 4, 4, 3)
    for at_once in (1, 2):
        np.testing.assert_allclose(decode(decoder, latents, at_once), wanted, atol=2e-6)


def test_no_frame_depends_on_later_latents(decoder):
    latents = latents_of(3)
    changed = latents.copy()
    changed[:, 2] += 1.0
    before, after = decode(decoder, latents), decode(decoder, changed)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(before[:, 3:] - after[:, 3:]).max() > 1e-3


def test_memory_does_not_grow_with_the_frames(decoder):
    def memory(count):
        latents = jax.ShapeDtypeStruct((1, count, 8, 8, 4), jnp.float32)
        compiled = decode.lower(decoder, latents).compile().memory_analysis()
        return compiled.temp_size_in_bytes, compiled.output_size_in_bytes

    (few, small), (many, large) = memory(3), memory(21)
    # The frames themselves lie there once more, before the first is put in front.
    assert many - few <= 1.2 * (large - small)
    assert large / small == pytest.approx(41 / 5, rel=0.01)


def test_official_names(tmp_path, decoder):
    """Wan2.1_VAE.pth: a plain pickle with the encoder, which is not read."""
    torch = pytest.importorskip("torch", reason="the oracle extra is not installed")
    from full_models.weights.table import dump

    tensors = dump(decoder, wan_weights.LAYOUTS["official"].table(TINY, {}))
    tensors |= {"encoder.conv1.weight": np.zeros(2), "conv1.bias": np.zeros(2)}
    path = tmp_path / "Wan2.1_VAE.pth"
    torch.save({n: torch.tensor(a) for n, a in tensors.items()}, path)
    found = load_autoencoder(path, config=TINY)
    assert_same_trees(found, decoder)


def test_bad_input(decoder):
    with pytest.raises(ValueError, match=r"\[n, T, h, w, 4\], channels last"):
        decoder.decode(jnp.zeros((1, 4, 4, 4)))
    with pytest.raises(ValueError, match="latents_at_once must be at least 1, got 0"):
        decoder.decode(jnp.zeros((1, 1, 4, 4, 4)), latents_at_once=0)
    with pytest.raises(ValueError, match="latents_std must be 4 numbers above 0"):
        dataclasses.replace(TINY, latents_std=(1.0, 1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="doubles_time must be 1 times True or False"):
        dataclasses.replace(TINY, doubles_time=())
    with pytest.raises(ValueError, match="is_residual must be False, got True"):
        WanVAEConfig.from_diffusers({"is_residual": True})


@pytest.mark.ci
def test_frames_are_those_of_diffusers(tmp_path):
    from oracles import wans

    torch = wans.torch
    theirs = wans.autoencoder()
    theirs.save_pretrained(tmp_path / "vae")
    decoder = load_autoencoder(tmp_path)
    latents = np.random.default_rng(0).normal(size=(1, 3, 2, 3, 4)).astype(np.float32)
    mean, std = (
        torch.tensor(values).reshape(1, -1, 1, 1, 1)
        for values in (theirs.config.latents_mean, theirs.config.latents_std)
    )
    z = torch.tensor(latents).permute(0, 4, 1, 2, 3) * std + mean
    with torch.no_grad():
        wanted = theirs.decode(z).sample.permute(0, 2, 3, 4, 1).numpy()
    found = decode(decoder, latents)
    assert np.abs(wanted).max() < 1  # nothing is clipped
    np.testing.assert_allclose(found, wanted, atol=2e-6)
