"""Line distributions: Gaussians, golden numbers, and the sampler's own samples."""

import jax
import numpy as np
import pytest
from oracles.two_gaussians import TwoGaussians, guided_flow
from scipy.stats import norm

import gmm_guidance as gg
from gmm_guidance.exact import line_density, line_distribution, output_density

FAR = gg.Karras(200, 1e-3, 20.0)


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_moments_and_divergences_of_gaussians(scale):
    line = line_distribution(
        TwoGaussians(1.3, 0.5, 2.0), 0, guidance=gg.CFG(scale), schedule=FAR
    )
    slope, mean = guided_flow(1.3, 0.5, 2.0, scale, 20.0)
    sd = 20.0 * slope
    assert line.mean() == pytest.approx(mean, abs=1e-3)
    assert line.variance() == pytest.approx(sd**2, rel=5e-3)
    assert line.entropy() == pytest.approx(norm(mean, sd).entropy(), abs=3e-3)
    grid = np.linspace(mean - 5 * sd, mean + 5 * sd, 201)
    wanted = norm.pdf(grid, mean, sd)
    np.testing.assert_allclose(line.density(grid), wanted, atol=5e-3 * wanted.max())

    def target(x):
        return jax.scipy.stats.norm.logpdf(x[:, 0], 1.0, 1.5)

    divergence = np.log(1.5 / sd) + (sd**2 + (mean - 1.0) ** 2) / (2 * 1.5**2) - 0.5
    assert line.kl_divergence(target) == pytest.approx(divergence, abs=2e-3)
    assert line.nll(target) == pytest.approx(
        float(line.entropy()) + divergence, abs=2e-3
    )


# toy_theory.md 3.5: std, scale; mean, sd, NLL under p(x | label)
@pytest.mark.parametrize(
    "mean, std, scale, wanted",
    [
        (1.0, 0.5, 2.0, (1.3156, 0.3582, 0.682)),
        (1.0, 0.5, 4.0, (1.6673, 0.2880, 1.282)),
        (1.0, 1.0, 4.0, (2.3191, 0.5902, 1.963)),
        (4.0, 1.0, 2.0, (4.5786, 0.7071, 1.336)),
        (4.0, 1.0, 4.0, (5.2512, 0.5584, 1.858)),
    ],
)
def test_golden_moments_of_two_modes(mean, std, scale, wanted):
    mixture = gg.presets.two_modes(std, mean)
    exact = gg.ExactDenoiser(mixture)
    rule = gg.CFG(scale)
    line = line_distribution(exact, 1, guidance=rule, schedule=gg.Karras(320))

    def target(x):
        return mixture.log_prob(x, 0.0, 1)

    got = (
        line.mean(),
        np.sqrt(line.variance()),
        line.nll(target),
    )
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1.5e-3)
    assert line.kl_divergence(target) > 0
    # Gibbs: narrower than the class, its entropy is smaller.
    assert line.entropy() < norm(mean, std).entropy()


def test_density_integrates_to_one_and_fits_the_samples(key):
    mixture = gg.GaussianMixture(
        [[-2.0], [0.5], [3.0]], np.array([0.3, 0.8, 0.2]), None, [0, 1, 0]
    )
    exact, rule = gg.ExactDenoiser(mixture), gg.CFG(2.0)
    grid = np.linspace(-8.0, 8.0, 4001)
    density = line_density(exact, 0, grid, guidance=rule, schedule=FAR)
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-4)
    # Two of the three modes, one on each side.
    assert np.trapezoid(density[:2000], grid[:2000]) > 0.2
    output = output_density(key, exact, 0, num_samples=500, guidance=rule, schedule=FAR)
    at_samples = line_density(
        exact, 0, output.samples[:, 0], guidance=rule, schedule=FAR
    )
    np.testing.assert_allclose(np.log(at_samples), output.log_density, atol=0.02)


def test_density_ends_with_its_points():
    line = line_distribution(
        TwoGaussians(0.0, 1.0, 2.0), 0, schedule=FAR, num_points=201
    )
    assert (np.asarray(line.density([[-100.0, 100.0]])) == 0).all()
    assert line.weights.sum() == pytest.approx(1.0, abs=1e-5)
    few, many = (
        line.entropy(),
        line_distribution(TwoGaussians(0.0, 1.0, 2.0), 0, schedule=FAR),
    )
    assert few == pytest.approx(float(many.entropy()), abs=1e-4)


def test_few_points_and_maps_that_fold_are_refused():
    exact = gg.ExactDenoiser(gg.presets.two_modes())
    with pytest.raises(ValueError, match="num_points"):
        line_distribution(exact, 1, num_points=2)
    with pytest.raises(ValueError, match="not monotone"):
        coarse = gg.CustomSchedule((80.0, 10.0, 4.0, 2.0, 1.0))
        line_distribution(
            exact, 0, guidance=gg.CFG(8.0), schedule=coarse, solver="euler"
        )
