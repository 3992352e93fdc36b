"""Processes and conversions against definitions, quadrature and closed-form Gaussians.

Oracles are written from the definitions in float64 and share no code with the module.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from gmm_guidance.process import (
    DDPM,
    KINDS,
    VE,
    VP,
    Process,
    ProcessDenoiser,
    RectifiedFlow,
    denormalise,
    from_denoised,
    normalise,
    to_denoised,
)

# Each with three times of its own clock at which nothing is singular.
CLOCKS = {
    "ve": (VE(), (0.05, 1.0, 30.0)),
    "vp": (VP(), (0.05, 0.4, 0.8)),
    "ddpm": (DDPM(), (20.3, 400.0, 800.6)),
    "flow": (RectifiedFlow(), (0.05, 0.5, 0.95)),
    "sit": (RectifiedFlow(data_at_one=True), (0.05, 0.5, 0.95)),
}
ALL = pytest.mark.parametrize("process, times", CLOCKS.values(), ids=CLOCKS)
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 3, 2)), rng.normal(size=(3, 3, 2))


def chain(num_steps=1000, first=1e-4, last=2e-2):
    """DDPM's alpha_bar, one factor after another."""
    product, table = 1.0, []
    for i in range(num_steps):
        product *= 1.0 - (first + (last - first) * i / (num_steps - 1))
        table.append(product)
    return np.array(table)


def column(values):
    return np.reshape(np.asarray(values, float), (-1, 1, 1))


def noised(process, t, x0, eps):
    alpha, std = np.asarray(process.alpha(t)), np.asarray(process.noise_std(t))
    if alpha.ndim:
        alpha, std = column(alpha), column(std)
    return alpha * x0 + std * eps


# --- the processes themselves


def test_vp_alpha_is_the_integral_of_beta(x64):
    for t in (1e-3, 0.2, 0.7, 1.0):
        integral, _ = integrate.quad(lambda u: 0.1 + 19.9 * u, 0, t)
        np.testing.assert_allclose(VP().alpha(t), np.exp(-integral / 2), rtol=1e-12)
    np.testing.assert_allclose(VP(2.0, 2.0).alpha(0.5), np.exp(-0.5), rtol=1e-12)


def test_ddpm_table_is_the_running_product():
    table = chain()
    np.testing.assert_allclose(DDPM().alpha_bars(), table, rtol=1e-11)
    np.testing.assert_allclose(DDPM().sigmas() ** 2, 1 / table - 1, rtol=1e-10)
    steps = jnp.arange(1000)
    np.testing.assert_allclose(DDPM().alpha(steps) ** 2, table, rtol=4e-6)
    np.testing.assert_allclose(DDPM().noise_std(steps) ** 2, 1 - table, rtol=4e-6)
    short = DDPM(num_steps=7, beta_start=0.1, beta_end=0.5)
    np.testing.assert_allclose(short.alpha_bars(), chain(7, 0.1, 0.5), rtol=1e-13)
    assert DDPM().sigmas()[0] == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(ValueError, match="read-only"):
        DDPM().sigmas()[0] = 1.0


def test_ddpm_between_steps_is_the_geometric_mean():
    low, high = DDPM().sigmas()[[500, 501]]
    np.testing.assert_allclose(DDPM().sigma(500.5), np.sqrt(low * high), rtol=2e-6)


def test_ddpm_goes_on_at_the_slope_of_its_ends():
    table = DDPM().sigmas()
    below, above = table[0] ** 2 / table[1], table[-1] ** 2 / table[-2]
    np.testing.assert_allclose(DDPM().sigma(-1.0), below, rtol=5e-6)
    np.testing.assert_allclose(DDPM().sigma(1000.0), above, rtol=5e-6)


def test_ddpm_inverse_at_its_steps():
    steps = np.arange(1000)
    levels = jnp.asarray(DDPM().sigmas())
    np.testing.assert_allclose(DDPM().time(levels), steps, atol=3e-4)
    nearest = DDPM().nearest_step(levels)
    assert nearest.dtype == jnp.int32
    np.testing.assert_array_equal(nearest, steps)
    ends = DDPM().nearest_step(jnp.array([1e-6, 0.0, 1e6]))
    np.testing.assert_array_equal(ends, [0, 0, 999])


@pytest.mark.parametrize("process", [VP(), VP(1.0, 1.0), DDPM()])
def test_variance_is_preserved(process):
    t = jnp.linspace(0.0, 1.0, 41) * (999 if isinstance(process, DDPM) else 1)
    total = process.alpha(t) ** 2 + process.noise_std(t) ** 2
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


@pytest.mark.parametrize("process", [p for p, _ in CLOCKS.values()], ids=CLOCKS)
def test_time_inverts_sigma(process):
    levels = jnp.logspace(-3, 3, 61)
    t = process.time(levels)
    direction = -1 if getattr(process, "data_at_one", False) else 1
    assert np.all(direction * np.diff(t) > 0)
    # A flow's clock resolves sigma by half a unit in the last place of a time near 1.
    grain = np.maximum(levels, 1 / levels) * (
        1.2e-7 if isinstance(process, RectifiedFlow) else 0
    )
    error = np.abs(np.asarray(process.sigma(t)) / np.asarray(levels) - 1)
    assert np.all(error < 4e-6 + grain)


@pytest.mark.parametrize("process", [p for p, _ in CLOCKS.values()], ids=CLOCKS)
def test_sigma_is_noise_over_signal_in_float64(x64, process):
    levels = np.logspace(-3, 3, 61)
    t = process.time(levels)
    assert t.dtype == jnp.float64
    np.testing.assert_allclose(process.sigma(t), levels, rtol=1e-9)
    ratio = process.noise_std(t) / process.alpha(t)
    np.testing.assert_allclose(ratio, levels, rtol=1e-9)


@pytest.mark.parametrize("sigma", [1e-12, 1e-5, 1e4, 1e15])
def test_vp_is_sound_at_extreme_levels_in_float32(sigma):
    t = VP().time(sigma)
    np.testing.assert_allclose(VP().sigma(t), sigma, rtol=2e-5)
    beta_integral = 0.1 * float(t) + 19.9 * float(t) ** 2 / 2
    np.testing.assert_allclose(beta_integral, np.log1p(sigma**2), rtol=1e-6)
    assert np.isfinite(jax.grad(VP().time)(sigma))


def test_sit_is_the_flow_with_its_clock_reversed():
    flow, sit, t = RectifiedFlow(), RectifiedFlow(data_at_one=True), 0.3
    np.testing.assert_allclose(sit.alpha(1 - t), flow.alpha(t), rtol=1e-6)
    np.testing.assert_allclose(sit.sigma(1 - t), flow.sigma(t), rtol=1e-6)
    np.testing.assert_allclose(sit.sigma(0.2), 4.0, rtol=1e-6)
    np.testing.assert_allclose(sit.time(4.0), 0.2, rtol=1e-6)


@ALL
def test_rates_are_the_derivatives(x64, process, times):
    step = 1e-5
    for t in times:
        if isinstance(process, DDPM):
            t = t + 0.25  # inside an interval, where the chain is smooth
        for value, rate in (
            (process.alpha, process.alpha_rate),
            (process.noise_std, process.noise_std_rate),
        ):
            slope = (value(t + step) - value(t - step)) / (2 * step)
            np.testing.assert_allclose(rate(t), slope, rtol=1e-5, atol=1e-12)
            _, tangent = jax.jvp(value, (t,), (1.0,))
            np.testing.assert_allclose(rate(t), tangent, rtol=1e-9, atol=1e-14)


def test_ddpm_rate_at_a_step_is_that_of_the_interval_to_its_right(x64):
    slope = (DDPM().alpha(400.001) - DDPM().alpha(400.0)) / 0.001
    np.testing.assert_allclose(DDPM().alpha_rate(400), slope, rtol=1e-4)


# --- conversions


@ALL
def test_velocity_is_the_derivative_along_a_path(x64, pair, process, times):
    x0, eps = pair
    t = np.array(times) + (0.25 if isinstance(process, DDPM) else 0.0)
    step = 1e-5
    slope = (
        noised(process, t + step, x0, eps) - noised(process, t - step, x0, eps)
    ) / (2 * step)
    x_t = noised(process, t, x0, eps)
    velocity = from_denoised(process, x0, x_t, t, "velocity")
    np.testing.assert_allclose(velocity, slope, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(
        to_denoised(process, slope, x_t, t, "velocity"), x0, rtol=1e-4, atol=1e-5
    )


def test_velocity_of_vp_is_the_probability_flow(pair):
    """Song et al. 2021, Eq. 13: dx/dt = f - g^2 score / 2, f = -beta x / 2."""
    x_t, denoised = pair
    t = np.array([0.1, 0.5, 0.9])
    score = np.asarray(from_denoised(VP(), denoised, x_t, t, "score"))
    drift = -0.5 * (0.1 + 19.9 * column(t)) * (x_t + score)
    velocity = from_denoised(VP(), denoised, x_t, t, "velocity")
    np.testing.assert_allclose(velocity, drift, rtol=1e-4, atol=1e-4)


def test_velocities_of_the_straight_paths(pair):
    x0, eps = pair
    t = np.array([0.1, 0.5, 0.9])
    x_t = (1 - column(t)) * x0 + column(t) * eps
    flow = from_denoised(RectifiedFlow(), x0, x_t, t, "velocity")
    np.testing.assert_allclose(flow, eps - x0, rtol=1e-4, atol=1e-5)
    sit = RectifiedFlow(data_at_one=True)
    reverse = from_denoised(sit, x0, x_t, 1 - t, "velocity")
    np.testing.assert_allclose(reverse, x0 - eps, rtol=1e-4, atol=1e-5)
    # SiT's own data prediction, D = x_t + (1 - t) v in its clock.
    anything = np.ones_like(x_t)
    denoised = to_denoised(sit, anything, x_t, 1 - t, "velocity")
    np.testing.assert_allclose(denoised, x_t + column(t) * anything, rtol=1e-5)
    exploding = from_denoised(VE(), x0, x0 + 2.0 * eps, 2.0, "velocity")
    np.testing.assert_allclose(exploding, eps, rtol=1e-4, atol=1e-5)


@ALL
def test_definitions_of_eps_and_v(pair, process, times):
    x0, eps = pair
    t = np.array(times)
    x_t = noised(process, t, x0, eps)
    sigma = column(process.sigma(t))
    # alpha and s from their ratio and the constraint on their sum, class by class.
    if isinstance(process, VE):
        alpha = np.ones_like(sigma)
    elif isinstance(process, RectifiedFlow):
        alpha = 1 / (1 + sigma)
    else:
        alpha = 1 / np.sqrt(1 + sigma**2)
    expected = {"x0": x0, "eps": eps, "v": alpha * eps - alpha * sigma * x0}
    for kind, value in expected.items():
        got = from_denoised(process, x0, x_t, t, kind)
        np.testing.assert_allclose(got, value, rtol=1e-4, atol=2e-4, err_msg=kind)
        back = to_denoised(process, value, x_t, t, kind)
        np.testing.assert_allclose(back, x0, rtol=1e-4, atol=1e-4, err_msg=kind)


@ALL
def test_score_is_the_gradient_of_the_marginal(process, times):
    """For data at a single point, x_t is Gaussian around alpha times it."""
    x0, x = jnp.array([0.5, -1.0]), jnp.array([[1.0, 0.3]])
    t = times[1]
    log_density = jax.scipy.stats.norm.logpdf

    def total(x):
        return log_density(x[0], process.alpha(t) * x0, process.noise_std(t)).sum()

    score = from_denoised(process, x0[None], x, t, "score")
    np.testing.assert_allclose(score, jax.grad(total)(x), rtol=1e-4)


@ALL_KINDS
@pytest.mark.parametrize("per_sample", [False, True], ids=["scalar", "per sample"])
@ALL
def test_round_trips(pair, process, times, per_sample, kind):
    x0, eps = pair
    t = jnp.array(times) if per_sample else times[1]
    x_t = noised(process, t, x0, eps)
    denoised = jnp.asarray(0.3 * x0 + 1.0)
    prediction = from_denoised(process, denoised, x_t, t, kind)
    assert prediction.shape == x_t.shape
    back = to_denoised(process, prediction, x_t, t, kind)
    np.testing.assert_allclose(back, denoised, rtol=1e-4, atol=1e-4)
    if kind != "x0":  # so that the trip is one
        assert np.abs(prediction - denoised).max() > 1e-2


@ALL_KINDS
def test_times_belong_to_samples_even_where_another_axis_is_as_long(pair, kind):
    x0, eps = pair  # [3, 3, 2]
    t = np.array([0.1, 0.5, 0.9])
    together = from_denoised(VP(), x0, eps, t, kind)
    for i in range(3):
        alone = from_denoised(VP(), x0[i : i + 1], eps[i : i + 1], t[i], kind)
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)


@ALL
def test_normalise_and_back(pair, process, times):
    x0, eps = pair
    for t in (times[1], jnp.array(times)):
        x_t = noised(process, t, x0, eps)
        x, sigma = normalise(process, x_t, t)
        assert sigma.shape == jnp.shape(t)
        level = np.asarray(sigma) if sigma.ndim == 0 else column(sigma)
        np.testing.assert_allclose(x, x0 + level * eps, rtol=1e-4, atol=1e-4)
        again, time = denormalise(process, x, sigma)
        np.testing.assert_allclose(again, x_t, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(time, t, rtol=1e-5)


def test_half_precision_predictions_are_taken_in_float32():
    x = jnp.ones((2, 2), jnp.bfloat16)
    denoised = to_denoised(DDPM(), x, x, jnp.array([1, 999]), "eps")
    assert denoised.dtype == jnp.float32
    alpha_bar = chain()[[1, 999]]
    expected = (1 - np.sqrt(1 - alpha_bar)) / np.sqrt(alpha_bar)
    # 1 - s = 2e-5 at the end of the chain, which bfloat16 would round to 0.
    np.testing.assert_allclose(denoised[:, 0], expected, rtol=5e-3)


# --- the denoiser

MEAN, STD = 1.5, 0.7


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class GaussianNetwork:
    """Exact network for N(mean, STD^2), from the marginal of x_t, of any kind."""

    mean: jax.Array
    process: Process = dataclasses.field(metadata={"static": True})
    kind: str = dataclasses.field(metadata={"static": True})

    def __call__(self, x_t, t, label):
        assert t.shape == x_t.shape[:1]
        alpha, alpha_rate = jax.jvp(self.process.alpha, (t,), (jnp.ones_like(t),))
        std, std_rate = jax.jvp(self.process.noise_std, (t,), (jnp.ones_like(t),))
        alpha, std, alpha_rate, std_rate = (
            a[:, None] for a in (alpha, std, alpha_rate, std_rate)
        )
        score = -(x_t - alpha * self.mean) / (alpha**2 * STD**2 + std**2)
        eps = -std * score
        gain = alpha * STD**2 / (alpha**2 * STD**2 + std**2)
        x0 = self.mean + gain * (x_t - alpha * self.mean)
        return {
            "x0": x0,
            "eps": eps,
            "v": alpha * eps - std * x0,
            "velocity": alpha_rate * x0 + std_rate * eps,
            "score": score,
        }[self.kind]


def wrapped(process, kind):
    network = GaussianNetwork(jnp.asarray(MEAN), process, kind)
    return ProcessDenoiser(network, process, kind)


def exact(x, sigma):
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


@ALL_KINDS
@ALL
def test_one_denoiser_whatever_process_and_kind(process, times, kind):
    rng = np.random.default_rng(1)
    sigma = np.array([0.05, 0.3, 1.0, 5.0, 50.0])
    x = MEAN + np.sqrt(STD**2 + sigma[:, None] ** 2) * rng.normal(size=(5, 2))
    denoiser = jax.jit(lambda model, *inputs: model(*inputs, None))
    model = wrapped(process, kind)
    expected = exact(x, sigma[:, None])
    # Float32 resolves eps to 6e-8 or so, and sigma = 50 multiplies it.
    denoised = denoiser(model, jnp.asarray(x), jnp.asarray(sigma))
    np.testing.assert_allclose(denoised, expected, rtol=1e-3, atol=1e-3)
    scalar = denoiser(model, jnp.asarray(x), 0.3)
    np.testing.assert_allclose(scalar, exact(x, 0.3), rtol=1e-4, atol=1e-4)


@ALL_KINDS
@ALL
def test_one_denoiser_to_rounding_in_float64(x64, process, times, kind):
    sigma = np.array([0.02, 1.0, 100.0])
    x = np.array([[1.0], [2.0], [-90.0]])
    denoised = wrapped(process, kind)(x, sigma, None)
    np.testing.assert_allclose(denoised, exact(x, sigma[:, None]), rtol=1e-8)


@ALL
def test_denoiser_under_vmap_and_grad(process, times):
    denoiser = wrapped(process, "eps")
    x = jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)
    levels = jnp.array([0.1, 1.0, 3.0, 9.0])

    @jax.jit
    def everything(x, levels):
        swept = jax.vmap(lambda s: denoiser(x, s, None))(levels)
        slope_x = jax.grad(lambda x: denoiser(x, levels[1], None).sum())(x)
        slope_sigma = jax.grad(lambda s: denoiser(x, s, None)[0, 0])(levels[1])
        return swept, slope_x, slope_sigma

    swept, slope_x, slope_sigma = everything(x, levels)
    expected = np.stack([exact(np.asarray(x), float(s)) for s in levels])
    np.testing.assert_allclose(swept, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(slope_x, STD**2 / (STD**2 + 1), rtol=1e-4)
    # At sigma = 1, where VP changes from one form of its inverse to another.
    by_hand = -2 * STD**2 / (STD**2 + 1) ** 2 * (-1.0 - MEAN)
    np.testing.assert_allclose(slope_sigma, by_hand, rtol=1e-3)


def test_denoiser_is_a_pytree_with_the_network_as_its_data():
    denoiser = wrapped(VP(), "v")
    assert len(jax.tree.leaves(denoiser)) == 1
    x = jnp.zeros((2, 1))

    @jax.jit
    def loss(denoiser):
        return denoiser(x, 1.0, None)[0, 0]

    gradient = jax.grad(loss)(denoiser)
    assert gradient.process == VP()
    np.testing.assert_allclose(gradient.model.mean, 1 / (1 + STD**2), rtol=1e-4)


def test_denoiser_hands_on_the_label_and_what_the_network_tells():
    class Network:
        sample_shape = (2,)
        num_labels = 3

        def __call__(self, x_t, t, label):
            return x_t * 0 + label[:, None].astype(x_t.dtype)

    denoiser = ProcessDenoiser(Network(), VE(), "x0")
    assert (denoiser.sample_shape, denoiser.num_labels) == ((2,), 3)
    denoised = denoiser(jnp.ones((2, 2)), 1.0, jnp.array([2, 0]))
    np.testing.assert_array_equal(denoised, [[2, 2], [0, 0]])
    bare = ProcessDenoiser(lambda x_t, t, label: x_t, VE(), "x0")
    assert bare.sample_shape is None and bare.num_labels is None


def test_ddpm_network_sees_the_times_of_the_chain():
    seen = []

    def network(x_t, t, label):
        seen.append((x_t, t))
        return x_t

    level = DDPM().sigmas()[700]
    ProcessDenoiser(network, DDPM(), "eps")(jnp.ones((2, 1)), level, None)
    (x_t, t), *_ = seen
    np.testing.assert_allclose(t, [700.0, 700.0], atol=1e-3)
    np.testing.assert_allclose(x_t, np.sqrt(chain()[700]) * np.ones((2, 1)), rtol=1e-5)


# --- what is refused


@pytest.mark.parametrize("kind", ["epsilon", "X0", "", None])
def test_unknown_kinds(kind):
    x = jnp.ones((2, 1))
    pattern = "unknown kind.*x0, eps, v, velocity, score"
    with pytest.raises(ValueError, match=pattern):
        to_denoised(VE(), x, x, 1.0, kind)
    with pytest.raises(ValueError, match=pattern):
        from_denoised(VE(), x, x, 1.0, kind)
    with pytest.raises(ValueError, match=pattern):
        ProcessDenoiser(lambda x, t, label: x, VE(), kind)


@pytest.mark.parametrize(
    "beta_min, beta_max", [(0, 20), (3, 2), (np.nan, 1), (1, np.inf)]
)
def test_bad_vp(beta_min, beta_max):
    with pytest.raises(ValueError, match="0 < beta_min <= beta_max.*got"):
        VP(beta_min, beta_max)


@pytest.mark.parametrize(
    "arguments, pattern",
    [
        ({"num_steps": 1}, "num_steps must be a whole number of at least 2, got 1"),
        ({"num_steps": 10.0}, "whole number.*got 10.0"),
        ({"beta_start": 0.0}, "0 < beta_start.*got beta_start=0.0"),
        ({"beta_end": 1.0}, "beta_end < 1.*beta_end=1.0"),
        ({"beta_start": 0.03}, "beta_start <= beta_end"),
    ],
)
def test_bad_ddpm(arguments, pattern):
    with pytest.raises(ValueError, match=pattern):
        DDPM(**arguments)


@pytest.mark.parametrize("step", [-1, 1000, np.array([3, 1000])])
def test_integer_times_outside_of_the_chain(step):
    with pytest.raises(ValueError, match=r"0\.\.999, got \[(-1|1000)\]"):
        DDPM().alpha(step)


@pytest.mark.parametrize("process", [p for p, _ in CLOCKS.values()], ids=CLOCKS)
def test_negative_levels(process):
    for sigma in (-1.0, np.nan, jnp.array([1.0, -1.0])):
        with pytest.raises(ValueError, match="sigma must be at least 0, got"):
            process.time(sigma)


@pytest.mark.parametrize(
    "process, t",
    [(VE(), -1.0), (VP(), -0.1), (VP(), np.nan)]
    + [(RectifiedFlow(), 1.5), (RectifiedFlow(data_at_one=True), 700)],
)
def test_times_off_the_clock(process, t):
    with pytest.raises(ValueError, match=r"time must be in \[0, (inf|1)\], got"):
        process.alpha(t)


def test_shapes_that_do_not_fit():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"t must be a scalar.*\(3,\).*\(2, 3\)"):
        to_denoised(VE(), x, x, jnp.ones(3), "eps")
    with pytest.raises(ValueError, match="t must be a scalar"):
        normalise(VE(), x, jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="sigma must be a scalar"):
        denormalise(VE(), x, jnp.ones(3))
    with pytest.raises(ValueError, match=r"prediction must have the shape.*channels"):
        to_denoised(VE(), jnp.ones((2, 6)), x, 1.0, "eps")
    with pytest.raises(ValueError, match="denoised must have the shape"):
        from_denoised(VE(), jnp.ones(3), x, 1.0, "eps")


def test_processes_are_hashable_values():
    assert len({VE(), VP(), VP(0.1, 20.0), DDPM(), DDPM(), RectifiedFlow()}) == 4
    assert RectifiedFlow() != RectifiedFlow(data_at_one=True)
