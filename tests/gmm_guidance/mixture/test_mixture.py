"""The closed forms of a mixture against SciPy, autodiff, quadrature and Monte Carlo."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.mixture64 import Mixture64
from scipy.stats import multivariate_normal

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture

# Every notation of the covariances; above 8 dimensions another code path is taken.
# (Eigenvectors in the plane may be symmetric, which hides a transposition.)
CASES = [
    ("isotropic", 1),
    ("full", 3),
    ("diagonal", 5),
    ("scalar", 12),
    ("full", 12),
]


def parameters(kind, dim, count=4, num_labels=2, seed=0):
    """Components a standard deviation or two apart, of unequal weight."""
    rng = np.random.default_rng([seed, dim, count])
    root = rng.normal(size=(count, dim, dim)) / np.sqrt(dim)
    covariances = {
        "scalar": 0.6,
        "isotropic": rng.uniform(0.2, 1.5, count),
        "diagonal": rng.uniform(0.2, 1.5, (count, dim)),
        "full": root @ root.swapaxes(1, 2) + 0.1 * np.eye(dim),
    }[kind]
    weights = rng.uniform(0.2, 1.0, count)
    means = 1.5 * rng.normal(size=(count, dim))
    return means, covariances, weights / weights.sum(), np.arange(count) % num_labels


class Values(NamedTuple):
    """All closed forms, and the derivatives that they are said to be."""

    log_prob: jax.Array
    gradient: jax.Array
    score: jax.Array
    denoised: jax.Array
    jacobian: jax.Array
    covariance: jax.Array
    label_posterior: jax.Array
    responsibilities: jax.Array


@jax.jit
def everything(mixture, x, sigma, label):
    def log_prob(x, label):
        return mixture.log_prob(x[None], sigma, label[None])[0]

    def denoise(x, label):
        denoised = mixture.denoise(x[None], sigma, label[None])[0]
        return denoised, denoised

    log_p, gradient = jax.vmap(jax.value_and_grad(log_prob))(x, label)
    jacobian, denoised = jax.vmap(jax.jacfwd(denoise, has_aux=True))(x, label)
    return Values(
        log_p,
        gradient,
        mixture.score(x, sigma, label),
        denoised,
        jacobian,
        mixture.posterior_covariance(x, sigma, label),
        mixture.label_posterior(x, sigma),
        mixture.responsibilities(x, sigma, label),
    )


class Case(NamedTuple):
    truth: Mixture64
    x: np.ndarray
    label: np.ndarray
    sigma: float
    values: Values


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0]}-{c[1]}d")
def case(request):
    """One mixture in float64 at 9 points, with labels 0, 1 and 2, which is none."""
    given = parameters(*request.param)
    rng = np.random.default_rng(1)
    x, label = 2.0 * rng.normal(size=(9, request.param[1])), np.arange(9) % 3
    sigma = 0.7
    with jax.enable_x64(True):
        values = everything(GaussianMixture(*given), x, sigma, label)
    return Case(Mixture64.build(*given), x, label, sigma, values)


def by_label(case, method):
    """The reference's rows, each under its own label."""
    rows = [
        method(case.x[i : i + 1], case.sigma, label)[0]
        for i, label in enumerate(case.label)
    ]
    return np.stack(rows)


# --- identities


def test_log_prob_is_scipys(case):
    wanted = []
    for x, label in zip(case.x, case.label, strict=True):
        part = case.truth.part(label)
        each = zip(part.weights, part.means, part.covariances, strict=True)
        noise = case.sigma**2 * np.eye(len(x))
        terms = [w * multivariate_normal.pdf(x, m, s + noise) for w, m, s in each]
        wanted.append(np.log(sum(terms)))
    np.testing.assert_allclose(case.values.log_prob, wanted, rtol=1e-10)


def test_score_is_the_gradient_of_log_prob(case):
    score = case.values.score
    assert score.dtype == jnp.float64
    np.testing.assert_allclose(score, case.values.gradient, rtol=1e-9, atol=1e-11)
    wanted = by_label(case, case.truth.score)
    np.testing.assert_allclose(score, wanted, rtol=1e-9, atol=1e-11)


def test_denoised_is_tweedies(case):
    wanted = case.x + case.sigma**2 * np.asarray(case.values.gradient)
    np.testing.assert_allclose(case.values.denoised, wanted, rtol=1e-9, atol=1e-11)


def test_posterior_covariance_is_the_jacobian_of_the_denoiser(case):
    wanted = case.sigma**2 * np.asarray(case.values.jacobian)
    np.testing.assert_allclose(case.values.covariance, wanted, rtol=1e-8, atol=1e-10)


def test_label_posterior_is_bayes(case):
    posterior = np.asarray(case.values.label_posterior)
    wanted = case.truth.label_posterior(case.x, case.sigma)
    np.testing.assert_allclose(posterior, wanted, rtol=1e-9)
    np.testing.assert_allclose(posterior.sum(axis=1), 1.0, rtol=1e-12)


def test_responsibilities_sum_to_one_within_a_label(case):
    r = np.asarray(case.values.responsibilities)
    np.testing.assert_allclose(r.sum(axis=1), 1.0, rtol=1e-12)
    others = case.truth.labels[None, :] != case.label[:, None]
    assert (r[others & (case.label < 2)[:, None]] == 0).all()
    # Over all labels they sum to the labels' probabilities.
    free = case.label == 2
    np.testing.assert_allclose(
        r[free][:, case.truth.labels == 1].sum(axis=1),
        case.values.label_posterior[free, 1],
        rtol=1e-12,
    )


# --- quadrature on a line


@pytest.mark.parametrize("sigma", [0.05, 5.0])
def test_posterior_moments_by_quadrature(sigma, label=1):
    given = parameters("isotropic", 1)
    x = np.linspace(-4, 4, 7)
    x0 = np.linspace(-14, 14, 40_001)
    prior = np.exp(Mixture64.build(*given).log_prob(x0[:, None], 0.0, label))
    posterior = prior * np.exp(-0.5 * ((x[:, None] - x0) / sigma) ** 2)
    posterior /= posterior.sum(axis=1, keepdims=True)
    mean = posterior @ x0
    variance = posterior @ x0**2 - mean**2
    with jax.enable_x64(True):
        mixture = GaussianMixture(*given)
        denoised = mixture.denoise(x[:, None], sigma, label)
        covariance = mixture.posterior_covariance(x[:, None], sigma, label)
    np.testing.assert_allclose(denoised[:, 0], mean, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(covariance[:, 0, 0], variance, rtol=1e-7)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_density_integrates_to_one_about_its_moments(sigma, label=1):
    mixture = GaussianMixture(*parameters("isotropic", 1))
    x = np.linspace(-12, 12, 4001)
    density = np.exp(np.asarray(mixture.log_prob(x[:, None], sigma, label), float))
    step = x[1] - x[0]
    assert density.sum() * step == pytest.approx(1, abs=2e-6)
    mean = (density * x).sum() * step
    np.testing.assert_allclose(mixture.mean(label), [mean], atol=1e-5)
    variance = (density * (x - mean) ** 2).sum() * step
    noiseless = mixture.covariance(label)[0, 0]
    np.testing.assert_allclose(noiseless + sigma**2, variance, rtol=1e-4)


# --- Monte Carlo


@pytest.fixture(scope="module")
def noisy_draws():
    """Clean and noisy samples of a mixture in the plane, by NumPy."""
    given = parameters("full", 2)
    rng = np.random.default_rng(5)
    x0, label = Mixture64.build(*given).draw(rng, 200_000)
    return given, x0, label, x0 + 0.8 * rng.normal(size=x0.shape)


def standard_scores(residual, x):
    """Mean of the residual against functions of x, in standard errors."""
    tests = [np.ones(len(x)), np.sin(x[:, 0]), x[:, 0] * x[:, 1], x[:, 1] > 0.5]
    products = np.stack([residual * f for f in tests], axis=1)
    return products.mean(axis=0) / (products.std(axis=0) / np.sqrt(len(x)))


@pytest.mark.parametrize("conditional", [False, True])
def test_what_the_denoiser_leaves_is_orthogonal_to_its_input(noisy_draws, conditional):
    """E[(x0 - D) f(x)] = 0 for every f characterises the posterior mean."""
    given, x0, label, x = noisy_draws
    chosen = label if conditional else None
    mixture = GaussianMixture(*given)
    residual = x0 - np.asarray(mixture.denoise(x, 0.8, chosen), float)
    for axis in range(2):
        assert np.abs(standard_scores(residual[:, axis], x)).max() < 4
    # The test has power: a noise level 5 % off is found.
    off = x0 - np.asarray(mixture.denoise(x, 0.84, chosen), float)
    assert np.abs(standard_scores(off[:, 0], x)).max() > 6


def test_spread_around_the_denoised_is_the_posterior_covariance(noisy_draws):
    given, x0, label, x = noisy_draws
    mixture = GaussianMixture(*given)
    residual = x0 - np.asarray(mixture.denoise(x, 0.8, label), float)
    covariance = np.asarray(mixture.posterior_covariance(x, 0.8, label), float)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        excess = residual[:, i] * residual[:, j] - covariance[:, i, j]
        assert np.abs(standard_scores(excess, x)).max() < 4
    assert np.abs(standard_scores(residual[:, 0] ** 2, x)).max() > 50


# --- the parameters


@pytest.mark.parametrize("kind", ["isotropic", "full"])
def test_moments_and_parameters_as_given(kind):
    given = parameters(kind, 3)
    mixture, truth = GaussianMixture(*given), Mixture64.build(*given)
    assert repr(mixture) == "GaussianMixture(num_components=4, dim=3, num_labels=2)"
    np.testing.assert_allclose(
        mixture.covariances, truth.covariances, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(mixture.weights, truth.weights, rtol=1e-6)
    x, label = truth.draw(np.random.default_rng(0), 100_000)
    for chosen, own in ((None, x), (1, x[label == 1])):
        np.testing.assert_allclose(mixture.mean(chosen), own.mean(0), atol=0.04)
        np.testing.assert_allclose(
            mixture.covariance(chosen), np.cov(own.T), rtol=0.05, atol=0.05
        )
    rms = np.sqrt(x.var(axis=0).mean())
    np.testing.assert_allclose(mixture.scale, rms, rtol=0.02)
