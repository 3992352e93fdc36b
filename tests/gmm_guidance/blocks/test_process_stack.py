"""``ProcessStack``: one denoiser, whatever the process, prediction and blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.clocks import CLOCKS, EVERY_PROCESS, chain

from gmm_guidance.blocks.evaluate import Pass, evaluate_passes
from gmm_guidance.blocks.process_stack import ProcessStack
from gmm_guidance.blocks.stack import is_block_stack
from gmm_guidance.diffusion.parameterization import (
    PREDICTIONS,
    ScaledPrediction,
    from_denoised,
    to_denoised,
)
from gmm_guidance.diffusion.process import DDPM, VE, VP, Process

MEAN, STD = 1.5, 0.7


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class GaussianNetwork:
    """Exact network for N(mean, STD^2), from the marginal of x_t, of any kind."""

    mean: jax.Array
    process: Process = dataclasses.field(metadata={"static": True})
    kind: str = dataclasses.field(metadata={"static": True})

    def __call__(self, x_t, t, label):
        assert t.shape == x_t.shape[:1]
        alpha, alpha_rate = jax.jvp(self.process.alpha, (t,), (jnp.ones_like(t),))
        std, std_rate = jax.jvp(self.process.noise_std, (t,), (jnp.ones_like(t),))
        alpha, std, alpha_rate, std_rate = (
            a[:, None] for a in (alpha, std, alpha_rate, std_rate)
        )
        score = -(x_t - alpha * self.mean) / (alpha**2 * STD**2 + std**2)
        eps = -std * score
        gain = alpha * STD**2 / (alpha**2 * STD**2 + std**2)
        x0 = self.mean + gain * (x_t - alpha * self.mean)
        return {
            "x0": x0,
            "epsilon": eps,
            "v": alpha * eps - std * x0,
            "velocity": alpha_rate * x0 + std_rate * eps,
            "score": score,
        }[self.kind]


def wrapped(process, kind):
    network = GaussianNetwork(jnp.asarray(MEAN), process, kind)
    return ProcessStack(network, process, kind)


def exact(x, sigma):
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


@jax.jit
def evaluate(models, x, sigma):
    return {kind: model(x, sigma, None) for kind, model in models.items()}


@EVERY_PROCESS
def test_one_denoiser_whatever_process_and_kind(process):
    rng = np.random.default_rng(1)
    sigma = np.array([0.05, 0.3, 1.0, 5.0, 50.0])
    x = MEAN + np.sqrt(STD**2 + sigma[:, None] ** 2) * rng.normal(size=(5, 2))
    models = {kind: wrapped(process, kind) for kind in PREDICTIONS}
    expected = exact(x, sigma[:, None])
    # Float32 resolves eps to 6e-8 or so, and sigma = 50 multiplies it.
    for kind, denoised in evaluate(models, x, sigma).items():
        np.testing.assert_allclose(
            denoised, expected, rtol=1e-3, atol=1e-3, err_msg=kind
        )


@EVERY_PROCESS
def test_one_denoiser_to_rounding_in_float64(process):
    sigma = np.array([0.02, 1.0, 100.0])
    x = np.array([[1.0], [2.0], [-90.0]])
    with jax.enable_x64(True):
        results = evaluate(
            {kind: wrapped(process, kind) for kind in PREDICTIONS}, x, sigma
        )
    for kind, denoised in results.items():
        np.testing.assert_allclose(
            denoised, exact(x, sigma[:, None]), rtol=1e-8, err_msg=kind
        )


@pytest.mark.parametrize("process", ["vp", "ddpm"])
def test_denoiser_under_vmap_and_grad(process):
    denoiser = wrapped(CLOCKS[process][0], "epsilon")
    x = jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)
    levels = jnp.array([0.1, 1.0, 3.0, 9.0])

    @jax.jit
    def everything(x, levels):
        swept = jax.vmap(lambda s: denoiser(x, s, None))(levels)
        slope_x = jax.grad(lambda x: denoiser(x, levels[1], None).sum())(x)
        slope_sigma = jax.grad(lambda s: denoiser(x, s, None)[0, 0])(levels[1])
        return swept, slope_x, slope_sigma

    swept, slope_x, slope_sigma = everything(x, levels)
    expected = np.stack([exact(np.asarray(x), float(s)) for s in levels])
    np.testing.assert_allclose(swept, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(slope_x, STD**2 / (STD**2 + 1), rtol=1e-4)
    # At sigma = 1, where VP changes from one form of its inverse to another.
    by_hand = -2 * STD**2 / (STD**2 + 1) ** 2 * (-1.0 - MEAN)
    np.testing.assert_allclose(slope_sigma, by_hand, rtol=1e-3)


def test_denoiser_is_a_pytree_with_the_network_as_its_data():
    denoiser = wrapped(VP(), "v")
    assert len(jax.tree.leaves(denoiser)) == 1
    x = jnp.zeros((2, 1))

    @jax.jit
    def loss(denoiser):
        return denoiser(x, 1.0, None)[0, 0]

    gradient = jax.grad(loss)(denoiser)
    assert gradient.process == VP()
    np.testing.assert_allclose(gradient.backbone.mean, 1 / (1 + STD**2), rtol=1e-4)


def test_denoiser_hands_on_the_label_and_what_the_network_tells():
    class Network:
        sample_shape = (2,)
        num_labels = 3

        def __call__(self, x_t, t, label):
            return x_t * 0 + label[:, None].astype(x_t.dtype)

    denoiser = ProcessStack(Network(), VE(), "x0")
    assert (denoiser.sample_shape, denoiser.num_labels) == ((2,), 3)
    denoised = denoiser(jnp.ones((2, 2)), 1.0, jnp.array([2, 0]))
    np.testing.assert_array_equal(denoised, [[2, 2], [0, 0]])
    bare = ProcessStack(lambda x_t, t, label: x_t, VE(), "x0")
    assert not hasattr(bare, "sample_shape") and not hasattr(bare, "num_blocks")


def test_ddpm_network_sees_the_times_of_the_chain():
    """An ``x0`` network's answer is handed on as it is: here, what the network saw."""
    x, level = jnp.ones((2, 1)), DDPM().sigmas()[700]
    for network, expected in (
        (lambda x_t, t, label: t[:, None], 700.0),
        (lambda x_t, t, label: x_t, np.sqrt(chain()[700])),
    ):
        denoise = jax.jit(ProcessStack(network, DDPM(), "x0"))
        np.testing.assert_allclose(denoise(x, level, None), [[expected]] * 2, rtol=1e-5)


def test_integer_times_round_the_time_alone():
    """Input and output keep the coefficients of the exact level, as DiT's have."""
    chain_of_steps = DDPM(integer_times=True)
    between = float(np.sqrt(DDPM().sigmas()[700] * DDPM().sigmas()[701])) * 1.001
    x = jnp.ones((2, 1))
    time = ProcessStack(lambda x_t, t, label: t[:, None], chain_of_steps, "x0")
    seen = ProcessStack(lambda x_t, t, label: x_t, chain_of_steps, "x0")
    noise = ProcessStack(lambda x_t, t, label: x_t, chain_of_steps, "epsilon")
    for model, expected in (
        (time, 701.0),
        (seen, 1 / np.sqrt(1 + between**2)),
        (noise, 1 - between / np.sqrt(1 + between**2)),
    ):
        np.testing.assert_allclose(
            model(x, between, None), [[expected]] * 2, rtol=1e-6, atol=1e-6
        )
    assert (time(x, 1e6, None) == 999).all() and (time(x, 1e-6, None) == 0).all()


def test_edm_predictions_are_v_predictions_of_whitened_data():
    """Salimans & Ho's v with the other sign, for ``(x0 - mean) / scale``."""
    scale, mean, sigma = 2.5, (1.0, -3.0), np.array([0.1, 1.0, 40.0])
    rng = np.random.default_rng(3)
    output = rng.normal(size=(3, 2)).astype(np.float32)
    x = rng.normal(size=(3, 2)) * np.sqrt(scale**2 + sigma[:, None] ** 2) + mean
    edm = ProcessStack(lambda *_: output, VE(), ScaledPrediction("edm", scale, mean))
    whitened = ProcessStack(lambda *_: -output, VP(), "v")
    expected = whitened(jnp.asarray((x - mean) / scale, jnp.float32), sigma / scale)
    x = jnp.asarray(x, jnp.float32)
    found = edm(x, sigma)
    np.testing.assert_allclose(
        found, scale * np.asarray(expected) + mean, rtol=1e-4, atol=1e-4
    )
    back = from_denoised(VE(), found, x, sigma, edm.prediction)
    np.testing.assert_allclose(back, output, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        to_denoised(VE(), back, x, sigma, edm.prediction), found, rtol=1e-4, atol=1e-4
    )


class Parts:
    """A backbone of 2 + 3 blocks: each writes its number; readout with a variance."""

    num_blocks, segments, num_labels, sample_shape = 5, (2, 3), 4, (2,)

    def embed(self, x_t, time, label):
        return jnp.zeros((len(x_t), 5)), (x_t, time)

    def segment_block(self, segment, index, hidden, context):
        number = 10 * (segment + 1) + jnp.asarray(index)
        place = (0, 2)[segment] + index
        return hidden.at[:, place].set(number.astype(hidden.dtype))

    def readout(self, hidden, context):
        x_t, total = context[0], hidden.sum(1, keepdims=True)
        return jnp.concatenate([x_t, hidden[:, 1:2], total], axis=1)


def test_a_backbone_becomes_a_stack_of_blocks():
    stack = ProcessStack(Parts(), VE(), "x0")
    assert is_block_stack(stack)
    assert (stack.num_blocks, stack.num_labels, stack.segments) == (5, 4, (2, 3))
    x = jnp.array([[0.5, -1.0]])
    hidden, context = stack.embed(x, 2.0, None)
    np.testing.assert_array_equal(context[1], [2.0])
    numbers = jax.jit(jax.vmap(lambda i: stack.block(i, hidden, context)))(
        jnp.arange(5)
    )
    np.testing.assert_array_equal(numbers.sum((1, 2)), [10, 11, 20, 21, 22])
    np.testing.assert_array_equal(np.nonzero(numbers.sum(1))[1], np.arange(5))
    np.testing.assert_array_equal(stack(x, 2.0), x)
    whole = dataclasses.replace(stack, return_variance=True)(x, 2.0)
    np.testing.assert_array_equal(whole, [[0.5, -1.0, 11.0, 84.0]])


def test_refusals():
    x = jnp.ones((2, 2))
    with pytest.raises(ValueError, match=r"x must have shape \[n, 2\], got \(2, 3\)"):
        ProcessStack(Parts(), VE(), "x0")(jnp.ones((2, 3)), 1.0)
    with pytest.raises(ValueError, match="sigma must be > 0"):
        ProcessStack(Parts(), VE(), "x0")(x, 0.0)
    plain = ProcessStack(lambda x_t, time, label: x_t, VE(), "x0", return_variance=True)
    with pytest.raises(ValueError, match="needs a network with a learned variance"):
        plain(x, 1.0)
    assert not is_block_stack(plain)
    with pytest.raises(ValueError, match="unknown kind .*ScaledPrediction"):
        ProcessStack(Parts(), VE(), "edm")
    with pytest.raises(ValueError, match="scale must be finite and above 0"):
        ScaledPrediction("edm", 0.0)
    with pytest.raises(TypeError, match="Parts is not. .* by ProcessStack"):
        evaluate_passes(Parts(), x, jnp.ones(()), Pass(None))
    wrong = Parts()
    wrong.segments = (2, 2)
    with pytest.raises(ValueError, match=r"add up to num_blocks=5, got \(2, 2\)"):
        ProcessStack(wrong, VE(), "x0")(x, 1.0)
