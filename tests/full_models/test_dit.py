"""The DiT as a network and as a stack of blocks; parity is tested with its weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles.dits import FLOW, TINY, random_dit, without_blocks

import gmm_guidance as gg
from full_models import DiT, DiTConfig, as_stack, model_names
from full_models.models.dit.layers import position_table
from full_models.models.layers import from_patches, time_features, to_patches
from gmm_guidance.diffusion.parameterization import to_denoised


def inputs(n=3, config=TINY, seed=0):
    rng = np.random.default_rng(seed)
    size = config.input_size
    x = rng.normal(size=(n, size, size, config.in_channels))
    label = rng.integers(0, config.num_labels, n)
    return jnp.asarray(x, jnp.float32), jnp.asarray(label, jnp.int32)


@pytest.mark.parametrize(
    "name, millions",
    # Peebles & Xie 2023, Table 4, in their rounding.
    [("DiT-S/8", 33), ("DiT-B/4", 130), ("DiT-L/2", 458), ("DiT-XL/2", 675)],
)
def test_published_sizes(name, millions):
    config = DiTConfig.named(name)
    network = jax.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(network))
    assert count / 1e6 == pytest.approx(millions, abs=1.0)


def test_names_and_their_shapes():
    assert len({*model_names()}) == len(model_names()) >= 24
    sit = DiTConfig.named("SiT-XL/2", input_size=64)
    assert (sit.depth, sit.width, sit.num_heads) == (28, 1152, 16)
    assert (sit.process, sit.prediction) == (gg.RectifiedFlow(True), "velocity")
    dit = DiTConfig.named("DiT-S/8")
    assert (dit.process, dit.prediction) == (gg.DDPM(integer_times=True), "epsilon")
    assert (sit.num_tokens, sit.out_channels) == (1024, 8)


def test_fresh_network_predicts_zero():
    x, label = inputs()

    @jax.jit
    def fresh(sigma):
        networks = (as_stack(DiT(c, rngs=nnx.Rngs(0))) for c in (TINY, FLOW))
        return [network(x, sigma, label) for network in networks]

    chain, flow = fresh(3.0)
    np.testing.assert_array_equal(chain, x)  # D = x - sigma 0
    np.testing.assert_allclose(flow, x / 4.0, rtol=1e-6)


@pytest.mark.parametrize("config", [TINY, FLOW], ids=["ddpm", "flow"])
def test_predict_is_what_denoising_uses(config):
    """Through the process's own variables, as the conversions have them."""
    network, (x, label) = random_dit(config), inputs()
    process, kind = config.process, config.prediction
    t = 612 if kind == "epsilon" else 0.37
    sigma, alpha = process.sigma(t), process.alpha(t)
    run = jax.jit(lambda n: (n.predict(x, sigma, label), n(x, sigma, label)))
    prediction, found = run(network)
    channels = config.in_channels
    wanted = to_denoised(process, prediction[..., :channels], x * alpha, t, kind)
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4)


def test_what_the_networks_are_given():
    """DiT: the nearest integer step and unit scale; SiT: t = 1 / (1 + sigma)."""
    given = []

    class Recorder:
        def __call__(self, x_t, time, label):
            given.append((float(time[0]), float(x_t[0, 0])))
            return x_t

    x, sigmas = jnp.ones((1, 1)), gg.DDPM().sigmas()
    for config, levels in ((TINY, (sigmas[0], sigmas[250], 1e6)), (FLOW, (1.0, 3.0))):
        for sigma in levels:
            gg.ProcessStack(Recorder(), config.process, config.prediction)(x, sigma)
    times, inputs = zip(*given, strict=True)
    assert times == (0.0, 250.0, 999.0, 0.5, 0.25)
    scales = 1 / np.sqrt(1 + sigmas[[0, 250]] ** 2)
    np.testing.assert_allclose(inputs, [*scales, 1e-6, 0.5, 0.25], rtol=1e-5)


def test_patches_by_hand():
    """Tokens along rows; features by row, column in the patch, channel."""
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    tokens = to_patches(x, 2)
    assert tokens.shape == (2, 6, 12)
    np.testing.assert_array_equal(tokens[1, 4], x[1, 2:4, 2:4].ravel())  # row 1, col 1
    np.testing.assert_array_equal(from_patches(tokens, 2, 4), x)


def test_position_table_by_hand():
    """Row-major tokens; column in the first half, sine before cosine."""
    table = position_table(3, 8)
    token = 1 * 3 + 2  # row 1, column 2
    wanted = [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)]
    wanted += [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)]
    np.testing.assert_allclose(table[token], wanted, atol=1e-7)


def test_time_features_by_hand():
    features = time_features(jnp.array([100.0]))[0]
    np.testing.assert_allclose(features[0], np.cos(100.0), atol=1e-5)
    np.testing.assert_allclose(features[128], np.sin(100.0), atol=1e-5)
    np.testing.assert_allclose(features[64], np.cos(1.0), atol=1e-5)


@pytest.mark.parametrize(
    "drops",
    [[[1, 2]], pytest.param([[2], [0]], marks=pytest.mark.ci)],
    ids=str,
)
def test_shared_passes_are_separate_ones_bit_for_bit(drops):
    network, (x, label) = random_dit(), inputs()
    sigma = jnp.float32(1.3)
    sets = tuple(jnp.array(d, jnp.int32) for d in drops)

    @jax.jit
    def shared(network, x, sets):
        passes = (gg.Pass(None), gg.Pass(label), *(gg.Pass(label, d) for d in sets))
        return gg.evaluate_passes(network, x, sigma, passes)

    run = jax.jit(lambda network, x, label: network(x, sigma, label))
    rows = shared(network, x, sets)
    null = jnp.full(len(x), TINY.num_labels, jnp.int32)
    np.testing.assert_array_equal(rows[0], run(network, x, null))
    np.testing.assert_array_equal(rows[1], run(network, x, label))
    for row, dropped in zip(rows[2:], drops, strict=True):
        removed = without_blocks(network, dropped)
        np.testing.assert_array_equal(row, run(removed, x, label))
        assert np.abs(row - rows[1]).max() > 1e-2


def test_one_program_for_any_blocks_and_scales():
    network, (x, label) = random_dit(), inputs()
    traces = []

    @jax.jit
    def run(network, key, scale, s2_scale):
        traces.append(1)
        rule = gg.S2Guidance(scale, s2_scale, window=None)
        return gg.guided_sample(
            key,
            network,
            label,
            num_samples=3,
            guidance=rule,
            schedule=gg.DDPMSteps(4),
            solver="euler",
        )

    found = [run(network, jax.random.key(i), 1.0 + i, 0.1 * i) for i in range(3)]
    assert len(traces) == 1
    assert all(np.isfinite(f).all() and f.shape == x.shape for f in found)


@pytest.mark.ci
def test_samples_do_not_depend_on_batches():
    network, _ = random_dit(FLOW), 0
    args = dict(
        num_samples=5,
        guidance=gg.S2Guidance(2.0, window=None),
        schedule=gg.FlowSteps(5),
        solver="euler",
    )
    label = jnp.arange(5) % 3
    whole = gg.guided_sample(jax.random.key(1), network, label, **args)
    parts = gg.guided_sample(jax.random.key(1), network, label, batch_size=2, **args)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-4)


def test_bf16_is_near_float32():
    """A narrow mantissa has 8 bits: the median error stays below 2 %."""
    network, (x, label) = random_dit(), inputs()
    narrow = random_dit(dataclasses.replace(TINY, compute_dtype="bfloat16"))
    predict = jax.jit(lambda network: network.predict(x, 1.0, label))
    full, half = predict(network), predict(narrow)
    assert half.dtype == jnp.float32
    error = np.median(np.abs(half - full)) / np.std(full)
    assert 1e-5 < error < 2e-2
    # Parameters themselves may be narrow, too.
    stored = jax.tree.map(lambda a: a.astype(jnp.bfloat16), narrow)
    error = np.median(np.abs(predict(stored) - full)) / np.std(full)
    assert error < 3e-2


@pytest.mark.ci
def test_gradients_with_and_without_remat():
    x, label = inputs()
    plain = random_dit()
    remat = random_dit(dataclasses.replace(TINY, remat=True))

    def prediction(network):
        return jnp.mean(network.predict(x, 1.0, label)[..., :2] ** 2)

    def through_the_stack(network):
        return jnp.mean((x - network(x, 1.0, label)) ** 2)  # sigma = 1: the same

    def leaves(loss, network):
        return jax.tree.leaves(jax.jit(jax.grad(loss))(network))

    wanted = leaves(prediction, plain)
    for loss, network in ((prediction, remat), (through_the_stack, plain)):
        for found, reference in zip(leaves(loss, network), wanted, strict=True):
            assert np.abs(reference).max() > 0
            np.testing.assert_allclose(found, reference, rtol=1e-3, atol=1e-6)


def test_learned_variance_comes_along():
    network, (x, label) = random_dit(), inputs()
    both = network.with_variance()

    @jax.jit
    def run(both, network):
        predicted = network.predict(x, 1.0, label)
        return both(x, 1.0, label), network(x, 1.0, label), predicted

    out, plain, raw = run(both, network)
    channels = TINY.in_channels
    np.testing.assert_allclose(out[..., :channels], plain, rtol=1e-6, atol=1e-6)
    raw = raw[..., channels:]
    np.testing.assert_allclose(out[..., channels:], raw, rtol=1e-5, atol=1e-6)
    rule = gg.GuidedChannels(gg.S2Guidance(2.0, window=None), channels)
    samples = gg.guided_sample(
        jax.random.key(0),
        both,
        label,
        num_samples=3,
        guidance=rule,
        schedule=gg.DDPMSteps(3),
        solver=gg.Ancestral("learned"),
    )
    assert samples.shape == x.shape and np.isfinite(samples).all()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"input_size": 9}, "multiple of patch_size=2, got 9; use 8 or 10"),
        ({"depth": 0}, "depth must be a whole number of 1 to 1,000, got 0"),
        ({"width": 10}, "width must be a multiple of num_heads=2 and of 4"),
        ({"process": "edm"}, "process must be a noise process .*, got 'edm'"),
        ({"prediction": "edm"}, "prediction must be one of x0, epsilon, .*got 'edm'"),
        ({"compute_dtype": "float16"}, "compute_dtype"),
        ({"mlp_ratio": -1.0}, "mlp_ratio must be a number > 0"),
    ],
)
def test_bad_shapes(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)


def test_bad_input():
    network, (x, label) = random_dit(), inputs()
    with pytest.raises(ValueError, match="Did you mean 'DiT-XL/2'"):
        DiTConfig.named("DiT-XL2")
    with pytest.raises(ValueError, match=r"\[n, 8, 8, 2\].*channels last"):
        network(x.transpose(0, 3, 1, 2), 1.0, label)
    with pytest.raises(ValueError, match="sigma must be > 0"):
        network(x, 0.0, label)
    with pytest.raises(ValueError, match=r"label must be in 0..4 .* got \[7\]"):
        gg.guided_sample(jax.random.key(0), network, 7, num_samples=2)
    with pytest.raises(ValueError, match="needs a network with a learned variance"):
        plain = random_dit(dataclasses.replace(TINY, learn_sigma=False))
        plain.with_variance()(x, 1.0, label)
    with pytest.raises(ValueError, match="drop"):
        rule = gg.S2Guidance(2.0, num_dropped=4)
        gg.guided_sample(
            jax.random.key(0), network, label, num_samples=3, guidance=rule
        )
