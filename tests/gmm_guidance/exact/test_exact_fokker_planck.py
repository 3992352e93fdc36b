"""The defect by finite differences of CFG's densities in float64."""

import numpy as np
import pytest
from oracles.mixture64 import Mixture64

import gmm_guidance as gg
from gmm_guidance.exact import fokker_planck_defect

GIVEN = dict(
    means=[[0.0, 0.0], [1.5, 1.0], [-1.0, 1.2]],
    covariances=np.array(
        [[[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.1], [-0.1, 0.8]], [[0.5, 0], [0, 0.6]]]
    ),
    weights=[0.5, 0.3, 0.2],
    labels=[0, 1, 1],
)


def residual(x, variance, label, scale, h=1e-3):
    """``d/dv log h - 1/2 (laplacian log h + |grad log h|^2)``."""
    mixture = Mixture64.build(**GIVEN)

    def log_h(x, v):
        own = mixture.log_prob(x, np.sqrt(v), label)
        return scale * own + (1 - scale) * mixture.log_prob(x, np.sqrt(v))

    here = log_h(x, variance)
    rate = (log_h(x, variance + h) - log_h(x, variance - h)) / (2 * h)
    laplacian = square = 0.0
    for axis in np.eye(2):
        up, down = log_h(x + h * axis, variance), log_h(x - h * axis, variance)
        laplacian = laplacian + (up - 2 * here + down) / h**2
        square = square + ((up - down) / (2 * h)) ** 2
    return rate - 0.5 * (laplacian + square)


@pytest.mark.parametrize("scale", [0.5, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("label", [0, 1])
def test_cfg_violates_the_heat_equation_by_the_defect(label, sigma, scale):
    x = 1.5 * np.random.default_rng(0).normal(size=(20, 2))
    got = fokker_planck_defect(gg.GaussianMixture(**GIVEN), x, sigma, label, scale)
    assert got.shape == (20,)
    wanted = -residual(x, sigma**2, label, scale)
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_none_without_guidance(scale):
    mixture = gg.GaussianMixture(**GIVEN)
    assert (
        np.asarray(fokker_planck_defect(mixture, [[1.0, 2.0]], 1.0, 0, scale)) == 0
    ).all()
