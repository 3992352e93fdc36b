"""Conversions between the kinds of prediction, against definitions and slopes of paths.

Oracles are written from the definitions in float64 and share no code with the module.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.clocks import EVERY_CLOCK, chain, column, noised, scales

from gmm_guidance.blocks.process_stack import ProcessStack
from gmm_guidance.diffusion.parameterization import (
    PREDICTIONS,
    ScaledPrediction,
    from_denoised,
    from_sigma_space,
    to_denoised,
    to_sigma_space,
    training_target,
)
from gmm_guidance.diffusion.process import DDPM, VE, VP, RectifiedFlow


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 3, 2)), rng.normal(size=(3, 3, 2))


@functools.partial(jax.jit, static_argnums=0)
def round_trips(process, denoised, x_t, t):
    """The predictions of all kinds, and the denoised samples that they amount to."""
    predictions = {
        kind: from_denoised(process, denoised, x_t, t, kind) for kind in PREDICTIONS
    }
    return predictions, {
        kind: to_denoised(process, prediction, x_t, t, kind)
        for kind, prediction in predictions.items()
    }


@EVERY_CLOCK
def test_round_trips(pair, process, times):
    x0, eps = pair
    x_t = noised(process, np.array(times), x0, eps)
    denoised = 0.3 * x0 + 1.0
    predictions, back = round_trips(process, denoised, x_t, np.array(times))
    for kind, prediction in predictions.items():
        assert prediction.shape == x_t.shape
        np.testing.assert_allclose(
            back[kind], denoised, rtol=1e-4, atol=1e-4, err_msg=kind
        )
        if kind != "x0":  # so that the trip is one
            assert np.abs(prediction - denoised).max() > 1e-2, kind


@EVERY_CLOCK
def test_definitions_in_float64(pair, process, times):
    """Of all kinds but the score, by their formulas and by slopes of noised paths."""
    x0, eps = pair
    t = np.array(times) + (0.25 if isinstance(process, DDPM) else 0.0)
    step = 1e-5
    with jax.enable_x64(True):
        x_t, later, earlier = (
            noised(process, t + s, x0, eps) for s in (0.0, step, -step)
        )
        alpha, std = (column(value) for value in scales(process, t))
        predictions, back = round_trips(process, x0, x_t, t)
    # alpha and s from their ratio and the constraint on their sum, class by class.
    sigma = std / alpha
    if isinstance(process, VE):
        alpha = np.ones_like(sigma)
    elif isinstance(process, RectifiedFlow):
        alpha = 1 / (1 + sigma)
    else:
        alpha = 1 / np.sqrt(1 + sigma**2)
    expected = {"x0": x0, "epsilon": eps, "v": alpha * eps - alpha * sigma * x0}
    for kind, value in expected.items():
        np.testing.assert_allclose(
            predictions[kind], value, rtol=1e-9, atol=1e-9, err_msg=kind
        )
    slope = (later - earlier) / (2 * step)
    np.testing.assert_allclose(predictions["velocity"], slope, rtol=1e-5, atol=1e-8)
    for kind, denoised in back.items():
        np.testing.assert_allclose(denoised, x0, rtol=1e-9, atol=1e-9, err_msg=kind)


def test_velocity_of_vp_is_the_probability_flow(pair):
    """Song et al. 2021, Eq. 13: dx/dt = f - g^2 score / 2, f = -beta x / 2."""
    x_t, denoised = pair
    t = np.array([0.1, 0.5, 0.9])
    predictions, _ = round_trips(VP(), denoised, x_t, t)
    drift = -0.5 * (0.1 + 19.9 * column(t)) * (x_t + np.asarray(predictions["score"]))
    np.testing.assert_allclose(predictions["velocity"], drift, rtol=1e-4, atol=1e-4)


def test_velocities_of_the_straight_paths(pair):
    x0, eps = pair
    t = np.array([0.1, 0.5, 0.9])
    x_t = (1 - column(t)) * x0 + column(t) * eps
    flow = round_trips(RectifiedFlow(), x0, x_t, t)[0]["velocity"]
    np.testing.assert_allclose(flow, eps - x0, rtol=1e-4, atol=1e-5)
    sit = RectifiedFlow(data_at_one=True)
    reverse = round_trips(sit, x0, x_t, 1 - t)[0]["velocity"]
    np.testing.assert_allclose(reverse, x0 - eps, rtol=1e-4, atol=1e-5)
    # SiT's own data prediction, D = x_t + (1 - t) v in its clock.
    anything = np.ones_like(x_t)
    denoised = to_denoised(sit, anything, x_t, 1 - t, "velocity")
    np.testing.assert_allclose(denoised, x_t + column(t) * anything, rtol=1e-5)
    exploding = round_trips(VE(), x0, x0 + 2.0 * eps, np.full(3, 2.0))[0]["velocity"]
    np.testing.assert_allclose(exploding, eps, rtol=1e-4, atol=1e-5)


@EVERY_CLOCK
def test_score_is_the_gradient_of_the_marginal(process, times):
    """For data at a single point, x_t is Gaussian around alpha times it."""
    x0, x = jnp.array([0.5, -1.0]), jnp.array([[1.0, 0.3]])
    t = times[1]

    @jax.jit
    def both(x):
        def total(x):
            center, std = process.alpha(t) * x0, process.noise_std(t)
            return jax.scipy.stats.norm.logpdf(x[0], center, std).sum()

        return from_denoised(process, x0[None], x, t, "score"), jax.grad(total)(x)

    np.testing.assert_allclose(*both(x), rtol=1e-4)


def test_times_belong_to_samples_even_where_another_axis_is_as_long(pair):
    x0, eps = pair  # [3, 3, 2]
    t = np.array([0.1, 0.5, 0.9])
    together = round_trips(VP(), x0, eps, t)
    for i in range(3):
        alone = round_trips(VP(), x0[i : i + 1], eps[i : i + 1], t[i])  # a scalar
        for many, one in zip(together, alone, strict=True):
            for kind in PREDICTIONS:
                np.testing.assert_allclose(
                    many[kind][i : i + 1], one[kind], rtol=1e-5, atol=1e-6
                )


@EVERY_CLOCK
def test_sigma_space_and_back(pair, process, times):
    x0, eps = pair

    @jax.jit
    def there_and_back(x_t, t):
        x, sigma = to_sigma_space(process, x_t, t)
        return x, sigma, *from_sigma_space(process, x, sigma)

    t = np.array(times)
    x_t = noised(process, t, x0, eps)
    x, sigma, again, time = there_and_back(x_t, t)
    assert sigma.shape == time.shape == (3,)
    np.testing.assert_allclose(x, x0 + column(sigma) * eps, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(again, x_t, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(time, t, rtol=1e-5)


def test_sigma_space_and_back_at_a_scalar_time(pair):
    x0, eps = pair
    x_t = 0.7 * x0 + 0.3 * eps
    x, sigma = to_sigma_space(RectifiedFlow(), x_t, 0.3)
    again, time = from_sigma_space(RectifiedFlow(), x, sigma)
    assert sigma.shape == time.shape == ()
    np.testing.assert_allclose(x, x0 + 3 / 7 * eps, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again, x_t, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([sigma, time], [3 / 7, 0.3], rtol=1e-5)


@EVERY_CLOCK
def test_training_targets_are_the_predictions_of_a_known_sample(pair, process, times):
    """Where the posterior is one point, in coordinates of the process."""
    clean, noise = pair
    scaled = [
        ScaledPrediction(kind, 1.7, (0.5, -1.0))
        for kind in ("edm", "epsilon", "velocity", "x0")
    ]
    kinds = (*PREDICTIONS, *scaled)

    @jax.jit
    def both(sigma):
        x = clean + sigma[:, None, None] * noise
        x_t, t = from_sigma_space(process, x, sigma)
        return [
            (
                training_target(process, clean, noise, sigma, kind),
                from_denoised(process, clean, x_t, t, kind),
            )
            for kind in kinds
        ]

    with jax.enable_x64(True):
        found = both(process.sigma(np.array(times)))
    for kind, (target, prediction) in zip(kinds, found, strict=True):
        np.testing.assert_allclose(target, prediction, rtol=1e-7, err_msg=str(kind))


def test_half_precision_predictions_are_taken_in_float32():
    x, t = jnp.ones((2, 2), jnp.bfloat16), jnp.array([1, 999])
    denoised = jax.jit(to_denoised, static_argnums=(0, 4))(DDPM(), x, x, t, "epsilon")
    assert denoised.dtype == jnp.float32
    alpha_bar = chain()[[1, 999]]
    expected = (1 - np.sqrt(1 - alpha_bar)) / np.sqrt(alpha_bar)
    # 1 - s = 2e-5 at the end of the chain, which bfloat16 would round to 0.
    np.testing.assert_allclose(denoised[:, 0], expected, rtol=5e-3)


# --- what is refused


@pytest.mark.parametrize("kind", ["eps", "edm", "X0", "", None])
def test_unknown_kinds(kind):
    x = jnp.ones((2, 1))
    pattern = "unknown kind.*x0, epsilon, v, velocity, score"
    with pytest.raises(ValueError, match=pattern):
        to_denoised(VE(), x, x, 1.0, kind)
    with pytest.raises(ValueError, match=pattern):
        from_denoised(VE(), x, x, 1.0, kind)
    with pytest.raises(ValueError, match=pattern):
        ProcessStack(lambda x, t, label: x, VE(), kind)


def test_shapes_that_do_not_fit():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"t must be a scalar.*\(3,\).*\(2, 3\)"):
        to_denoised(VE(), x, x, jnp.ones(3), "epsilon")
    with pytest.raises(ValueError, match="t must be a scalar"):
        to_sigma_space(VE(), x, jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="sigma must be a scalar"):
        from_sigma_space(VE(), x, jnp.ones(3))
    with pytest.raises(ValueError, match=r"prediction must have the shape.*channels"):
        to_denoised(VE(), jnp.ones((2, 6)), x, 1.0, "epsilon")
    with pytest.raises(ValueError, match="denoised must have the shape"):
        from_denoised(VE(), jnp.ones(3), x, 1.0, "epsilon")
