"""Mixtures fitted by scikit-learn have the same densities here."""

import numpy as np
import pytest

import gmm_guidance as gg

sklearn_mixture = pytest.importorskip("sklearn.mixture")

RNG = np.random.default_rng(0)
MIX = np.array([[1.0, 0.6], [0.0, 0.5]])
DATA = np.concatenate([RNG.normal(-3, 1, (300, 2)), RNG.normal(3, 1, (300, 2))]) @ MIX


@pytest.mark.parametrize("num_components", [2, 3])  # as many as dimensions, and not
@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_every_covariance_type_has_scikit_learns_density(kind, num_components):
    fitted = sklearn_mixture.GaussianMixture(
        num_components, covariance_type=kind, random_state=0
    ).fit(DATA)
    mixture = gg.GaussianMixture.from_sklearn(fitted)
    found = np.asarray(mixture.log_prob(DATA.astype(np.float32)))
    np.testing.assert_allclose(found, fitted.score_samples(DATA), atol=2e-4)


def test_unfitted_mixtures_are_refused():
    for wrong in (sklearn_mixture.GaussianMixture(2), 2.0):
        with pytest.raises(TypeError, match="call its fit"):
            gg.GaussianMixture.from_sklearn(wrong)


def test_one_matrix_is_not_taken_for_variances():
    matrix = np.array([[2.0, 0.5], [0.5, 1.0]])
    with pytest.raises(ValueError, match="broadcast_to"):
        gg.GaussianMixture(np.eye(2), matrix)
    with pytest.raises(ValueError, match="broadcast_to"):
        gg.GaussianMixture(np.zeros((3, 2)), matrix)
    gg.GaussianMixture(np.eye(2), np.ones((2, 2)))  # variances of 1
