"""Networks of several kinds: predictions, blocks, stochastic depth, finite data."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles.block_networks import abstract

import gmm_guidance as gg
from gmm_guidance.diffusion.parameterization import ScaledPrediction
from gmm_guidance.training.train import _Data, _Denoising

MIXTURE = gg.GaussianMixture(
    means=jnp.array([[1.0, -2.0], [3.0, 0.0]]),
    covariances=jnp.array([0.3, 0.8]),
    labels=(0, 1),
)
PREDICTIONS = ("edm", "epsilon", "velocity", "x0")
BLOCKS = ("prenorm", "plain", "adaln_zero", "attention")
TINY = gg.TrainingConfig(snapshots=(3,), batch_size=32, width=8, num_blocks=3)
X = 2.0 * jax.random.normal(jax.random.key(5), (6, 2))
LABEL = jnp.array([0, 1, 2, 0, 1, 2], jnp.int32)


@functools.cache
def random_stack(**options):
    """A network with every parameter random, gates and output layers included."""
    config = dataclasses.replace(TINY, **options).network(MIXTURE)
    rng = np.random.default_rng(1)

    def draw(leaf):
        return jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(draw, abstract(config))


# Compiled at once: layer by layer the same takes several times as long.
SIGMA = jnp.float32(0.8)


@jax.jit
def outputs(stack, x, sigma):
    """The network's own output, and the denoiser's."""
    return stack.predict(x, sigma, LABEL), stack(x, sigma, LABEL)


@jax.jit
def embed(stack):
    return stack.embed(X, SIGMA, LABEL)


@jax.jit
def block(stack, index, hidden, context):
    return stack.block(index, hidden, context)


@jax.jit
def full_and_weak(stack, sigma, drop):
    passes = gg.Pass(LABEL), gg.Pass(LABEL, drop=drop)
    return gg.evaluate_passes(stack, X, sigma, passes)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_output_is_the_textbook_prediction(prediction):
    """D from F by the published formulas, at one point in float64."""
    stack = random_stack(prediction=prediction)
    sigma = np.float64(0.7)
    output, got = outputs(stack, X, jnp.float32(sigma))
    output = np.asarray(output, np.float64)
    x = np.asarray(X, np.float64)
    mean = np.asarray(MIXTURE.mean(), np.float64)
    scale = float(MIXTURE.scale)
    z = (x - mean) / scale  # data of unit variance
    s = sigma / scale
    unit = {
        # v-prediction on the variance-preserving path, of the other sign
        "edm": lambda: (z / np.sqrt(1 + s**2) + s * output) / np.sqrt(1 + s**2),
        "epsilon": lambda: z - s * (output * 1.0),
        # x_t = (1 - t) x0 + t noise, velocity noise - x0
        "velocity": lambda: z / (1 + s) - s / (1 + s) * output,
        "x0": lambda: output,
    }[prediction]()
    expected = mean + scale * unit
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_raw_output_at_the_optimum(prediction):
    """Data N(mean, scale^2): the expected target given x makes the exact denoiser."""
    mean, scale = 0.6, 1.7
    x = np.linspace(-4.0, 6.0, 9)
    for sigma in (0.05, 1.7, 30.0):
        z, s = (x - mean) / scale, sigma / scale
        clean, noise = z / (1 + s**2), z * s / (1 + s**2)  # E[x0 | z], E[noise | z]
        best = {
            "edm": 0.0 * z,  # nothing is left beside the skip connection
            "epsilon": noise,
            "velocity": noise - clean,
            "x0": clean,
        }[prediction]
        skip, out = ScaledPrediction(prediction, scale).coefficients(np.float32(sigma))
        found = mean + float(skip) * (x - mean) + float(out) * best
        exact = mean + scale**2 / (scale**2 + sigma**2) * (x - mean)
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_that_of_the_network_s_own_target(prediction):
    """A constant network: its loss is the second moment of target minus constant."""
    config = dataclasses.replace(
        TINY, prediction=prediction, batch_size=40_000, label_dropout=0.0
    )
    shape = config.network(MIXTURE)

    class Constant:
        def predict(self, x_t, time, label, keep):
            return jnp.full_like(x_t, 0.25)

    objective = _Denoising(config, shape, None)
    loss = jax.jit(lambda key: objective.loss(Constant(), key, _Data(MIXTURE, None)))
    got = np.mean([loss(jax.random.key(i)) for i in range(3)])

    rng = np.random.default_rng(0)
    n = 400_000
    which = rng.integers(0, 2, n)
    mean, scale = np.asarray(MIXTURE.mean()), float(MIXTURE.scale)
    std = np.sqrt(np.array([0.3, 0.8]))[which, None]
    clean = np.asarray(MIXTURE.means)[which] + std * rng.normal(size=(n, 2))
    x0 = (clean - mean) / scale
    noise = rng.normal(size=(n, 2))
    s = np.exp(config.log_sigma_offset + config.log_sigma_std * rng.normal(size=(n, 1)))
    target = {
        "edm": (s * x0 - noise * 1.0) / np.sqrt(1 + s**2),
        "epsilon": noise,
        "velocity": noise - x0,
        "x0": x0,
    }[prediction]
    expected = np.mean((target - 0.25) ** 2)
    assert got == pytest.approx(expected, rel=0.02)


def test_a_plain_block_has_no_norm_and_no_condition():
    """Scaling the state scales what a linear block would add; norms would undo it."""
    stack = random_stack(block="plain")
    names = {type(m).__name__ for _, m in nnx.iter_modules(stack.backbone.blocks)}
    assert "LayerNorm" not in names
    hidden, context = embed(stack)
    np.testing.assert_array_equal(
        block(stack, 1, hidden, context), block(stack, 1, hidden, 0.0 * context)
    )
    pre = random_stack(block="prenorm")
    hidden, context = embed(pre)
    output = block(pre, 1, hidden, context)
    assert jnp.abs(output - block(pre, 1, hidden, 0 * context)).max() > 0.01
    # The residual part of a pre-norm block does not see the scale of the state.
    again = block(pre, 1, 3.0 * hidden, context) - 3.0 * hidden
    np.testing.assert_allclose(again, output - hidden, rtol=0.02, atol=0.02)


def test_a_new_gated_network_is_the_identity_in_its_blocks():
    config = dataclasses.replace(TINY, block="adaln_zero").network(MIXTURE)
    stack = jax.jit(lambda: gg.BlockMLP(config, rngs=nnx.Rngs(0)).as_stack())()
    hidden, context = embed(stack)
    np.testing.assert_array_equal(block(stack, 2, hidden, context), hidden)
    np.testing.assert_array_equal(outputs(stack, X, SIGMA)[0], 0.0 * X)


def test_attention_mixes_coordinates_and_they_are_told_apart():
    stack = random_stack(block="attention")
    hidden, context = embed(stack)
    assert hidden.shape == (6, 2, 8)
    changed = hidden.at[:, 1, 0].add(1.0)
    moved = block(stack, 0, changed, context) - block(stack, 0, hidden, context)
    assert jnp.abs(moved[:, 0]).max() > 1e-3
    swapped = outputs(stack, X[:, ::-1], SIGMA)[1][:, ::-1]
    assert jnp.abs(swapped - outputs(stack, X, SIGMA)[1]).max() > 0.01


@pytest.mark.parametrize("kind", BLOCKS)
def test_each_kind_is_a_block_stack_with_a_shared_prefix(kind):
    """Dropped by the evaluator: the network whose block was replaced by nothing."""
    stack = random_stack(block=kind, prediction="epsilon")
    full, weak = full_and_weak(stack, SIGMA, jnp.array([1], jnp.int32))
    hidden, context = embed(stack)
    for index in (0, 2):
        hidden = block(stack, index, hidden, context)
    expected = jax.jit(lambda stack: stack.readout(hidden, context, X, SIGMA))(stack)
    np.testing.assert_allclose(weak, expected, rtol=1e-5, atol=1e-5)
    assert jnp.abs(full - weak).max() > 1e-3
    # The training pass, a scan over the blocks, is the same network.
    output, _ = outputs(stack, X, SIGMA)
    np.testing.assert_allclose(full, X - 0.8 * output, rtol=1e-4, atol=1e-4)


def test_a_kept_mask_drops_blocks_by_sample():
    stack = random_stack()
    keep = jnp.ones((3, 6), bool).at[1, 2].set(False)
    sigma = jnp.full((6,), 0.8)
    predict = jax.jit(lambda stack, keep: stack.backbone.predict(X, sigma, LABEL, keep))
    output, whole = predict(stack, keep), predict(stack, jnp.ones_like(keep))
    np.testing.assert_array_equal(np.delete(output, 2, 0), np.delete(whole, 2, 0))
    _, weak = full_and_weak(stack, sigma, jnp.array([1], jnp.int32))
    a, b = stack.prediction.coefficients(jnp.float32(0.8))
    mean = MIXTURE.mean()
    expected = mean + a * (X[2] - mean) + b * output[2]
    np.testing.assert_allclose(weak[2], expected, rtol=1e-4, atol=1e-4)


def test_stochastic_depth_skips_all_blocks_but_the_first_at_its_rate():
    config = dataclasses.replace(TINY, block_dropout=0.3, batch_size=4096)
    objective = _Denoising(config, config.network(MIXTURE), None)

    @jax.jit
    def mask(key):
        seen = []

        class Watching:
            def predict(self, x_t, time, label, keep):
                seen.append(keep)
                return x_t

        objective.loss(Watching(), key, _Data(MIXTURE, None))
        return seen[0]

    kept = np.asarray(mask(jax.random.key(0)))
    assert kept.shape == (3, 4096) and kept[0].all()
    np.testing.assert_allclose(kept[1:].mean(1), 0.7, atol=4 * math.sqrt(0.21 / 4096))


def test_a_finite_set_is_all_that_training_sees():
    """One point, many steps: the network recalls it at every noise level."""
    config = gg.TrainingConfig(
        snapshots=(300,), batch_size=64, width=16, num_blocks=2, label_dropout=0.0
    )
    samples, labels = np.array([[1.5, -0.5], [1.5, -0.5]], np.float32), np.array([0, 1])
    samples[1] += 0.5
    trained = gg.train_denoiser(jax.random.key(0), (samples, labels), config)
    assert trained.num_labels == 2
    x = jnp.asarray(samples) + 0.1
    value = trained(x, jnp.float32(0.2), jnp.asarray(labels, jnp.int32))
    np.testing.assert_allclose(value, samples, atol=0.1)


@pytest.mark.ci  # two programs of training
def test_num_points_draws_one_set_for_each_seed():
    config = dataclasses.replace(TINY, num_points=5)
    keys = jax.random.split(jax.random.key(0), 2)
    run = gg.train_denoisers(keys, MIXTURE, config)
    swapped = gg.train_denoisers(keys[::-1], MIXTURE, config)
    for a, b in zip(
        jax.tree.leaves(run.denoiser(1).network),
        jax.tree.leaves(swapped.denoiser(0).network),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    fresh = gg.train_denoisers(keys, MIXTURE, TINY)
    assert not np.allclose(run.losses[0], fresh.losses[0])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((np.ones(3), np.arange(3)), ValueError, r"shape \[n, d\]"),
        ((np.ones((3, 2)), np.ones(3)), ValueError, "3 integers"),
        ((np.ones((3, 2)), np.arange(2)), ValueError, "3 integers"),
        ((np.full((3, 2), np.nan), np.arange(3)), ValueError, "finite"),
        ((np.ones((3, 2)), np.array([0, 1, -1])), ValueError, "label"),
        (np.ones((3, 2)), TypeError, "pair of samples"),
        (None, TypeError, "GaussianMixture or a pair"),
    ],
)
def test_bad_points_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        gg.train_denoiser(jax.random.key(0), data, TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "eps"}, "'edm', 'epsilon', 'velocity' or 'x0', got 'eps'"),
        ({"block": "resnet"}, "prenorm, plain, adaln_zero, attention, got 'resnet'"),
        ({"block": "attention", "width": 10}, "multiple of 4"),
        ({"block_dropout": 1.0}, r"block_dropout must be in \[0, 1\)"),
        ({"num_points": 0}, "num_points must be at least 1"),
    ],
)
def test_bad_kinds_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gg.TrainingConfig(**options)


def test_points_with_options_of_mixtures_are_refused():
    points = (np.eye(2, dtype=np.float32), np.array([0, 1]))
    for options in ({"num_points": 2}, {"target": "exact"}):
        with pytest.raises(ValueError, match="need a mixture"):
            gg.train_denoiser(
                jax.random.key(0), points, dataclasses.replace(TINY, **options)
            )


def test_saved_networks_carry_their_kind(tmp_path):
    config = dataclasses.replace(TINY, prediction="velocity", block="plain")
    trained = gg.train_denoiser(jax.random.key(0), MIXTURE, config)
    again = gg.TrainedDenoiser.load(trained.save(tmp_path / "net.safetensors"), config)
    sigma = jnp.float32(0.4)
    np.testing.assert_array_equal(again(X, sigma, LABEL), trained(X, sigma, LABEL))
    assert again.config == config


def test_ddpm_levels_are_those_of_uniform_steps_of_linear_betas():
    kept = np.cumprod(1.0 - np.linspace(1e-4, 2e-2, 1000))
    levels = np.sqrt((1.0 - kept) / kept)
    config = gg.TrainingConfig(noise="ddpm", batch_size=20_000)
    objective = _Denoising(config, config.network(gg.presets.two_modes()), None)
    drawn = np.asarray(objective._levels(jax.random.key(0), jnp.float32))
    nearest = np.interp(np.log(drawn), np.log(levels), np.arange(1000.0))
    np.testing.assert_allclose(nearest, np.round(nearest), atol=2e-2)
    # Uniform steps: mean and standard deviation, to 5 standard errors.
    assert np.mean(nearest) == pytest.approx(499.5, abs=5 * 288.7 / np.sqrt(20_000))
    assert np.std(nearest) == pytest.approx(288.7, abs=5)
