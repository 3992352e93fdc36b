"""``ProcessDenoiser``: one denoiser, whatever the process and the prediction."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.clocks import CLOCKS, EVERY_PROCESS, chain

from gmm_guidance.diffusion.ddpm import DDPM
from gmm_guidance.diffusion.parameterization import KINDS, ProcessDenoiser
from gmm_guidance.diffusion.process import VE, VP, Process

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
            "eps": eps,
            "v": alpha * eps - std * x0,
            "velocity": alpha_rate * x0 + std_rate * eps,
            "score": score,
        }[self.kind]


def wrapped(process, kind):
    network = GaussianNetwork(jnp.asarray(MEAN), process, kind)
    return ProcessDenoiser(network, process, kind)


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
    models = {kind: wrapped(process, kind) for kind in KINDS}
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
        results = evaluate({kind: wrapped(process, kind) for kind in KINDS}, x, sigma)
    for kind, denoised in results.items():
        np.testing.assert_allclose(
            denoised, exact(x, sigma[:, None]), rtol=1e-8, err_msg=kind
        )


@pytest.mark.parametrize("process", ["vp", "ddpm"])
def test_denoiser_under_vmap_and_grad(process):
    denoiser = wrapped(CLOCKS[process][0], "eps")
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
    np.testing.assert_allclose(gradient.model.mean, 1 / (1 + STD**2), rtol=1e-4)


def test_denoiser_hands_on_the_label_and_what_the_network_tells():
    class Network:
        sample_shape = (2,)
        num_labels = 3

        def __call__(self, x_t, t, label):
            return x_t * 0 + label[:, None].astype(x_t.dtype)

    denoiser = ProcessDenoiser(Network(), VE(), "x0")
    assert (denoiser.sample_shape, denoiser.num_labels) == ((2,), 3)
    denoised = denoiser(jnp.ones((2, 2)), 1.0, jnp.array([2, 0]))
    np.testing.assert_array_equal(denoised, [[2, 2], [0, 0]])
    bare = ProcessDenoiser(lambda x_t, t, label: x_t, VE(), "x0")
    assert bare.sample_shape is None and bare.num_labels is None


def test_ddpm_network_sees_the_times_of_the_chain():
    """An ``x0`` network's answer is handed on as it is: here, what the network saw."""
    x, level = jnp.ones((2, 1)), DDPM().sigmas()[700]
    for network, expected in (
        (lambda x_t, t, label: t[:, None], 700.0),
        (lambda x_t, t, label: x_t, np.sqrt(chain()[700])),
    ):
        denoise = jax.jit(ProcessDenoiser(network, DDPM(), "x0"))
        np.testing.assert_allclose(denoise(x, level, None), [[expected]] * 2, rtol=1e-5)
