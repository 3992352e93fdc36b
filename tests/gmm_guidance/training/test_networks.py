"""``BlockMLP``: its limits, its conditioning, its bad inputs."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles.block_networks import random_network

from gmm_guidance import BlockMLP, NetworkConfig
from gmm_guidance.blocks.stack import is_block_stack
from gmm_guidance.diffusion.parameterization import ScaledPrediction

SCALE, MEAN = 2.0, (1.0, -3.0)
NETWORK = random_network(data_scale=SCALE, data_mean=MEAN, num_blocks=3)
N = 8
NOISE = np.random.default_rng(1).normal(size=(N, 2)).astype(np.float32)
LABEL = jnp.arange(N, dtype=jnp.int32) % 3


@jax.jit
def run(network, x, sigma, label):
    return network(x, sigma, label)


def level(value):
    """Always ``[n]``, so that all tests share one program."""
    return jnp.full((N,), value, jnp.float32)


def denoise(x, sigma, label=LABEL, network=NETWORK):
    return np.asarray(run(network, jnp.asarray(x, jnp.float32), level(sigma), label))


def test_without_noise_the_sample_is_returned():
    x = np.array(MEAN, np.float32) + SCALE * NOISE
    for sigma in (1e-3, 1e-5):
        error = np.abs(denoise(x, sigma) - x).max()
        assert 0 < error < 20 * sigma


def test_under_overwhelming_noise_the_result_stays_near_the_data():
    """However far x is: c_skip falls faster than x grows, c_out is at most scale."""
    for sigma in (1e2, 1e4):
        value = denoise(sigma * NOISE, sigma)
        assert np.isfinite(value).all()
        assert np.abs(value - np.array(MEAN)).max() < 10 * SCALE
        assert np.abs(value - np.array(MEAN)).max() > 0.1


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 70.0])
def test_preconditioning_keeps_unit_variance(sigma):
    """Of the input, and of the target that the network has to match."""
    rng = np.random.default_rng(0)
    clean = SCALE * rng.normal(size=200_000)
    noisy = clean + sigma * rng.normal(size=200_000)
    inputs = noisy / np.hypot(sigma, SCALE)
    assert np.std(inputs) == pytest.approx(1.0, rel=0.02)
    skip, out = ScaledPrediction("edm", SCALE).coefficients(np.float32(sigma))
    target = (clean - skip * noisy) / out
    assert np.std(target) == pytest.approx(1.0, rel=0.02)
    # c_skip is the best linear guess: what is left does not correlate with the input.
    assert abs(np.corrcoef(target, noisy)[0, 1]) < 0.01


def test_the_network_is_centred_on_the_data():
    """Data moved by a vector: the same network around another mean."""
    by = np.array([5.0, -2.0], np.float32)
    mean = tuple(float(m) for m in np.array(MEAN) + by)
    moved = random_network(data_scale=SCALE, data_mean=mean, num_blocks=3)
    x = np.array(MEAN, np.float32) + 3.0 * NOISE
    got = denoise(x + by, 1.0, network=moved)
    np.testing.assert_allclose(got, denoise(x, 1.0) + by, rtol=1e-4, atol=1e-4)


def test_each_label_matters():
    x = 3.0 * NOISE
    values = [denoise(x, 1.0, jnp.full((N,), c, jnp.int32)) for c in range(4)]
    for i, one in enumerate(values):
        for other in values[:i]:
            assert np.abs(one - other).max() > 0.01


def test_the_network_is_told_the_noise_level():
    """Inputs of equal size at different levels: what is left is the level itself."""

    def inside(sigma):
        total = sigma**2 + SCALE**2
        x = np.sqrt(total) * NOISE
        value = denoise(x + np.array(MEAN, np.float32), sigma) - np.array(MEAN)
        return (value - SCALE**2 / total * x) * np.sqrt(total) / (sigma * SCALE)

    one, two, three = inside(0.2), inside(0.25), inside(20.0)
    assert np.abs(one - two).max() > 0.1 and np.abs(one - three).max() > 0.1


def test_none_is_the_null_label_and_a_scalar_level_is_one_for_all():
    x = jnp.asarray(3.0 * NOISE)
    null = jnp.full((N,), 3, jnp.int32)
    expected = denoise(x, 0.5, null)
    np.testing.assert_array_equal(run(NETWORK, x, level(0.5), None), expected)
    scalar = run(NETWORK, x, jnp.float32(0.5), null)
    np.testing.assert_allclose(scalar, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(NETWORK(x, 0.5), expected, rtol=1e-5, atol=1e-5)


def test_each_sample_has_its_own_level_and_label():
    sigma = np.geomspace(0.01, 50.0, N).astype(np.float32)
    x = sigma[:, None] * NOISE
    rows = run(NETWORK, jnp.asarray(x), jnp.asarray(sigma), LABEL)
    for i in (0, 3, 7):
        alone = denoise(x, sigma[i])[i]
        np.testing.assert_allclose(rows[i], alone, rtol=1e-5, atol=1e-5)


def test_gradients_flow_to_every_parameter_and_to_x():
    @jax.jit
    def gradients(network, x):
        return jax.grad(lambda n, x: (n(x, level(1.0), LABEL) ** 2).sum(), (0, 1))(
            network, x
        )

    of_network, of_x = gradients(NETWORK, jnp.asarray(3.0 * NOISE))
    for path, leaf in jax.tree_util.tree_leaves_with_path(of_network):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
    assert np.abs(of_x).max() > 0
    # Each block and each label used has a gradient of its own.
    kernels = np.asarray(of_network.blocks.outer.kernel[...])
    assert (np.abs(kernels).max(axis=(1, 2)) > 0).all()
    labels = np.asarray(of_network.embed_label.embedding[...])
    assert (np.abs(labels).max(axis=1) > 0).tolist() == [True, True, True, False]


def test_it_is_an_ordinary_nnx_module():
    x, sigma = jnp.asarray(3.0 * NOISE), level(0.5)
    expected = denoise(x, 0.5)
    graph, state = nnx.split(NETWORK)
    again = nnx.merge(graph, state)
    again.eval()
    np.testing.assert_array_equal(run(again, x, sigma, LABEL), expected)
    compiled = nnx.jit(lambda network, x: network(x, sigma, LABEL))
    again.train()
    np.testing.assert_allclose(compiled(again, x), expected, rtol=1e-6, atol=1e-6)


def test_networks_are_made_of_keys_by_vmap():
    config = NetworkConfig(1, 1, width=4, num_blocks=2, num_frequencies=2)
    one, two = jax.random.split(jax.random.key(3))
    make = jax.jit(jax.vmap(lambda key: BlockMLP(config, rngs=nnx.Rngs(key))))
    networks = make(jnp.stack([one, two, one]))
    for leaf in map(np.asarray, jax.tree.leaves(networks)):
        np.testing.assert_array_equal(leaf[0], leaf[2])
    for kernel in (networks.output.kernel[...], networks.blocks.inner.kernel[...]):
        assert np.abs(kernel[0] - kernel[1]).max() > 0.01
    kernels = networks.blocks.inner.kernel[...]
    assert kernels.shape == (3, 2, 4, 4)
    assert np.abs(kernels[0, 0] - kernels[0, 1]).max() > 0.01  # blocks start apart


def test_what_the_library_asks_of_a_model():
    assert is_block_stack(NETWORK)
    assert (NETWORK.num_blocks, NETWORK.num_labels) == (3, 3)
    assert NETWORK.sample_shape == (2,)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"num_labels": 0}, "num_labels must be at least 1"),
        ({"width": 0}, "width must be at least 1"),
        ({"num_blocks": 0}, "num_blocks must be at least 1"),
        ({"num_frequencies": 0}, "num_frequencies must be at least 1"),
        ({"data_scale": 0.0}, "data_scale must be > 0, got 0.0"),
        ({"data_scale": math.nan}, "data_scale must be > 0, got nan"),
        ({"data_mean": (1.0,)}, "data_mean must have 2 numbers, got 1"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(NetworkConfig(2), **options)


@pytest.mark.parametrize(
    "x, sigma, message",
    [
        (jnp.zeros((4, 3)), 1.0, r"x must have shape \[n, 2\], got \(4, 3\)"),
        (jnp.zeros(2), 1.0, r"x must have shape \[n, 2\], got \(2,\)"),
        (jnp.zeros((4, 2)), 0.0, "sigma must be > 0, got 0.0"),
        (jnp.zeros((4, 2)), -1.0, "sigma must be > 0, got -1.0"),
        (jnp.zeros((2, 2)), jnp.array([1.0, math.nan]), "sigma must be > 0, got nan"),
    ],
)
def test_bad_inputs_are_refused(x, sigma, message):
    with pytest.raises(ValueError, match=message):
        NETWORK(x, sigma)
