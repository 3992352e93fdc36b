"""What weak passes do to samples: by hand, against samplers, and by repetition."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.linear_stack import TermStack, affine

import gmm_guidance as gg

SCHEDULE = gg.Karras(24, 0.01, 20.0)
OPEN = {"window": None, "s2_scale": 0.2}

# -- a Gaussian class in three dimensions, by hand ----------------------------------

ROTATION, _ = np.linalg.qr(np.array([[1.0, 2, 0], [0, 1, 3], [2, 0, 1]]))
VARIANCES = np.array([0.25, 1.0, 2.25])
MEAN = np.array([2.0, -1.0, 0.5])
GAUSSIAN = gg.GaussianMixture(
    np.stack([MEAN, -MEAN]),
    np.stack([ROTATION @ np.diag(VARIANCES) @ ROTATION.T] * 2),
    labels=np.array([0, 1]),
)
GENERATOR = np.random.default_rng(0)
MATRICES = 0.1 * GENERATOR.normal(size=(4, 3, 3))
OFFSETS = 0.1 * GENERATOR.normal(size=(4, 3))
AFFINE = TermStack(
    tuple(affine(m, o, MEAN) for m, o in zip(MATRICES, OFFSETS, strict=True)), 3
)


def by_hand(mean_matrix, mean_offset, weight, levels):
    """Slope, push, and the integrals of Eq. 2 by a fine quadrature."""
    along_axes = np.diag(ROTATION.T @ mean_matrix @ ROTATION)
    slope = VARIANCES @ along_axes / VARIANCES.sum()
    outward = MEAN / np.linalg.norm(MEAN)
    fine = np.geomspace(levels[-1], levels[0], 20001)
    # A displacement along an axis shrinks by sqrt(v / (v + sigma^2)) down to sigma = 0.
    reach = np.sqrt(VARIANCES / (VARIANCES + fine[:, None] ** 2))
    moved = np.trapezoid(reach * (ROTATION.T @ mean_offset), np.log(fine), axis=0)
    spread = np.sqrt(outward @ ROTATION @ np.diag(VARIANCES) @ ROTATION.T @ outward)
    shift = outward @ ROTATION @ moved / spread
    width = slope * np.log(levels[0] / levels[-1])
    return slope, outward @ mean_offset, weight * width, weight * shift


def check_by_hand(effect, matrix, offset, weight, tolerance):
    slope, push, width, shift = by_hand(matrix, offset, weight, effect.sigmas)
    np.testing.assert_allclose(effect.slope[:, 0], slope, atol=tolerance)
    np.testing.assert_allclose(effect.push[:, 0], push, atol=tolerance)
    np.testing.assert_allclose(effect.log_width_change, width, atol=tolerance)
    # The trapezoidal sum over 60 levels.
    np.testing.assert_allclose(effect.shift_change, shift, rtol=2e-3, atol=tolerance)


FINE = gg.CustomSchedule(tuple(np.geomspace(20.0, 0.01, 60)))


@pytest.mark.parametrize("num_dropped", [1, 2])
def test_gaussian_class_with_all_masks(num_dropped):
    """The mean over all masks is exact, and so without sampling noise."""
    rule = gg.S2Guidance(3.0, 0.2, num_dropped, window=gg.SigmaWindow(0.0101, 30.0))
    effect = gg.weak_pass_effect(AFFINE, GAUSSIAN, 0, rule, FINE, num_samples=64)
    sets = list(itertools.combinations((1, 2, 3), num_dropped))
    matrix = np.mean([MATRICES[list(s)].sum(0) for s in sets], axis=0)
    offset = np.mean([OFFSETS[list(s)].sum(0) for s in sets], axis=0)
    # Off the axes the correction is no multiple of each coordinate: noise of the fit.
    tolerance = 4 * float(effect.slope_error.max() + effect.push_error.max())
    check_by_hand(effect, matrix, offset, 0.2, tolerance)


def test_gaussian_class_without_sampling_noise():
    """Matrices that are diagonal along the principal axes are fitted exactly."""
    factors = np.array([[0.1, -0.2, 0.3], [0.2, 0.1, -0.1]])
    terms = [
        affine(ROTATION @ np.diag(f) @ ROTATION.T, OFFSETS[0], MEAN) for f in factors
    ]
    model = TermStack(tuple(terms), 3)
    rule = gg.SkipLayer(3.0, (1,), 0.5, window=gg.SigmaWindow(0.0101, 30.0))
    effect = gg.weak_pass_effect(model, GAUSSIAN, 0, rule, FINE, num_samples=64)
    matrix = ROTATION @ np.diag(factors[1]) @ ROTATION.T
    check_by_hand(effect, matrix, OFFSETS[0], 0.5, 1e-4)
    assert effect.log_width_change_error < 1e-4 and effect.shift_change_error < 1e-4
    np.testing.assert_allclose(effect.means[0], MEAN, rtol=1e-6)
    np.testing.assert_allclose(effect.stds, np.sqrt(VARIANCES.mean()), rtol=1e-6)
    assert [type(v) for v in json.loads(json.dumps(effect.records()))[0].values()]


def test_random_masks_are_averaged_whatever_the_batches():
    distribution = gg.drop.Bernoulli(0.4)
    rule = gg.S2Guidance(1.0, 0.2, distribution=distribution, window=None)
    schedule = gg.CustomSchedule((2.0, 1.0))
    effect, in_parts = (
        gg.weak_pass_effect(
            AFFINE,
            GAUSSIAN,
            0,
            rule,
            schedule,
            num_samples=3000,
            num_masks=2,
            batch_size=size,
        )
        for size in (3000, 1000)
    )
    for field in dataclasses.fields(effect):
        whole, parts = getattr(effect, field.name), getattr(in_parts, field.name)
        np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-6)
    total, matrix, offset = 0.0, 0.0, 0.0
    for drops in itertools.product((0, 1), repeat=3):
        if any(drops):
            chance = 0.4 ** sum(drops) * 0.6 ** (3 - sum(drops))
            dropped = [1 + j for j in range(3) if drops[j]]
            total += chance
            matrix = matrix + chance * MATRICES[dropped].sum(0)
            offset = offset + chance * OFFSETS[dropped].sum(0)
    slope, push, _, _ = by_hand(matrix / total, offset / total, 0.2, effect.sigmas)
    assert (np.abs(effect.slope[:, 0] - slope) < 4 * effect.slope_error[:, 0]).all()
    assert (np.abs(effect.push[:, 0] - push) < 4 * effect.push_error[:, 0]).all()
    assert effect.push_error.max() < 0.1 * np.linalg.norm(OFFSETS, axis=1).max()


# -- networks whose blocks scale their output ---------------------------------------

LINE = gg.presets.two_modes()
KINDS = {
    "edm": (gg.VE(), gg.ScaledPrediction("edm", float(np.sqrt(17.0)))),
    "epsilon": (gg.VE(), "epsilon"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_output_in_closed_form(kind):
    """Slope kappa (alpha - a), push kappa (1 - a) |m|."""
    stack = gg.exact.ScaledOutputStack(LINE, 0.125, *KINDS[kind], num_blocks=3)
    schedule = gg.Karras(80, 0.01, 40.0)
    rule = gg.S2Guidance(2.0, 0.01)
    effect = gg.weak_pass_effect(stack, LINE, 1, rule, schedule, num_samples=64)
    sigma = effect.sigmas
    np.testing.assert_allclose(sigma, schedule.sigmas()[8:73])  # steps 8 .. 71
    alpha = 1.0 / (1.0 + sigma**2)
    a = 17.0 / (17.0 + sigma**2) if kind == "edm" else np.ones_like(sigma)
    np.testing.assert_allclose(effect.slope[:, 0], 0.125 * (alpha - a), atol=1e-5)
    push = 0.125 * (1 - a) * 4.0
    np.testing.assert_allclose(effect.push[:, 0], push, atol=3e-5)
    closed = gg.exact.scaled_output_change(
        *KINDS[kind],
        0.01 * 0.125,
        std=1.0,
        distance=4.0,
        sigma_min=sigma[-1],
        sigma_max=sigma[0],
    )
    np.testing.assert_allclose(effect.log_width_change, closed.log_width, rtol=3e-3)
    np.testing.assert_allclose(effect.shift_change, closed.shift, rtol=5e-3, atol=1e-7)


def test_last_step_counts_in_full():
    """Euler's last step returns D: its change of the samples is that of D."""
    stack = gg.exact.ScaledOutputStack(LINE, 0.125, gg.VE(), "x0", num_blocks=3)
    schedule = gg.CustomSchedule((0.01,))
    effect = gg.weak_pass_effect(stack, LINE, 1, gg.S2Guidance(1.0, **OPEN), schedule)
    start = 4.0 + np.linspace(-2, 2, 50)[:, None].astype(np.float32)

    def sample(rule):
        found = gg.guided_sample(
            jax.random.key(0),
            stack,
            1,
            num_samples=50,
            guidance=rule,
            schedule=schedule,
            solver="euler",
            initial=start,
        )
        return np.asarray(found, np.float64)

    before, after = sample(gg.Unguided()), sample(gg.S2Guidance(1.0, **OPEN))
    width = after.std() / before.std() - 1
    np.testing.assert_allclose(effect.log_width_change, width, rtol=1e-3)
    shift = after.mean() - before.mean()
    np.testing.assert_allclose(effect.shift_change, shift, rtol=1e-3)


# -- classes of several modes --------------------------------------------------------

INTERLEAVED = gg.GaussianMixture(
    np.array([[-6.0], [-2.0], [2.0], [6.0]]), 0.25, labels=np.array([0, 1, 0, 1])
)


def measured_per_mode(stack, mixture, means, rule_scale, schedule):
    """Width and shift of the samples nearest to each mode, by central differences."""
    found = []
    for scale in (rule_scale, -rule_scale):
        rule = gg.S2Guidance(1.0, scale)
        samples = gg.quantile_map(
            stack, 0, guidance=rule, schedule=schedule, num_points=8000
        )
        samples = np.asarray(samples, np.float64)
        nearest = np.abs(samples[:, None] - means).argmin(1)
        found.append([samples[nearest == k] for k in range(len(means))])
    widths = [np.log(a.std() / b.std()) / 2 for a, b in zip(*found, strict=True)]
    shifts = [(a.mean() - b.mean()) / 2 for a, b in zip(*found, strict=True)]
    return np.array(widths), np.array(shifts)


@pytest.fixture(scope="module")
def two_mode_effects():
    schedule = gg.Karras(40, 0.005, 80.0)
    stack = gg.exact.ScaledOutputStack(INTERLEAVED, 0.125, gg.VE(), "epsilon", 2)
    rule = gg.S2Guidance(1.0, 0.08)
    effect = gg.weak_pass_effect(stack, INTERLEAVED, 0, rule, schedule)
    return stack, schedule, effect


def test_each_mode_of_a_class_against_the_sampler(two_mode_effects):
    stack, schedule, effect = two_mode_effects
    means = effect.means[:, 0]
    np.testing.assert_allclose(means, [-6.0, 2.0], rtol=1e-6)
    widths, shifts = measured_per_mode(stack, INTERLEAVED, means, 0.08, schedule)
    outward = shifts * np.sign(means) / 0.5
    np.testing.assert_allclose(effect.log_width_change, widths, rtol=0.04)
    np.testing.assert_allclose(effect.shift_change, outward, rtol=0.04)
    assert (np.abs(effect.log_width_change) > 10 * effect.log_width_change_error).all()


def test_axes_of_a_product_are_independent(two_mode_effects):
    """The same class along x, a single Gaussian along y: each as it is alone."""
    _, schedule, line = two_mode_effects
    means = np.stack([[-6.0, -2, 2, 6], [3.0] * 4], axis=1)
    plane = gg.GaussianMixture(
        means, np.array([0.25, 4.0]) * np.ones((4, 2)), labels=[0, 1, 0, 1]
    )
    stack = gg.exact.ScaledOutputStack(plane, 0.125, gg.VE(), "epsilon", 2)
    rule = gg.S2Guidance(1.0, 0.08)
    effect = gg.weak_pass_effect(stack, plane, 0, rule, schedule, center=[0.0, 3.0])
    np.testing.assert_allclose(effect.directions, [[-1, 0], [1, 0]], atol=1e-6)
    sigma = effect.sigmas
    slope = -0.125 * sigma**2 / (4.0 + sigma**2)
    across = effect.weights @ slope
    expected = (0.25 * line.log_width_change + 4.0 * across) / 4.25
    error = effect.log_width_change_error
    assert (np.abs(effect.log_width_change - expected) < 4 * error + 1e-4).all()
    error = np.hypot(effect.shift_change_error, line.shift_change_error)
    assert (np.abs(effect.shift_change - line.shift_change) < 4 * error).all()


def test_modes_may_be_groups_of_components():
    stack = TermStack((affine([[0.3]], [0.0], [0.0]), affine([[0.1]], [0.05], [0.0])))
    pair = gg.GaussianMixture(np.array([[-3.0], [-2.5], [3.0]]), 0.04)
    schedule = gg.CustomSchedule((0.03, 0.02, 0.01))  # low noise: samples as they are
    rule = gg.S2Guidance(1.0, **OPEN)
    effect = gg.weak_pass_effect(
        stack, pair, None, rule, schedule, modes=(0, 0, 1), num_samples=4000
    )
    np.testing.assert_allclose(effect.means[:, 0], [-2.75, 3.0], rtol=1e-6)
    np.testing.assert_allclose(effect.stds[0] ** 2, 0.04 + 0.25**2, rtol=1e-5)
    np.testing.assert_allclose(effect.slope, 0.1, atol=1e-5)
    outward = [-(0.1 * -2.75 + 0.05), 0.1 * 3 + 0.05]
    np.testing.assert_allclose(effect.push, [outward] * 3, atol=1e-5)
    total = effect.weights.sum()
    expected = np.stack(
        [np.full(2, 0.1 * total), total * np.array(outward) / effect.stds]
    )
    found = np.stack([effect.log_width_change, effect.shift_change])
    error = np.stack([effect.log_width_change_error, effect.shift_change_error])
    assert (np.abs(found - expected) < 4 * error + 0.01 * np.abs(expected)).all()
    assert (error < 0.1 * np.abs(expected)).all()


# -- errors, batches, windows --------------------------------------------------------


def curved(x, sigma):
    return 0.3 * jnp.sin(2.0 * x) * jnp.tanh(x) + 0.05 * x


CURVED = TermStack((affine([[0.2]], [0.0], [0.0]), curved))


@pytest.mark.parametrize(("mixture", "label"), [(LINE, 1), (INTERLEAVED, 0)])
def test_standard_errors_are_those_of_repetitions(mixture, label):
    schedule = gg.CustomSchedule((6.0, 3.0, 1.5, 0.7, 0.3))
    rule = gg.S2Guidance(1.0, **OPEN)
    found = [
        gg.weak_pass_effect(
            CURVED,
            mixture,
            label,
            rule,
            schedule,
            key=jax.random.key(seed),
            num_samples=200,
        )
        for seed in range(30)
    ]
    for name in ("slope", "push", "log_width_change", "shift_change"):
        values = np.stack([getattr(f, name) for f in found])
        errors = np.stack([getattr(f, name + "_error") for f in found])
        spread = np.sqrt(np.mean(values.var(0, ddof=1)))
        stated = np.sqrt(np.mean(errors**2))
        assert 0.75 < spread / stated < 1.33, (name, spread, stated)


def test_levels_outside_the_window_do_not_count():
    """A network that fails above sigma 5 and below 0.1, and a window between."""

    def broken(x, sigma):
        bad = (sigma > 5.0) | (sigma < 0.1)
        return jnp.where(bad, jnp.nan, 0.1)[:, None] * x

    model = TermStack((affine([[0.2]], [0.0], [0.0]), broken))
    curve = gg.SigmaCurve(np.array([0.1, 10.0]), np.array([0.1, 0.3]))
    inside = gg.S2Guidance(4.0, curve, window=gg.SigmaWindow(0.2, 4.0))
    effect = gg.weak_pass_effect(model, LINE, 1, inside, SCHEDULE, num_samples=64)
    levels = SCHEDULE.sigmas()
    acts = np.flatnonzero((levels > 0.2) & (levels <= 4.0))
    np.testing.assert_allclose(effect.sigmas, levels[acts[0] : acts[-1] + 2])
    # omega is linear in log sigma, and so is its integral's trapezoidal sum exact.
    low, high = np.log(effect.sigmas[[-1, 0]])
    omega = 0.1 + 0.2 * (np.array([low, high]) - np.log(0.1)) / np.log(100.0)
    np.testing.assert_allclose(effect.weights.sum(), omega.mean() * (high - low))
    change = 0.1 * omega.mean() * (high - low)
    np.testing.assert_allclose(effect.log_width_change, change, rtol=1e-4)


def test_windowed_and_auto_guidance():
    """AutoGuidance of scale 1.3: D_c - D_w with weight 0.3."""

    def strong(x, sigma, label):
        return 0.5 * x

    def weak(x, sigma, label):
        return 0.4 * x - 0.1

    rule = gg.AutoGuidance(weak, 1.3)
    schedule = gg.CustomSchedule((2.0, 1.0))
    for given in (rule, gg.Windowed(rule, None)):
        effect = gg.weak_pass_effect(strong, LINE, 1, given, schedule, num_samples=64)
        np.testing.assert_allclose(effect.slope, 0.1, rtol=1e-4)
        np.testing.assert_allclose(effect.push, 0.1 * 4 + 0.1, rtol=1e-4)
        np.testing.assert_allclose(
            effect.weights, 0.3 * np.array([0.5 * np.log(2), 1 + 0.5 * np.log(2)])
        )


def test_a_mode_at_the_center_has_no_outward_direction():
    middle = gg.GaussianMixture(np.array([[-4.0], [0.0], [4.0]]), 1.0, labels=[0, 1, 0])
    schedule = gg.CustomSchedule((1.0, 0.5))
    options = {"num_samples": 32}
    args = (CURVED, middle, 1, gg.S2Guidance(1.0, **OPEN), schedule)
    effect = gg.weak_pass_effect(*args, **options)
    assert np.isnan(effect.push).all() and np.isnan(effect.shift_change).all()
    assert np.isfinite(effect.slope).all() and np.isfinite(effect.log_width_change)
    seen = gg.weak_pass_effect(*args, center=[-1.0], **options)
    other = gg.weak_pass_effect(*args, center=[1.0], **options)
    np.testing.assert_allclose(seen.push, -other.push)
    np.testing.assert_allclose(seen.slope, effect.slope)


def test_distance_change_is_the_derivative_of_the_distance():
    step = 1e-5
    effect = gg.WeakPassEffect(
        **{f.name: np.zeros(1) for f in dataclasses.fields(gg.WeakPassEffect)}
        | {"shift_change": np.array([0.7 * step]), "means": np.zeros((1, 3))}
        | {"log_width_change": np.array([-0.4 * step])}
    )

    def distance(shift, width):
        return np.sqrt(shift**2 + 3 * (1 - width) ** 2)

    for shift, width in ((0.5, 0.8), (-0.2, 1.3), (1.0, 1.0)):
        after = distance(shift + 0.7 * step, width * np.exp(-0.4 * step))
        expected = after - distance(shift, width)
        found = effect.distance_change(shift, width)
        np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert np.isnan(effect.distance_change(0.0, 1.0)).all()


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (gg.CFG(2.0), ValueError, "no weak term"),
        (gg.S2Guidance(2.0, 0.0), ValueError, "no weak term"),
        (gg.S2Guidance(2.0, form="subtract"), ValueError, "form must be"),
        (gg.S2Guidance(gg.S2Guidance(2.0)), TypeError, "more than one weak term"),
        (gg.S2Guidance(2.0, num_dropped=2), ValueError, "num_dropped=2"),
    ],
)
def test_rules_that_have_no_answer_are_refused(rule, error, message):
    with pytest.raises(error, match=message):
        gg.weak_pass_effect(CURVED, LINE, 1, rule, SCHEDULE)


def test_arguments_out_of_range_are_refused():
    args = (CURVED, LINE, 1, gg.S2Guidance(1.0, **OPEN), SCHEDULE)
    with pytest.raises(ValueError, match="num_samples must be at least 8"):
        gg.weak_pass_effect(*args, num_samples=4)
    with pytest.raises(ValueError, match="center must have shape"):
        gg.weak_pass_effect(*args, center=0.0)
    with pytest.raises(ValueError, match="modes must name"):
        gg.weak_pass_effect(*args, modes=(0, 1))
    with pytest.raises(TypeError, match="has none"):
        gg.weak_pass_effect(gg.ExactDenoiser(LINE), *args[1:])
