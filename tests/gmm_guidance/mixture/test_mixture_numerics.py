"""Mixtures where arithmetic is hard, and under JAX's transformations."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.mixture64 import Mixture64

from gmm_guidance.mixture import closed_forms
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture

# --- in float32, beside float64


@pytest.fixture(scope="module")
def crowd():
    """2,000 anisotropic components, long and thin by 20 to 1, some of weight 1e-12."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, np.pi, 2000)
    along = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    covariances = (
        0.2**2 * along[:, :, None] * along[:, None, :]
        + 0.01**2 * across[:, :, None] * across[:, None, :]
    )
    weights = rng.uniform(0.5, 1.5, 2000)
    weights[::100] = 0.0
    weights = weights / weights.sum() * (1 - 20e-12)
    weights[::100] = 1e-12
    means = rng.uniform(-1, 1, (2000, 2)).astype(np.float32)
    return means, covariances, weights, np.arange(2000) % 2


@pytest.mark.parametrize("sigma", [0.002, 0.3, 80.0])
def test_2000_components_in_float32_are_those_of_float64(crowd, sigma):
    rng = np.random.default_rng(1)
    inside = rng.uniform(-1, 1, (20, 2))
    # 50 standard deviations of the widest axis away from every mode, in all directions.
    angle = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    far = (1.5 + 50 * 0.2) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x = np.concatenate([inside, far, sigma * rng.normal(size=(8, 2))])
    x = x.astype(np.float32)
    mixture, truth = GaussianMixture(*crowd), Mixture64.build(*crowd)
    exact = x.astype(np.float64)
    log_p = truth.log_prob(exact, sigma)
    np.testing.assert_allclose(mixture.log_prob(x, sigma), log_p, rtol=3e-6, atol=1e-5)
    score = truth.score(exact, sigma)
    error = np.linalg.norm(np.asarray(mixture.score(x, sigma)) - score, axis=1)
    assert (error < 1e-4 * np.linalg.norm(score, axis=1) + 1e-7).all()
    denoised = np.asarray(mixture.denoise(x, sigma))
    np.testing.assert_allclose(denoised, truth.denoise(exact, sigma), atol=2e-5)


@pytest.mark.parametrize("sigma", [0.0, 0.002, 80.0])
def test_50_standard_deviations_from_every_mode(sigma):
    """Where a product of densities is 0 / 0; also one mode of weight 1e-12."""
    given = [[-4.0], [4.0], [30.0]], [1.0, 0.25, 1.0], [0.5, 0.5 - 1e-12, 1e-12]
    mixture, truth = GaussianMixture(*given), Mixture64.build(*given)
    x = np.array([[-1000.0], [-54.5], [54.5], [80.0], [1000.0]], np.float32)
    exact = x.astype(np.float64)
    log_p = truth.log_prob(exact, sigma)
    assert sigma > 1 or log_p.max() < -300  # far below float32's smallest number
    np.testing.assert_allclose(mixture.log_prob(x, sigma), log_p, rtol=1e-6)
    score = truth.score(exact, sigma)
    np.testing.assert_allclose(mixture.score(x, sigma), score, rtol=2e-5)
    denoised = truth.denoise(exact, sigma)
    np.testing.assert_allclose(mixture.denoise(x, sigma), denoised, rtol=2e-5)
    covariance = np.asarray(mixture.posterior_covariance(x, sigma))
    assert (covariance >= 0).all() and np.isfinite(covariance).all()
    gradient = jax.grad(lambda x: mixture.log_prob(x, sigma).sum())(jnp.asarray(x))
    np.testing.assert_allclose(gradient, score, rtol=2e-5)


def test_a_class_of_weight_1e_12_is_as_good_as_any():
    given = [[-1.0], [2.0]], 0.25, [1 - 1e-12, 1e-12], [0, 1]
    mixture = GaussianMixture(*given)
    x = np.linspace(-60, 60, 9)[:, None].astype(np.float32)
    alone = Mixture64.build([[2.0]], 0.25)
    rare = np.ones(9, int)  # one label for each sample: no components are left out
    log_p = mixture.log_prob(x, 0.1, rare)
    wanted = alone.log_prob(x.astype(float), 0.1)
    np.testing.assert_allclose(log_p, wanted, rtol=1e-6, atol=1e-5)
    for label in (1, rare):
        denoised = mixture.denoise(x, 0.1, label)
        wanted = alone.denoise(x.astype(float), 0.1)
        np.testing.assert_allclose(denoised, wanted, rtol=1e-5)
    # Bayes: the likelihoods' ratio overcomes the prior's only far on its side.
    posterior = np.asarray(mixture.label_posterior(x, 0.1))
    wanted = Mixture64.build(*given).label_posterior(x.astype(float), 0.1)
    np.testing.assert_allclose(posterior, wanted, rtol=1e-3, atol=1e-30)
    assert posterior[0, 1] < 1e-12 < 0.99 < posterior[-1, 1]


# --- in parts


@pytest.fixture
def small_chunks(monkeypatch):
    """At most 3 samples at a time for mixtures of 4 components in the plane."""
    closed_forms.map_samples.clear_cache()
    monkeypatch.setattr(closed_forms, "_CHUNK_ELEMENTS", 24)
    yield
    closed_forms.map_samples.clear_cache()


def test_samples_in_chunks_are_the_same(request):
    rng = np.random.default_rng(0)
    mixture = GaussianMixture(
        rng.normal(size=(4, 2)), rng.uniform(0.1, 1, (4, 2)), labels=np.arange(4) % 2
    )
    x = rng.normal(size=(2, 4, 2))  # 8 samples: two chunks of 3, and a rest
    sigma, label = rng.uniform(0.1, 2, (2, 4)), np.arange(8).reshape(2, 4) % 3

    def values():
        return np.asarray(mixture.denoise_rows(x, sigma, (None, label)))

    whole = values()
    request.getfixturevalue("small_chunks")
    program = jax.jit(lambda x: mixture.log_prob(x, 1.0)).lower(x)
    assert "while" in program.as_text()  # it is a loop now
    assert whole.shape == (2, 2, 4, 2)
    np.testing.assert_allclose(values(), whole, rtol=1e-5, atol=1e-6)


MEMORY_SCRIPT = """
import resource
import jax, numpy as np
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture

rng = np.random.default_rng(0)
root = rng.normal(size=(1000, 2, 2))
mixture = GaussianMixture(
    rng.normal(size=(1000, 2)), 0.01 * root @ root.swapaxes(1, 2) + 0.01 * np.eye(2)
)
x = rng.normal(size=(1_000_000, 2)).astype(np.float32)
score = mixture.score(x, 0.1)
assert np.isfinite(score).all()
samples, _ = mixture.sample(jax.random.key(0), 1_000_000)
assert np.isfinite(samples).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_a_million_points_and_1000_components_stay_under_2_gb():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    assert float(done.stdout) < 2.0


# --- transformations


def central_difference(function, value, step=1e-5):
    """Derivative of a scalar function, one entry after another."""
    value = np.array(value, np.float64)
    slope = np.empty_like(value)
    for index in np.ndindex(value.shape):
        up, down = value.copy(), value.copy()
        up[index] += step
        down[index] -= step
        slope[index] = (function(up) - function(down)) / (2 * step)
    return slope


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
def test_gradients_with_respect_to_the_parameters(kind):
    """Beside finite differences of the float64 reference, not of the library."""
    rng = np.random.default_rng(3)
    means, x = rng.normal(size=(2, 2)), rng.normal(size=(3, 2))
    root = rng.normal(size=(2, 2, 2))
    covariances = {
        "isotropic": np.array([0.4, 0.9]),
        "diagonal": rng.uniform(0.3, 1.0, (2, 2)),
        "full": root @ root.swapaxes(1, 2) + 0.2 * np.eye(2),
    }[kind]
    weights = np.array([0.3, 0.7])

    def total(build, means, covariances, weights):
        return build(means, covariances, weights).log_prob(x, 0.5).sum()

    with jax.enable_x64(True):
        gradients = jax.jit(jax.grad(lambda *p: total(GaussianMixture, *p), (0, 1, 2)))(
            means, covariances, weights
        )

    def reference(*given):
        return Mixture64.build(*given).log_prob(x, 0.5).sum()

    wanted = central_difference(lambda m: reference(m, covariances, weights), means)
    np.testing.assert_allclose(gradients[0], wanted, rtol=1e-6, atol=1e-8)
    wanted = central_difference(lambda c: reference(means, c, weights), covariances)
    got = np.asarray(gradients[1])
    if kind == "full":  # only symmetric changes mean anything
        got, wanted = got + got.swapaxes(1, 2), wanted + wanted.swapaxes(1, 2)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-8)
    # Weights are normalized: only their differences count.
    raw = central_difference(lambda w: reference(means, covariances, w), weights)
    wanted = raw - (raw @ weights)
    np.testing.assert_allclose(gradients[2], wanted, rtol=1e-6, atol=1e-8)


def test_gradient_through_the_denoiser_is_finite_at_repeated_eigenvalues():
    """Scalar covariances have no eigenvectors to differentiate."""
    x = jnp.ones((1, 3))

    def loss(variance):
        mixture = GaussianMixture(jnp.zeros((2, 3)), variance)
        return mixture.denoise(x, 1.0).sum()

    # D = v / (v + 1) x, so dD/dv = x / (v + 1)^2.
    np.testing.assert_allclose(jax.grad(loss)(0.5), 3 / 1.5**2, rtol=1e-5)


def test_a_mixture_is_a_pytree_that_vmap_maps_over():
    rng = np.random.default_rng(0)
    means, variances = rng.normal(size=(3, 2, 2)), rng.uniform(0.2, 1, (3, 2, 2))
    x = rng.normal(size=(4, 2)).astype(np.float32)
    each = [
        GaussianMixture(m, v, labels=[0, 1])
        for m, v in zip(means, variances, strict=True)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    assert isinstance(stacked, GaussianMixture) and stacked.num_labels == 2
    swept = jax.jit(jax.vmap(lambda m: m.score(x, 0.5, 1)))(stacked)
    alone = np.stack([m.score(x, 0.5, 1) for m in each])
    np.testing.assert_allclose(swept, alone, rtol=1e-5, atol=1e-6)
    leaves, structure = jax.tree.flatten(each[0])
    again = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(again.score(x, 0.5, 1), alone[0])


def test_noise_levels_and_labels_may_be_traced_and_mapped():
    mixture = GaussianMixture([[-1.0], [2.0]], 0.3, labels=[0, 1])
    x = np.linspace(-2, 2, 4, dtype=np.float32)[:, None]
    levels, labels = np.array([0.1, 1.0, 4.0]), np.array([0, 1, 2])
    swept = jax.vmap(lambda s, c: mixture.denoise(x, s, c))(levels, labels)
    for row, sigma, label in zip(swept, levels, labels, strict=True):
        alone = mixture.denoise(x, sigma, int(label))
        np.testing.assert_allclose(row, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kind, dim",
    [
        ("scalar", 300),
        ("diagonal", 300),
        ("far apart", 300),
        ("full", 64),
    ],
)
def test_many_dimensions_against_float64(kind, dim):
    """Each log density is of the order of d, and rounded to float32 there."""
    rng, sigma = np.random.default_rng(dim), 80.0
    means = rng.normal(size=(6, dim)).astype(np.float32)
    if kind == "scalar":
        covariances = np.full(6, 0.25)
    elif kind == "full":
        root = rng.normal(size=(6, dim, dim)) / dim**0.5
        covariances = 0.2 * root @ root.swapaxes(1, 2) + 0.1 * np.eye(dim)
    else:
        spread = 0.3 if kind == "diagonal" else 3.0
        covariances = np.exp(spread * rng.normal(size=(6, dim)))
    x = (means[:3] + sigma * rng.normal(size=(3, dim))).astype(np.float32)
    given = means, covariances.astype(np.float32), np.full(6, 1 / 6), np.zeros(6, int)
    mixture, truth = GaussianMixture(*given), Mixture64.build(*given)
    expected = truth.denoise(x.astype(float), sigma)
    size = max(1.0, np.abs(expected).max() / 10)
    error = np.abs(np.asarray(mixture.denoise(x, sigma)) - expected).max()
    assert error < 1e-5 * size
    log_p = truth.log_prob(x.astype(float), sigma)
    np.testing.assert_allclose(mixture.log_prob(x, sigma), log_p, rtol=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_gradients_in_many_dimensions(full):
    rng = np.random.default_rng(0)
    means = rng.normal(size=(4, 12)).astype(np.float32)
    spread = np.exp(rng.normal(size=(4, 12))).astype(np.float32)
    if full:
        spread = np.stack([np.diag(v) for v in spread])
    mixture = GaussianMixture(means, spread)
    x = rng.normal(size=(3, 12)).astype(np.float32)
    slope_of = jax.jit(jax.grad(lambda x, sigma: mixture.log_prob(x, sigma).sum()))
    for sigma in (1e-3, 0.5, 30.0):
        slope = slope_of(x, sigma)
        np.testing.assert_allclose(slope, mixture.score(x, sigma), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_derivatives_by_equal_eigenvalues_are_refused(compiled):
    x, means = jnp.array([[1.0, 2.0]]), jnp.array([[-4.0, 0.0], [4.0, 0.0]])

    def log_prob(covariances):
        return GaussianMixture(means, covariances).log_prob(x, 0.5).sum()

    slope = jax.jit(jax.grad(log_prob)) if compiled else jax.grad(log_prob)
    with pytest.raises(Exception, match="two of its eigenvalues are equal"):
        jax.block_until_ready(slope(jnp.stack([jnp.eye(2)] * 2)))
        jax.effects_barrier()
    start = jnp.stack([jnp.diag(jnp.array([1.0, 1.1]))] * 2)
    step = 1e-2 * jnp.zeros_like(start).at[0, 0, 1].set(1.0).at[0, 1, 0].set(1.0)
    numeric = (log_prob(start + step) - log_prob(start - step)) / 2
    np.testing.assert_allclose((slope(start) * step).sum(), numeric, rtol=1e-2)
