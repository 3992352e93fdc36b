"""The density of samplers: linear steps in closed form, and the flow by divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.flow_density import flow
from oracles.mixture64 import Mixture64
from oracles.toy_stack import ToyStack
from scipy.stats import multivariate_normal, norm

import gmm_guidance as gg
from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.exact import entropy, kl_divergence, nll, output_density
from gmm_guidance.exact.density import track_volume
from gmm_guidance.guidance import GuidanceRule, guidance_rule

FEW = gg.Karras(12, 0.01, 20.0)
GIVEN = dict(
    means=[[0.0, 0.0], [1.5, 1.0], [-1.0, 1.2]],
    covariances=np.array(
        [[[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.1], [-0.1, 0.8]], [[0.5, 0], [0, 0.6]]]
    ),
    labels=[0, 1, 0],
)


def linear_gain(variance, sigmas, solver):
    """What a solver makes of an offset under a Gaussian's denoiser, by its formula."""
    gain = 1.0
    for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = now / (variance + now**2)  # of (x - D) / sigma in x
        first = 1 + (after - now) * slope
        if solver == "heun" and after > 0:
            second = after / (variance + after**2) * first
            first = 1 + (after - now) * (slope + second) / 2
        gain *= first
    return gain


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_gaussian_stays_one(key, solver, dim):
    variances = np.array([0.5, 2.0, 1.2])[:dim]
    mean = np.array([1.0, -2.0, 0.5])[:dim]
    exact = gg.ExactDenoiser(gg.GaussianMixture(mean[None], variances[None]))
    output = output_density(key, exact, num_samples=50, schedule=FEW, solver=solver)
    gain = np.array([linear_gain(v, FEW.sigmas(), solver) for v in variances])
    truth = multivariate_normal(mean * (1 - gain), np.diag((20.0 * gain) ** 2))
    wanted = truth.logpdf(np.asarray(output.samples, np.float64))
    np.testing.assert_allclose(output.log_density, wanted, rtol=0, atol=2e-4)


def test_samples_are_those_of_guided_sample(key):
    options = dict(num_samples=64, guidance=gg.CFG(3.0), schedule=FEW)
    exact = gg.ExactDenoiser(gg.GaussianMixture(**GIVEN))
    output = output_density(key, exact, 1, batch_size=32, **options)
    wanted = gg.guided_sample(key, exact, 1, **options)
    np.testing.assert_allclose(output.samples, wanted, rtol=1e-4, atol=1e-5)


def test_fine_steps_reach_the_density_of_the_flow():
    x = 15.0 * np.random.default_rng(0).normal(size=(6, 2))
    wanted, log_density = flow(Mixture64.build(**GIVEN), x, 20.0, 1, 3.0)
    exact = gg.ExactDenoiser(gg.GaussianMixture(**GIVEN))
    fine = gg.Karras(200, 1e-3, 20.0)
    rule = gg.CFG(3.0)
    got, volume = track_volume(
        jax.random.key(0), exact, 1, x, guidance=rule, schedule=fine
    )
    start = norm.logpdf(x, scale=20.0).sum(1)
    np.testing.assert_allclose(got, wanted, atol=2e-3)
    np.testing.assert_allclose(start - volume, log_density, atol=5e-3)


def test_windows_and_masks_by_finite_differences(key):
    """A network with random masks, in a window: the Jacobian of guided_sample."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        model = jax.tree.map(lambda a: a.astype(float), ToyStack.random())
        rule = gg.Windowed(gg.S2Guidance(2.0, 0.5), (0.2, 0.8))
        x = 5.0 * np.random.default_rng(1).normal(size=(4, 2))
        options = dict(guidance=rule, schedule=gg.Karras(6, 0.05, 5.0))
        _, volume = track_volume(key, model, 1, x, **options)

        def end(x):
            points = jnp.asarray(x)
            return gg.guided_sample(
                key, model, 1, num_samples=4, initial=points, **options
            )

        h = 1e-6
        columns = [(end(x + h * e) - end(x - h * e)) / (2 * h) for e in np.eye(2)]
        wanted = np.linalg.slogdet(np.stack(columns, axis=-1))[1]
        np.testing.assert_allclose(volume, wanted, atol=1e-6)


def test_entropy_and_divergences_of_a_gaussian(key):
    exact = gg.ExactDenoiser(gg.GaussianMixture([[1.0, 0.0]], 0.5))
    output = output_density(key, exact, num_samples=20_000, schedule=FEW)
    gain = linear_gain(0.5, FEW.sigmas(), "heun")
    variance, shift = (20 * gain) ** 2, np.array([-gain, 0.0])
    found = entropy(output.log_density)
    wanted = 1 + np.log(2 * np.pi * variance)
    assert abs(found.mean - wanted) < 4 * found.standard_error
    assert found.standard_error == pytest.approx(1 / np.sqrt(20_000), rel=0.1)

    def target(x):
        return exact.mixture.log_prob(x)

    ratio = variance / 0.5
    divergence = 0.5 * (2 * ratio + shift @ shift / 0.5 - 2 - 2 * np.log(ratio))
    found = kl_divergence(output.log_density, output.samples, target)
    assert abs(found.mean - divergence) < 4 * found.standard_error + 1e-6
    score = nll(output.samples, target)
    assert abs(score.mean - wanted - divergence) < 4 * score.standard_error


@guidance_rule
class Remembering(GuidanceRule):
    def init(self, x):
        return jnp.zeros_like(x)

    def passes(self, label, draws):
        return (Pass(label),)

    def combine(self, outputs, x, sigma, state):
        return outputs[0], outputs[0]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(solver="dpmpp_2m"), "carries values"),
        (dict(solver="edm_stochastic"), "adds noise"),
        (dict(guidance=Remembering()), "carry a state"),
        (dict(num_samples=0), "num_samples"),
        (dict(sample_shape=(2, 2)), "vectors"),
        (dict(denoiser=lambda x, sigma, label: x), "unknown"),
    ],
)
def test_what_is_no_map_of_vectors_is_refused(key, change, message):
    given = dict(denoiser=gg.ExactDenoiser(gg.GaussianMixture(**GIVEN)), num_samples=2)
    with pytest.raises(ValueError, match=message):
        output_density(key, **(given | change))
