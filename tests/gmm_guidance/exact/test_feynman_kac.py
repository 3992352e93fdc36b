"""Repaired CFG: closed forms of two Gaussians, tilted distributions of mixtures."""

import dataclasses

import jax
import numpy as np
import pytest
from oracles.mixture64 import Mixture64
from oracles.tilted64 import TiltedGrid
from oracles.two_gaussians import TwoGaussians

import gmm_guidance as gg
from gmm_guidance.exact import repaired_sample

COUNT = 30_000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OnALine(TwoGaussians):
    sample_shape = (1,)


def weighted(result):
    x, w = np.asarray(result.samples, np.float64), np.asarray(result.weights, float)
    mean = w @ x
    return mean, w @ (x - mean) ** 2


def test_golden_two_gaussians(key):
    """a = 1, b = 2, w = 3 (toy_theory.md 3.4)."""
    denoiser = OnALine(0.0, 1.0, 2.0)
    schedule = gg.Karras(192)
    result = repaired_sample(key, denoiser, 0, 3.0, COUNT, schedule, 0.0)
    assert result.num_resamplings == 0
    assert np.var(result.samples) == pytest.approx(0.3875, abs=0.013)
    assert weighted(result)[1][0] == pytest.approx(0.5, abs=0.02)
    assert result.ess.shape == (192,)
    assert result.ess[-1] == pytest.approx(0.82, abs=0.02)
    # Resampled, a plain mean has the weighted moments.
    even = result.resample(jax.random.key(1))
    assert np.var(even) == pytest.approx(float(weighted(result)[1][0]), abs=0.015)


@pytest.mark.parametrize("scale, threshold", [(2.0, 0.5), (4.0, 0.5), (4.0, 1.0)])
def test_tilted_mean_and_deviation_of_overlapping_classes(key, scale, threshold):
    given = dict(means=[[-1.0], [1.0]], covariances=1.0, labels=[0, 1])
    mixture = gg.GaussianMixture(**given)
    result = repaired_sample(key, mixture, 1, scale, COUNT, ess_threshold=threshold)
    grid = TiltedGrid(Mixture64.build(**given), 1, scale, 9.0, 9001)
    mean, variance = weighted(result)
    assert mean[0] == pytest.approx(grid.mean()[0], abs=0.04)
    assert np.sqrt(variance[0]) == pytest.approx(grid.sd()[0], abs=0.03)
    if scale == 4.0:
        assert result.num_resamplings > 0
        # CFG alone is far off: 2.32 along the flow, and 0.59 (toy_theory.md 3.5).
        assert grid.mean()[0] < 1.6


def test_in_the_plane_and_at_a_low_start(key):
    """The first weights put right a start whose noise does not hide the data."""
    given = dict(
        means=[[0.0, 0.0], [1.5, 1.0], [-1.0, 1.2]],
        covariances=np.array([[1.0, 0.5], [0.4, 0.8], [0.6, 0.6]]),
        labels=[0, 1, 0],
    )
    result = repaired_sample(
        key, gg.GaussianMixture(**given), 0, 2.0, COUNT, gg.Karras(64, sigma_max=5.0)
    )
    grid = TiltedGrid(Mixture64.build(**given), 0, 2.0, 8.0, 321)
    mean, variance = weighted(result)
    np.testing.assert_allclose(mean, grid.mean(), atol=0.03)
    np.testing.assert_allclose(np.sqrt(variance), grid.sd(), atol=0.03)


def test_scale_one_needs_no_weights(key):
    mixture = gg.presets.two_modes(0.5, 1.0)
    result = repaired_sample(key, mixture, 1, 1.0, 20_000, ess_threshold=0.9)
    assert result.num_resamplings == 0 and result.ess.min() > 0.99
    assert np.mean(result.samples) == pytest.approx(1.0, abs=0.02)
    assert np.std(result.samples) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(num_samples=1), "num_samples"),
        (dict(ess_threshold=1.5), "ess_threshold"),
        (dict(scale=float("nan")), "finite"),
        (dict(label=2), "label"),
        (dict(denoiser=TwoGaussians(0.0, 1.0, 2.0)), "sample_shape"),
    ],
)
def test_repaired_sample_refuses_values_out_of_range(key, change, message):
    given = dict(denoiser=gg.presets.two_modes(), label=1, scale=2.0, num_samples=10)
    with pytest.raises(ValueError, match=message):
        repaired_sample(key, **(given | change))
