"""Every parameter and argument that a mixture refuses, and what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture

MEANS = [[0.0, 0.0], [1.0, 2.0], [3.0, -1.0]]
EYE = np.eye(2)


@pytest.mark.parametrize(
    "means, message",
    [
        ([0.0, 1.0], r"shape \[num_components, dim\].*got \(2,\)"),
        (np.zeros((0, 2)), r"both at least 1, got \(0, 2\)"),
        (np.zeros((2, 0)), r"both at least 1, got \(2, 0\)"),
        (np.zeros((2, 2, 1)), r"got \(2, 2, 1\)"),
        ([[0.0], [np.nan]], r"means must be finite; components \[1\]"),
        ([[np.inf, 0.0], [0.0, 1.0]], r"means must be finite; components \[0\]"),
    ],
)
def test_bad_means(means, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(means, 1.0)


@pytest.mark.parametrize(
    "covariances, message",
    [
        (0.0, "positive definite and finite; all components has variance 0"),
        (-1.0, "all components has variance -1"),
        (np.nan, "variance nan"),
        (1e-60, "variance 1e-60"),  # which is zero in float32
        ([1.0, 0.0, 1.0], "component 1 has variance 0"),
        ([1.0, 1.0, np.inf], "component 2 has variance inf"),
        (np.array([[1.0, 1], [1, 1], [1, -2]]), "component 2 has variance -2"),
        (
            [1.0, 1.0],
            r"scalar or have shape \[3\], \[3, 2\] or \[3, 2, 2\].*got \(2,\)",
        ),
        (np.ones((2, 3)), r"got \(2, 3\)"),
        (np.ones((3, 3, 3)), r"got \(3, 3, 3\)"),
        (np.stack([EYE, EYE, EYE + np.nan]), "must be finite; found NaN"),
        (
            np.stack([EYE, EYE + [[0, 0.5], [0, 0]], EYE]),
            "symmetric; component 1 differs from its transpose by 0.5. Symmetrize",
        ),
        (
            np.stack([EYE, EYE, np.array([[1.0, 2.0], [2.0, 1.0]])]),
            "component 2 has smallest eigenvalue -1. Add a small multiple",
        ),
        (np.stack([np.ones((2, 2)), EYE, EYE]), "component 0 has smallest eigenvalue"),
    ],
)
def test_bad_covariances(covariances, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(MEANS, covariances)


@pytest.mark.parametrize(
    "weights, message",
    [
        ([0.5, 0.5], r"weights must have shape \[3\].*got \(2,\)"),
        (1.0, r"got \(\)"),
        ([0.5, 0.7, -0.2], "positive and finite; weight 2 is -0.2"),
        ([0.5, 0.0, 0.5], "weight 1 is 0. Remove components"),
        ([0.5, 0.5, np.nan], "weight 2 is nan"),
        ([0.5, 0.2, 0.2], r"sum to one; they sum to 0.9, off by -0.1. Divide"),
        ([1.0, 1.0, 1.0], r"they sum to 3, off by \+2"),
        ([0.5, 0.25, 0.2501], r"sum to 1.0001, off by \+0.0001"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(MEANS, 1.0, weights)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 1], r"3 integers, one for each component, got shape \(2,\)"),
        ([0.0, 1.0, 1.0], "3 integers.*dtype float64"),
        ([True, False, True], "3 integers.*dtype bool"),
        ([0, -1, 1], "labels must be 0 or more, got -1"),
        ([0, 2, 2], r"every label in 0..2 needs a component; label 1 has none"),
        ([1, 1, 1], "label 0 has none. Number the classes without gaps"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(MEANS, 1.0, labels=labels)


def test_labels_may_not_be_traced():
    with pytest.raises(ValueError, match="labels must be concrete integers"):
        jax.jit(lambda c: GaussianMixture(MEANS, 1.0, labels=c).means)(jnp.arange(3))


def test_weights_of_float32_are_normalized():
    """2,000 equal float32 weights sum to one only nearly."""
    weights = np.full(2000, 1 / 2000, np.float32)
    mixture = GaussianMixture(np.zeros((2000, 1)), 1.0, jnp.asarray(weights))
    np.testing.assert_allclose(jnp.sum(mixture.weights), 1.0, rtol=1e-5)


@pytest.fixture(scope="module")
def mixture():
    return GaussianMixture(MEANS, 1.0, labels=[0, 1, 1])


METHODS = ("log_prob", "score", "denoise", "posterior_covariance", "responsibilities")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "x, sigma, label, message",
    [
        (np.zeros((4, 3)), 1.0, None, r"x must have shape \[\.\.\., 2\].*got \(4, 3\)"),
        (np.zeros(()), 1.0, None, r"got \(\). Reshape with x\[\.\.\., None\]"),
        (np.zeros((4, 2)), -0.1, None, r"sigma must be finite and >= 0, got \[-0.1"),
        (np.zeros((4, 2)), np.nan, None, "sigma must be finite and >= 0"),
        (np.zeros((4, 2)), np.inf, None, "sigma must be finite and >= 0"),
        (np.zeros((4, 2)), np.ones(3), None, r"leading shape \(4,\), got \(3,\)"),
        (np.zeros((4, 2)), np.ones((4, 1)), None, r"got \(4, 1\)"),
        (
            np.zeros((4, 2)),
            1.0,
            3,
            r"label must be in 0..1 or 2 for no condition, got \[?3",
        ),
        (np.zeros((4, 2)), 1.0, -1, r"label must be in 0..1 or 2.*got \[?-1"),
        (np.zeros((4, 2)), 1.0, np.array([0, 1, 2, 3]), r"label must be.*got \[?3"),
        (np.zeros((4, 2)), 1.0, np.array([0, 1]), r"shape \(4,\), .*got shape \(2,\)"),
        (np.zeros((4, 2)), 1.0, 1.0, "label must be an integer, got dtype float"),
        (np.zeros((4, 2)), 1.0, True, "label must be an integer, got dtype bool"),
    ],
)
def test_bad_points(mixture, method, x, sigma, label, message):
    with pytest.raises(ValueError, match=message):
        getattr(mixture, method)(x, sigma, label)


@pytest.mark.parametrize(
    "label, message",
    [
        (2, r"label must be in 0\.\.1, got 2"),
        (-1, r"label must be in 0\.\.1, got -1"),
        (0.0, "one concrete integer, got 0.0"),
        ([0, 1], r"one concrete integer, got \[0, 1\]"),
    ],
)
def test_bad_conditions(mixture, label, message):
    for method in (mixture.condition, mixture.mean, mixture.covariance):
        with pytest.raises(ValueError, match=message):
            method(label)


def test_a_condition_may_not_be_traced(mixture):
    with pytest.raises(ValueError, match="one concrete integer"):
        jax.jit(lambda label: mixture.condition(label).means)(0)
