"""Without a schedule, noise levels fit the data, large or small."""

import jax
import numpy as np
import pytest

import gmm_guidance as gg


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_samples_have_the_mixtures_moments_at_any_scale(unit):
    means = unit * np.array([[60.0], [200.0]])
    mixture = gg.GaussianMixture(means, (20.0 * unit) ** 2, labels=[0, 1])
    quantiles = gg.quantile_map(gg.ExactDenoiser(mixture), 1, num_points=500) / unit
    assert float(quantiles.mean()) == pytest.approx(200.0, rel=0.02)
    assert float(quantiles.std()) == pytest.approx(20.0, rel=0.02)


def test_the_width_under_guidance_is_within_one_percent():
    exact = gg.ExactDenoiser(gg.presets.two_modes(std=0.35))
    rule = gg.CFG(6.0)
    many = gg.quantile_map(exact, 1, guidance=rule, schedule=gg.Karras(2000))
    default = gg.quantile_map(exact, 1, guidance=rule)
    assert float(default.std() / many.std()) == pytest.approx(1.0, abs=0.01)


def test_derivatives_of_mambo_g_are_finite():
    exact = gg.ExactDenoiser(gg.presets.four_corners())
    x = np.full((1, 2), 0.1, np.float32)
    gradient = jax.grad(
        lambda x: gg.guided_denoise(exact, gg.MAMBOG(2.0), x, 0.01, 1).sum()
    )(x)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "mean, variance, message",
    [(149.0, 100.0, "below the size of the data, 149"), (0.0, 1e-8, "above the size")],
)
def test_a_schedule_of_another_scale_is_warned_of(mean, variance, message):
    denoiser = gg.ExactDenoiser(gg.GaussianMixture([[mean]], variance))
    draw = dict(num_samples=2, schedule=gg.Karras(2), solver="euler")
    with pytest.warns(UserWarning, match=message):
        gg.guided_sample(jax.random.key(0), denoiser, **draw)
    if mean:  # from given points a run may start anywhere
        x = np.full((2, 1), mean, np.float32)
        gg.guided_sample(jax.random.key(0), denoiser, initial=x, **draw)
