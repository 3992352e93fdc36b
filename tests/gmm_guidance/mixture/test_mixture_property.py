"""Identities that hold for any mixture, tried on random ones by Hypothesis."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture

# Shapes are few and fixed, since each is a program: numbers are what varies.
COUNT, DIM, POINTS, LABELS = 4, 3, 2, (0, 1, 1, 0)
FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class Draw(NamedTuple):
    """A mixture's parameters, points, and a noise level."""

    means: np.ndarray
    covariances: np.ndarray
    weights: np.ndarray
    x: np.ndarray
    sigma: float

    def mixture(self) -> GaussianMixture:
        return GaussianMixture(
            self.means, self.covariances, self.weights, np.array(LABELS)
        )


def numbers(shape, limit):
    return arrays(np.float64, shape, elements=st.floats(-limit, limit, width=32))


@st.composite
def draws(draw):
    """Means up to 20, deviations of 0.05 to 5, weights down to 1e-9."""
    log_deviations = draw(arrays(float, (COUNT, DIM), elements=st.floats(-3, 1.6)))
    rotations = np.linalg.qr(draw(numbers((COUNT, DIM, DIM), 1)) + np.eye(DIM) * 3)[0]
    covariances = np.einsum(
        "kij,kj,klj->kil", rotations, np.exp(2 * log_deviations), rotations
    )
    log_weights = draw(arrays(float, COUNT, elements=st.floats(-20, 0)))
    weights = np.exp(log_weights) / np.exp(log_weights).sum()
    sigma = float(np.exp(draw(st.floats(np.log(0.01), np.log(80.0)))))
    x = draw(numbers((POINTS, DIM), 30))
    return Draw(draw(numbers((COUNT, DIM), 20)), covariances, weights, x, sigma)


class Values(NamedTuple):
    log_prob: jax.Array
    gradient: jax.Array
    score: jax.Array
    denoised: jax.Array
    covariance: jax.Array
    jacobian: jax.Array
    by_label: jax.Array  # denoised, [label, n, d]
    label_posterior: jax.Array


@jax.jit
def evaluate(mixture: GaussianMixture, x: jax.Array, sigma: float) -> Values:
    def denoise(x):
        denoised = mixture.denoise(x[None], sigma)[0]
        return denoised, denoised

    def log_prob(x):
        return mixture.log_prob(x[None], sigma)[0]

    log_p, gradient = jax.vmap(jax.value_and_grad(log_prob))(x)
    jacobian, denoised = jax.vmap(jax.jacfwd(denoise, has_aux=True))(x)
    return Values(
        log_prob=log_p,
        gradient=gradient,
        score=mixture.score(x, sigma),
        denoised=denoised,
        covariance=mixture.posterior_covariance(x, sigma),
        jacobian=jacobian,
        by_label=mixture.denoise_rows(x, sigma, tuple(map(jnp.asarray, range(2)))),
        label_posterior=mixture.label_posterior(x, sigma),
    )


def values_of(drawn: Draw) -> Values:
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, evaluate(drawn.mixture(), drawn.x, drawn.sigma))


def assert_close(got, wanted, size, tolerance=1e-9):
    """Equal to rounding of numbers as large as ``size``."""
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.max(size))


@FEW
@given(draws())
def test_score_denoiser_and_covariance_belong_together(drawn):
    values = values_of(drawn)
    assert all(np.isfinite(v).all() for v in values)
    size = 1 + np.abs(values.score)
    assert_close(values.score, values.gradient, size)
    # Tweedie: terms as large as x and sigma^2 score may cancel.
    second = drawn.sigma**2 * values.score
    assert_close(values.denoised, drawn.x + second, 50 + np.abs(second))
    covariance = values.covariance
    assert_close(
        covariance, drawn.sigma**2 * values.jacobian, 1 + np.abs(covariance), 1e-7
    )


@FEW
@given(draws())
def test_posterior_covariance_is_positive_semidefinite(drawn):
    covariance = values_of(drawn).covariance
    assert_close(covariance, covariance.swapaxes(1, 2), np.abs(covariance), 1e-12)
    lowest = np.linalg.eigvalsh(covariance).min(axis=1)
    assert (lowest >= -1e-12 * np.abs(covariance).max(axis=(1, 2))).all()
    # Positive definite, in fact: no less spread than the narrowest component leaves.
    narrow = np.linalg.eigvalsh(drawn.covariances).min()
    least = narrow * drawn.sigma**2 / (narrow + drawn.sigma**2)
    assert (lowest >= 0.999 * least - 1e-9 * np.abs(covariance).max()).all()


@FEW
@given(draws())
def test_labels_average_to_no_label(drawn):
    """E[x0 | x] = sum_c p(c | x) E[x0 | x, c]."""
    values = values_of(drawn)
    posterior = values.label_posterior
    assert_close(posterior.sum(axis=1), 1.0, 1.0, 1e-12)
    averaged = np.einsum("nc,cnd->nd", posterior, values.by_label)
    assert_close(values.denoised, averaged, 50, 1e-10)


@FEW
@given(draws(), st.floats(-50, 50))
def test_everything_moves_with_a_translation(drawn, shift):
    still = values_of(drawn)
    moved = values_of(drawn._replace(means=drawn.means + shift, x=drawn.x + shift))
    # Rounding of the coordinates is magnified by the steepness of the score.
    narrow = np.linalg.eigvalsh(drawn.covariances).min() + drawn.sigma**2
    steep = 100 / narrow
    assert_close(moved.score, still.score, 1 + steep + np.abs(still.score), 1e-8)
    assert_close(moved.denoised - shift, still.denoised, 200, 1e-7)
    assert_close(moved.log_prob, still.log_prob, 1 + np.abs(still.log_prob), 1e-9)


@FEW
@given(draws(), st.floats(0.1, 10))
def test_everything_scales_with_the_unit_of_length(drawn, unit):
    still = values_of(drawn)
    scaled = values_of(
        Draw(
            unit * drawn.means,
            unit**2 * drawn.covariances,
            drawn.weights,
            unit * drawn.x,
            unit * drawn.sigma,
        )
    )
    assert_close(scaled.denoised / unit, still.denoised, 50, 1e-8)
    assert_close(scaled.score * unit, still.score, 1 + np.abs(still.score), 1e-8)
    jacobian = drawn.x.shape[1] * np.log(unit)
    size = 1 + np.abs(still.log_prob)
    assert_close(scaled.log_prob + jacobian, still.log_prob, size, 1e-9)
