"""The error split against a network whose errors are known, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.faulty_stack import FaultyStack

import gmm_guidance as gg

MIXTURE = gg.presets.two_modes()
SCHEDULE = gg.Karras(6, 0.05, 20.0)
X = jnp.linspace(-7.0, 7.0, 29)[:, None]
ALL = {"num_masks": "all", "window": None}


def stack(*amplitudes, **options):
    return FaultyStack(MIXTURE, jnp.asarray(amplitudes, jnp.float32), **options)


def test_parts_are_those_put_in():
    """CFG's coefficients sum to one: an error of both passes alike is not amplified."""
    model, sigma = stack(0.0, 0.2, 0.5), 1.5
    rule = gg.S2Guidance(3.0, 0.4, **ALL)
    parts = gg.decompose(model, rule, MIXTURE, X, sigma, 1)
    waves = [a * model.wave(j, X) for j, a in ((1, 0.2), (2, 0.5))]
    np.testing.assert_allclose(parts.learning, waves[0] + waves[1], atol=1e-5)
    np.testing.assert_allclose(parts.weak, 0.2 * (waves[0] + waves[1]), atol=1e-5)
    # p(label | x) of two Gaussians at +-4 is a logistic function of 8 x / v.
    v = 1.0 + sigma**2
    other = jax.nn.sigmoid(-8.0 * X / v)  # probability of the mode at -4
    gap = 8.0 * sigma**2 / v  # D_1 - D_0
    np.testing.assert_allclose(parts.bias, 2.0 * other * gap, atol=1e-4)
    total = parts.bias + parts.learning + parts.weak
    np.testing.assert_allclose(parts.total, total, atol=1e-5)


def test_bias_against_the_tilted_distribution_is_minus_the_gradient_of_the_gap():
    overlap = gg.presets.two_modes(std=4.0)
    target = gg.exact.TiltedTarget(overlap, 1, 3.0)
    exact = gg.ExactDenoiser(overlap)
    parts = gg.decompose(exact, gg.CFG(3.0), overlap, X, 2.0, 1, target=target)
    gap = jax.vmap(
        jax.grad(lambda x: gg.exact.jensen_gap(overlap, x[None], 2.0, 1, 3.0)[0])
    )
    np.testing.assert_allclose(parts.bias, -4.0 * gap(X), atol=2e-4)
    np.testing.assert_array_equal(parts.learning, 0.0)


WEAK_RULES = [
    gg.S2Guidance(3.0),
    gg.S2Guidance(1.0, 1.0, num_masks="all"),
    gg.S2Guidance(gg.APG(3.0), 0.5),
    gg.SkipLayer(2.0, (1,)),
    gg.Rescaled(gg.S2Guidance(3.0), 0.7),
    gg.Windowed(gg.S2Guidance(3.0), (0.2, 0.8), outside=gg.SkipLayer(2.0, (2,))),
    gg.CalibratedGuidance(
        np.array([0.1, 9.0]), np.array([[1.0, 0.5], [2.0, 0.1]]), ("cfg", (1,))
    ),
    gg.CFG(2.0),
]


# Each is a program of its own: two every day, all in the slow lane.
SOME = [
    r if i in (4, 6) else pytest.param(r, marks=pytest.mark.ci)
    for i, r in enumerate(WEAK_RULES)
]


@pytest.mark.parametrize("rule", SOME, ids=lambda r: type(r).__name__)
def test_without_weak_passes_is_what_a_redundant_network_makes_of_the_rule(rule):
    """Blocks that do nothing: every weak pass equals the conditional one."""
    mixture = gg.presets.four_corners()
    model = FaultyStack(mixture, jnp.zeros(4))

    def sample(some_rule):
        return gg.guided_sample(
            jax.random.key(0),
            model,
            1,
            num_samples=16,
            guidance=some_rule,
            schedule=gg.Karras(8, 0.05, 20.0),
            solver="euler",
        )

    np.testing.assert_allclose(
        sample(rule), sample(rule.without_weak_passes()), atol=1e-4
    )


def test_autoguidance_without_its_weak_model_is_no_guidance():
    exact = gg.ExactDenoiser(MIXTURE)
    rule = gg.AutoGuidance(stack(0.5), 3.0)
    parts = gg.decompose(exact, rule, MIXTURE, X, 1.0, 0)
    np.testing.assert_array_equal(parts.bias, 0.0)
    np.testing.assert_allclose(
        parts.weak, -2.0 * 0.5 * stack(0.5).wave(0, X), atol=1e-5
    )


def budget(model, rule, **options):
    options = {"schedule": SCHEDULE, "num_samples": 256, **options}
    return gg.error_budget(jax.random.key(0), model, rule, MIXTURE, 1, **options)


def test_budget_of_one_error():
    """Two blocks with the same error f: learned 2 f, the term adds omega f."""
    model = stack(0.0, 0.3, 0.3, same=True)
    found = budget(model, gg.S2Guidance(2.0, 0.5, **ALL), blocks=True)
    np.testing.assert_allclose(
        found.rms("learning"), 2 * found.rms("block 1"), rtol=1e-4
    )
    np.testing.assert_allclose(found.rms("weak"), 0.5 * found.rms("block 1"), rtol=1e-4)
    np.testing.assert_allclose(found.cosine("weak", "learning"), -1.0, atol=1e-5)
    np.testing.assert_allclose(found.projection("weak", "learning"), -0.25, atol=1e-5)
    # (2 + 0.5)^2 / 2^2
    removed = found.fraction_removed("learning")
    np.testing.assert_allclose(removed, 1.0 - 1.5625, atol=1e-4)
    np.testing.assert_allclose(found.cosine("block 2", "learning"), -1.0, atol=1e-5)
    assert found.defect.max() < 1e-5


def test_an_opposite_error_is_removed():
    """Blocks that undo each other badly: leaving one out errs further the same way."""
    model = stack(0.0, -0.3, 0.2, same=True)
    found = budget(model, gg.S2Guidance(2.0, 2.0, **ALL))
    # Learned -0.1 f; the term is omega times the mean of (-0.3 f, 0.2 f): -0.1 f more.
    np.testing.assert_allclose(found.projection("weak", "learning"), -1.0, rtol=1e-3)
    halved = budget(model, gg.S2Guidance(2.0, -1.0, **ALL))
    np.testing.assert_allclose(halved.fraction_removed("learning"), 0.75, rtol=1e-3)


def test_budget_averages_over_true_noised_samples():
    """E of D_1 - D_0 weighted bias by quadrature over p(x | label) under noise."""
    found = budget(stack(0.0), gg.CFG(2.0), num_samples=20000)
    for k, sigma in enumerate(found.sigmas):
        v = 1.0 + sigma**2
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        x = 4.0 + np.sqrt(v) * nodes
        other = 1.0 / (1.0 + np.exp(8.0 * x / v))
        square = weights @ (other * 8.0 * sigma**2 / v) ** 2 / weights.sum()
        expected, got = np.sqrt(square), found.rms("bias")[k]
        assert got == pytest.approx(expected, rel=0.1, abs=0.02)


@pytest.mark.ci
def test_trajectory_points_are_those_of_the_sampler():
    model, rule = stack(0.0, 0.2, 0.5), gg.S2Guidance(2.0, 0.5, **ALL)
    found = budget(model, rule, points="trajectory", num_samples=64)
    mask_key = jax.random.split(jax.random.key(0))[1]
    _, path = gg.guided_sample(
        mask_key, model, 1, num_samples=64, guidance=rule, schedule=SCHEDULE,
        trajectory=True,
    )  # fmt: skip
    for k in (0, 3, 5):
        parts = gg.decompose(model, rule, MIXTURE, path[k], found.sigmas[k], 1)
        rms = jnp.sqrt(jnp.mean(jnp.sum(parts.total**2, axis=1)))
        assert found.rms("total")[k] == pytest.approx(float(rms), rel=1e-4)


def test_windows_of_the_rule_fall_on_the_schedule():
    found = budget(stack(0.0, 0.2), gg.S2Guidance(2.0, 0.5, window=(0.3, 0.6)))
    np.testing.assert_array_equal(found.rms("weak") > 0, [0, 0, 1, 1, 0, 0])


def test_guided_denoise_is_the_first_step_of_a_run():
    model, rule = stack(0.0, 0.2), gg.CFG(3.0)
    got = gg.guided_denoise(model, rule, X, 2.0, 1)
    want = gg.guided_sample(
        jax.random.key(0), model, 1, num_samples=len(X), guidance=rule, initial=X,
        schedule=gg.CustomSchedule((2.0, 0.0)), solver="euler",
    )  # fmt: skip
    np.testing.assert_allclose(got, want, atol=1e-6)
    plus = gg.guided_denoise(model, gg.CFGPlusPlus(0.5), X, 2.0, 1)
    half = gg.guided_denoise(model, gg.CFG(0.5), X, 2.0, 1)
    np.testing.assert_allclose(plus, half, atol=1e-6)


def test_unknown_points_parts_and_blocks_are_refused():
    with pytest.raises(ValueError, match="'noised' or 'trajectory'"):
        budget(stack(0.0), gg.CFG(2.0), points="grid")
    with pytest.raises(TypeError, match="no blocks"):
        budget(gg.ExactDenoiser(MIXTURE), gg.CFG(2.0), blocks=True)
    found = budget(stack(0.0, 0.1), gg.CFG(2.0), num_samples=8)
    with pytest.raises(ValueError, match="part must be"):
        found.rms("learned")
    with pytest.raises(ValueError, match="block must be"):
        found.block(1)
    with pytest.raises(ValueError, match="label=None"):
        gg.guided_denoise(stack(0.0), gg.CFG(2.0), X, 1.0)
