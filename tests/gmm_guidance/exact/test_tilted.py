"""Tilted distributions against sums over a fine float64 grid, and golden numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.mixture64 import Mixture64
from oracles.tilted64 import TiltedGrid

import gmm_guidance as gg
from gmm_guidance.exact import TiltedTarget

LINE = dict(means=[[-1.0], [1.0]], covariances=1.0, labels=[0, 1])
UNEVEN = dict(
    means=[[-1.5], [0.2], [1.0]],
    covariances=np.array([0.5, 0.3, 1.2]),
    weights=[0.5, 0.2, 0.3],
    labels=[0, 0, 1],
)
PLANE = dict(
    means=[[0.0, 0.0], [1.5, 1.0], [-1.0, 1.2], [0.5, -1.0]],
    covariances=np.array(
        [
            [[1.0, 0.3], [0.3, 0.5]],
            [[0.4, -0.1], [-0.1, 0.8]],
            [[0.5, 0.0], [0.0, 0.5]],
            [[0.3, 0.1], [0.1, 0.2]],
        ]
    ),
    labels=[0, 1, 0, 1],
)


def pair(given, label, scale, count, **options):
    target = TiltedTarget(gg.GaussianMixture(**given), label, scale, **options)
    return target, TiltedGrid(Mixture64.build(**given), label, scale, 9.0, count)


@pytest.mark.parametrize(
    "given, label, sigma",
    [
        (LINE, 1, 0.01),
        (UNEVEN, 0, 0.01),
        (UNEVEN, 1, 0.3),
        (UNEVEN, 0, 1.0),
        (LINE, 1, 4.0),
        (UNEVEN, 0, 80.0),
    ],
)
def test_denoiser_score_and_density_on_a_line(given, label, sigma):
    target, grid = pair(given, label, 4.0, 9001)
    x = np.linspace(-3.0, 3.0, 7)[:, None] * max(1.0, sigma / 2)
    wanted = grid.denoise(x, sigma)
    np.testing.assert_allclose(target.denoise(x, sigma), wanted, rtol=0, atol=2e-5)
    # At sigma = 0.01 single precision has 1e-7 / sigma left.
    np.testing.assert_allclose(
        target.score(x, sigma), (wanted - x) / sigma**2, rtol=1e-4, atol=2e-4
    )
    if sigma < 10:  # beyond, it is wider than the reference's grid
        np.testing.assert_allclose(
            target.log_prob(x, sigma), grid.log_prob(x, sigma), rtol=1e-5, atol=2e-5
        )


@pytest.mark.parametrize("sigma", [0.1, 1.0, 20.0])
def test_denoiser_in_the_plane(sigma):
    target, grid = pair(PLANE, 0, 4.0, 451)
    x = 2.0 * np.random.default_rng(0).normal(size=(10, 2)) * max(1.0, sigma / 2)
    wanted = grid.denoise(x, sigma)
    np.testing.assert_allclose(target.denoise(x, sigma), wanted, rtol=0, atol=2e-4)
    # One noise level for each point, and another layout, change nothing.
    levels = jnp.full((2, 5), sigma)
    shaped = target.denoise(x.reshape(2, 5, 2), levels)
    np.testing.assert_allclose(shaped.reshape(10, 2), wanted, rtol=0, atol=2e-4)


def test_random_nodes():
    options = dict(key=jax.random.key(0), num_draws=1024)
    target, grid = pair(PLANE, 0, 2.0, 451, **options)
    x = np.random.default_rng(0).normal(size=(10, 2))
    np.testing.assert_allclose(target.denoise(x, 1.0), grid.denoise(x, 1.0), atol=0.08)
    # They keep the derivative of the responsibilities.
    slope = jax.jacfwd(lambda x: target.denoise(x, 1.0))(jnp.asarray(x[0], jnp.float32))
    steps = x[:1] + 1e-4 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    ends = grid.denoise(steps, 1.0)
    wanted = np.stack([ends[0] - ends[1], ends[2] - ends[3]], axis=1) / 2e-4
    np.testing.assert_allclose(slope, wanted, atol=0.12)


# G1, G2 and S2a of toy_theory.md 3.5: mean, sd, acceptance
@pytest.mark.parametrize(
    "mean, std, scale, wanted",
    [
        (1.0, 0.5, 4.0, (1.0616, 0.4495, 0.936)),
        (1.0, 1.0, 2.0, (1.2900, 0.8624, 0.775)),
        (1.0, 1.0, 4.0, (1.5394, 0.7671, 0.590)),
        (1.0, 1.0, 8.0, (1.7701, 0.6990, 0.434)),
        (4.0, 0.5, 4.0, (4.0000, 0.4998, 1.000)),
    ],
)
def test_golden_moments_and_acceptance(key, mean, std, scale, wanted):
    target = TiltedTarget(gg.presets.two_modes(std, mean), 1, scale)
    x = np.asarray(target.sample(key, 40_000), np.float64)
    assert x.shape == (40_000, 1)
    assert x.mean() == pytest.approx(wanted[0], abs=4 * std / 200)
    assert x.std() == pytest.approx(wanted[1], abs=4 * std / 280)
    exact, _ = target.acceptance()
    assert exact == pytest.approx(wanted[2], abs=6e-4)
    estimate, error = target.acceptance(jax.random.key(3))
    assert abs(estimate - exact) <= 4 * error + 1e-6
    assert target.log_normalizer() == pytest.approx(np.log(0.5 * exact), abs=1e-6)


def test_density_is_normalized_in_the_plane():
    target, grid = pair(PLANE, 1, 3.0, 301)
    density = np.exp(np.asarray(target.log_prob(grid.points), np.float64))
    assert density.sum() * grid.cell == pytest.approx(1.0, abs=1e-4)


def test_probability_flow_draws_the_tilted_distribution():
    target, grid = pair(UNEVEN, 0, 4.0, 9001)
    far = gg.Karras(64, sigma_max=200.0)
    x = np.asarray(gg.quantile_map(target, schedule=far, num_points=500), np.float64)
    assert x.mean() == pytest.approx(grid.mean()[0], abs=0.01)
    assert x.std() == pytest.approx(grid.sd()[0], abs=0.01)


def test_scale_one_is_the_conditional_distribution():
    mixture = gg.GaussianMixture(**PLANE)
    target = TiltedTarget(mixture, 1, 1.0)
    x = jax.random.normal(jax.random.key(1), (20, 2))
    wanted = mixture.denoise(x, 0.7, 1)
    np.testing.assert_allclose(target(x, 0.7, jnp.zeros(20, int)), wanted, atol=1e-5)
    np.testing.assert_allclose(target.log_prob(x), mixture.log_prob(x, 0.0, 1), 1e-5)


def test_a_longer_draw_begins_with_the_shorter(key):
    target = TiltedTarget(gg.GaussianMixture(**LINE), 1, 8.0)
    long = target.sample(key, 20_000)
    np.testing.assert_array_equal(target.sample(key, 100), long[:100])


def test_a_tilt_out_of_reach_is_an_error(key):
    # The class has no place of its own.
    mixture = gg.GaussianMixture([[0.0], [0.0]], 1.0, [1e-3, 1 - 1e-3], [0, 1])
    with pytest.raises(ValueError, match="were accepted"):
        TiltedTarget(mixture, 0, 4.0).sample(key, 10)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(scale=0.5), "at least 1"),
        (dict(label=2), "label must be"),
        (dict(num_nodes=1), "num_nodes"),
        (dict(num_draws=3), "num_draws"),
        (dict(mixture=gg.GaussianMixture(np.zeros((1, 3)), 1.0)), "give key"),
    ],
)
def test_targets_refuse_values_out_of_range(change, message):
    given = dict(mixture=gg.GaussianMixture(**LINE), label=0, scale=2.0) | change
    with pytest.raises(ValueError, match=message):
        TiltedTarget(**given)
