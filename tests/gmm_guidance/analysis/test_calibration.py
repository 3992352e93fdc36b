"""Calibration against a network whose errors, one for each block, are known."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.faulty_stack import FaultyStack

import gmm_guidance as gg
from gmm_guidance.analysis import regression

MIXTURE = gg.presets.two_modes()
SIGMAS = np.geomspace(0.3, 8.0, 5)


def stack(*amplitudes, mixture=MIXTURE, **options):
    return FaultyStack(mixture, jnp.asarray(amplitudes, jnp.float32), **options)


def calibrate(model, data=MIXTURE, seed=0, **options):
    options = {"sigmas": SIGMAS, "num_samples": 4800, **options}
    return gg.calibrate(model, data, jax.random.key(seed), **options)


@pytest.fixture(scope="module")
def found():
    """Block 0 is sound; the others err by 0.2, 0.5 and 0.1."""
    return calibrate(stack(0.0, 0.2, 0.5, 0.1))


def test_exact_coefficients_take_each_block_back(found):
    """D* = D_c - sum_j e_j: every block -1, CFG nothing."""
    fit = found.fit(target="exact")
    np.testing.assert_allclose(fit.coefficients[:, 1:], -1.0, atol=2e-3)
    np.testing.assert_allclose(fit.coefficients[:, 0], 0.0, atol=2e-3)
    removed, _ = found.removed(fit.coefficients, found.features, "exact")
    np.testing.assert_allclose(removed, found.error, rtol=1e-3)


def test_data_alone_give_the_same_within_their_standard_errors():
    deviations = []
    for seed in range(4):
        own = calibrate(stack(0.0, 0.3, 0.5), seed=seed)
        fit = dataclasses.replace(own, gate=-np.inf).fit()
        expected = np.array([0.0, -1.0, -1.0])
        deviations.append((fit.coefficients - expected) / fit.standard_error)
    # Shrinkage moves coefficients by up to a standard error; noise does the rest.
    assert 0.3 < np.sqrt(np.mean(np.square(deviations))) < 2.0


def test_the_rule_removes_the_error_it_was_fitted_to(found):
    model = stack(0.0, 0.2, 0.5, 0.1)
    rule = gg.CalibratedGuidance(
        found.sigmas, found.fit(target="exact").coefficients, found.features
    )
    x = 2.0 * jax.random.normal(jax.random.key(3), (64, 1))
    sigma = float(found.sigmas[2])
    guided = gg.guided_denoise(model, rule, x, sigma, 1)
    truth = MIXTURE.denoise(x, sigma, 1)
    before = jnp.abs(model(x, jnp.float32(sigma), jnp.ones(64, jnp.int32)) - truth)
    assert jnp.abs(guided - truth).max() < 0.02 * before.max()


def test_interpolation_is_linear_in_log_sigma_and_constant_beyond():
    rule = gg.CalibratedGuidance(
        np.array([1.0, 4.0]), np.array([[0.5], [1.5]]), ("cfg",)
    )
    x = jnp.ones((3, 1))
    exact = gg.ExactDenoiser(MIXTURE)
    for sigma, scale in ((0.2, 1.5), (1.0, 1.5), (2.0, 2.0), (4.0, 2.5), (9.0, 2.5)):
        got = gg.guided_denoise(exact, rule, x, sigma, 0)
        want = gg.guided_denoise(exact, gg.CFG(scale), x, sigma, 0)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_noise_is_never_fitted():
    """Errors that cancel: features that are large and point nowhere."""
    model = stack(0.0, 0.4, -0.4, same=True)
    for seed in range(5):
        own = calibrate(model, seed=seed)
        assert own.error.max() < 1e-10
        fit = own.fit()
        assert not fit.active.any()
        assert (fit.coefficients == 0.0).all()


def test_no_level_gets_worse():
    """A tiny error beside large features: what is kept must be a gain."""
    model = stack(0.0, 0.41, -0.4, 0.02, same=True)
    for seed in range(5):
        own = calibrate(model, seed=seed)
        fit = own.fit()
        removed, _ = own.removed(fit.coefficients, own.features, "exact")
        assert (removed >= -0.02 * own.error).all()


def test_random_block_is_the_mean_over_blocks():
    """Two blocks with the same error f each: D_c - D* = 2 f, so omega is -2."""
    own = calibrate(stack(0.0, 0.3, 0.3, same=True))
    alone = own.fit_random_block(with_cfg=False, target="exact")
    np.testing.assert_allclose(alone.coefficients[:, 0], -2.0, atol=0.01)
    # Errors 0.1 f and 0.5 f: E[e u] / E[u^2] = 0.6 * 0.3 / 0.13, with the sign of -e.
    uneven = calibrate(stack(0.0, 0.1, 0.5, same=True))
    omega = uneven.fit_random_block(with_cfg=False, target="exact").coefficients[:, 0]
    np.testing.assert_allclose(omega, -0.6 * 0.3 / 0.13, rtol=0.01)


def test_s2_rule_has_the_measured_curves():
    own = calibrate(stack(0.0, 0.3, 0.3, same=True))
    rule = own.s2_rule()
    assert rule.protected == (0,)
    fit = own.fit_random_block()
    np.testing.assert_array_equal(rule.s2_scale.values, fit.coefficients[:, 1])
    np.testing.assert_array_equal(rule.scale.values, 1.0 + fit.coefficients[:, 0])
    model = stack(0.0, 0.3, 0.3, same=True)
    sigma = float(own.sigmas[1])
    clean, _ = MIXTURE.sample(jax.random.key(1), 200, 0)
    x = clean + sigma * jax.random.normal(jax.random.key(2), clean.shape)
    truth = MIXTURE.denoise(x, sigma, 0)
    plain = gg.guided_denoise(model, gg.Unguided(), x, sigma, 0)
    guided = gg.guided_denoise(model, rule, x, sigma, 0)
    assert jnp.mean((guided - truth) ** 2) < 0.05 * jnp.mean((plain - truth) ** 2)


def test_ranking_and_pareto_front_find_the_worst_blocks(found):
    order = [feature for feature, _, _ in found.ranking()]
    assert order[0] == (2,)
    points = found.pareto()
    assert [p.passes for p in points] == [1, 2, 3, 4, 5]
    assert [p.features for p in points[:3]] == [(), ((2,),), ((1,), (2,))]
    worth = [p.worth for p in points]
    assert worth[0] == 0.0 < worth[1] < worth[2]
    # Blocks 2 of 4 (runs block 3 alone) and 1 of 4 (runs blocks 2 and 3).
    assert points[1].cost == pytest.approx(1.25)
    assert points[2].cost == pytest.approx(1.75)
    assert found.pareto(max_passes=2)[-1].features == ((2,),)


def test_total_error_is_that_of_the_plain_prediction():
    """Against other samples and noise, drawn here."""
    model = stack(0.0, 0.2, 0.5, 0.1)
    own = calibrate(model, num_samples=24_000, batch_size=200)
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 24_000).astype(np.int32)
    clean = 8.0 * label[:, None] - 4.0 + rng.normal(size=(24_000, 1))
    noise = rng.normal(size=clean.shape)
    data, exact = [], []
    both = jax.jit(lambda *point: (model(*point), MIXTURE.denoise(*point)))
    for sigma in SIGMAS:
        x = jnp.asarray(clean + sigma * noise, jnp.float32)
        plain, truth = map(np.asarray, both(x, jnp.float32(sigma), label))
        data.append(np.mean((clean - plain) ** 2))
        exact.append(np.mean((truth - plain) ** 2))
    assert own.total_error() == pytest.approx(own.weights @ data, rel=0.04)
    assert own.total_error("exact") == pytest.approx(own.weights @ exact, rel=0.04)
    assert own.total_error("exact") == pytest.approx(own.weights @ own.error)


def test_all_features_remove_the_whole_error_but_noise(found):
    point, error = found.pareto()[-1], found.total_error("exact")
    assert abs(point.worth - error) < 4 * point.worth_error < error
    assert 5 * error < found.total_error()  # most of it is noise


def test_total_error_of_a_gaussian_is_its_posterior_variance():
    """The exact denoiser of N(0, c^2) leaves c^2 sigma^2 / (c^2 + sigma^2)."""
    mixture = gg.GaussianMixture(np.zeros((1, 1)), 4.0)
    variance = float(np.asarray(mixture.covariances)[0, 0, 0])
    own = calibrate(gg.ExactDenoiser(mixture), mixture)
    left = variance * SIGMAS**2 / (variance + SIGMAS**2)
    assert own.total_error() == pytest.approx(own.weights @ left, rel=0.1)
    assert own.total_error("exact") < 1e-9


def test_rules_of_few_passes(found):
    schedule = gg.Karras(6, 0.3, 8.0)
    assert found.rule(max_passes=2).features == ((2,),)
    one = gg.expected_cost(found.rule(max_passes=1), schedule, 4, solver="euler")
    two = gg.expected_cost(found.rule(max_passes=2), schedule, 4, solver="euler")
    assert one.shared == 6.0
    assert two.shared <= 6 * 1.25
    samples = gg.guided_sample(
        jax.random.key(0),
        stack(0.0, 0.2, 0.5, 0.1),
        0,
        num_samples=4,
        guidance=found.rule(max_passes=3),
        schedule=schedule,
    )
    assert np.isfinite(samples).all()


def test_a_zero_coefficient_costs_no_pass():
    rule = gg.CalibratedGuidance(
        np.array([0.1, 1.0, 10.0]),
        np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.5]]),
        ("cfg", (1,)),
    )
    schedule = gg.CustomSchedule((5.0, 0.5, 0.0))
    cost = gg.expected_cost(rule, schedule, 4, solver="euler")
    # At 5: conditional, unconditional, half a pass (blocks 2, 3 of 4). At 0.5: one.
    assert cost.shared == pytest.approx(2.5 + 1.0)
    assert rule.without_weak_passes().columns == (0,)


def test_results_do_not_depend_on_the_batch_size(found):
    """Groups of 200 samples: three batches of 70, the last not full."""
    small = calibrate(stack(0.0, 0.2, 0.5, 0.1), batch_size=70)
    np.testing.assert_allclose(small.products, found.products, rtol=2e-4, atol=1e-6)


def test_size_does_not_grow_with_the_samples(found):
    few = calibrate(stack(0.0, 0.2, 0.5, 0.1), num_samples=24 * 70, batch_size=70)
    assert few.products.shape == found.products.shape
    assert few.fit().standard_error.mean() > found.fit().standard_error.mean()


def test_data_sets_of_any_shape():
    """Images: no closed form, so no error, but the same coefficients."""
    mixture = gg.GaussianMixture(np.zeros((1, 4)), 1.0)
    model = stack(0.0, 0.4, 0.8, mixture=mixture, shape=(2, 2, 1))
    clean = np.asarray(mixture.sample(jax.random.key(9), 3000)[0]).reshape(-1, 2, 2, 1)
    own = calibrate(model, (clean, None), features=((1,), (2,)), num_samples=6000)
    assert not own.has_truth and np.isnan(own.error).all()
    fit = own.fit()
    assert (np.abs(fit.coefficients + 1.0) < 4 * fit.standard_error + 0.05).all()
    with pytest.raises(ValueError, match="calibrate on a mixture"):
        own.fit(target="exact")
    with pytest.raises(ValueError, match="calibrate on a mixture"):
        own.total_error("exact")


def test_held_out_groups_are_held_out_data():
    """Sample i of a data set belongs to group i modulo the number of groups."""
    clean = np.asarray(MIXTURE.sample(jax.random.key(9), 480, 0)[0])
    other = clean + np.where(np.arange(480) % 8 >= 6, 1.0, 0.0)[:, None]
    found, changed = (
        calibrate(
            stack(0.0, 0.4), (x, np.zeros(480, int)), num_groups=8, num_samples=480
        )
        for x in (clean, other)
    )
    assert found.held_out == 2
    same = (found.products == changed.products).all(axis=(0, 2, 3))
    np.testing.assert_array_equal(same, [True] * 6 + [False] * 2)
    np.testing.assert_array_equal(found.fit().coefficients, changed.fit().coefficients)


def test_models_without_blocks_have_cfg_alone():
    own = calibrate(gg.ExactDenoiser(MIXTURE), num_samples=480)
    assert own.features == ("cfg",)
    assert not own.fit().active.any()


def test_save_and_load(found, tmp_path):
    path = found.save(tmp_path / "calibration.json")
    again = gg.Calibration.load(path)
    for field in dataclasses.fields(found):
        value, wanted = getattr(again, field.name), getattr(found, field.name)
        assert type(value) is type(wanted) and np.all(value == wanted)
    np.testing.assert_array_equal(again.rule().coefficients, found.rule().coefficients)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"kind": "gmm_gui', "damaged"),
        (json.dumps({"kind": "other"}), "not a saved Calibration"),
        (json.dumps({"kind": "gmm_guidance.Calibration", "x": 1}), "another version"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        gg.Calibration.load(path)


def test_a_changed_digit_is_noticed(found, tmp_path):
    path = found.save(tmp_path / "calibration.json")
    text = path.read_text()
    place = text.index('"products": ') + 20
    changed = next(i for i in range(place, len(text)) if text[i] in "2345")
    path.write_text(text[:changed] + "9" + text[changed + 1 :])
    with pytest.raises(ValueError, match="another checksum"):
        gg.Calibration.load(path)


def test_unlike_blocks_cost_what_they_say(found):
    """Block 2 of costs 1, 1, 1, 5 runs block 3; block 1 runs blocks 2 and 3."""
    costs = np.array([1.0, 1.0, 1.0, 5.0]) / 8
    points = dataclasses.replace(found, block_costs=costs).pareto(3)
    assert [p.cost for p in points] == pytest.approx([1.0, 1.625, 2.375])


def test_beyond_few_subsets_features_are_added_one_by_one(found, monkeypatch):
    monkeypatch.setattr(regression, "_MOST_SUBSETS", 4)
    points = found.pareto()
    assert [p.features for p in points[1:3]] == [((2,),), ((1,), (2,))]
    assert all(
        set(a.features) < set(b.features)
        for a, b in zip(points, points[1:], strict=False)
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"features": ()}, ValueError, "at least one feature"),
        ({"features": ("cfg", "cfg")}, ValueError, "each once"),
        ({"features": ("uncond",)}, ValueError, "'uncond'"),
        ({"features": ((7,),)}, ValueError, r"0\.\.3"),
        ({"sigmas": [0.0, 1.0]}, ValueError, "> 0"),
        ({"sigmas": [1.0, 1.0]}, ValueError, "differ"),
        ({"num_groups": 4}, ValueError, "at least 8"),
        ({"num_samples": 100}, ValueError, "at least 10"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"data": (np.zeros((5, 1)), None)}, ValueError, "num_groups"),
        ({"data": (np.zeros((50, 1)), np.zeros(3))}, ValueError, r"\[50\]"),
        ({"data": (np.zeros((50, 1)), None), "label": 1}, ValueError, "label chooses"),
    ],
)
def test_calibrate_refuses_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        calibrate(stack(0.0, 0.1, 0.1, 0.1), **options)


def test_what_was_not_measured_is_refused(found):
    with pytest.raises(TypeError, match="not a BlockStack"):
        calibrate(gg.ExactDenoiser(MIXTURE), features=((1,),))
    with pytest.raises(ValueError, match="among those measured"):
        found.fit(((9,),))
    with pytest.raises(ValueError, match="max_passes"):
        found.pareto(max_passes=0)
    with pytest.raises(ValueError, match="not both"):
        found.rule(max_passes=2, features=("cfg",))
    with pytest.raises(ValueError, match="ascending"):
        gg.CalibratedGuidance(np.array([2.0, 1.0]), np.zeros((2, 1)), ("cfg",))
    with pytest.raises(ValueError, match=r"\[levels, features\]"):
        gg.CalibratedGuidance(np.array([1.0, 2.0]), np.zeros((2, 2)), ("cfg",))
    with pytest.raises(ValueError, match="'data' or 'exact', got 'truth'"):
        found.total_error("truth")
