"""Rules that recombine passes, against closed forms and limits."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gmm_guidance as gg
from gmm_guidance.guidance import parse_rule
from gmm_guidance.guidance.windows import Position

RNG = np.random.default_rng(0)
X, D_U, D_C, D_N = (jnp.asarray(RNG.normal(size=(4, 6)), "float32") for _ in range(4))
SIGMA = jnp.float32(0.7)
POSITION = Position(0.5, 0.7, 5, 10)


def guided(rule, *outputs, x=X, state=()):
    return np.asarray(rule.combine(outputs, x, SIGMA, state)[0], float)


def cfg(scale, base=D_U, cond=D_C):
    return np.asarray(base + scale * (cond - base), float)


# --- the shift of an equal-variance Gaussian is the mean of the scale over u


def shift(combine):
    """The mean of the probability flow of N(mean, 1) from a large sigma, 2-D."""
    means = np.array([[0.0, 0.0], [1.0, 0.5], [-0.4, 0.8]])  # u, c, n

    def slope(log_sigma, x):
        sigma = math.exp(log_sigma)
        values = means + (x[None] - means) / (1.0 + sigma**2)
        return x - combine(values, x, sigma)

    start = math.log(1e4)
    path = solve_ivp(
        slope, (start, math.log(1e-4)), means[1], rtol=1e-5, atol=1e-7, max_step=0.05
    )
    return path.y[:, -1] - means[1]


def test_the_shift_of_curves_and_negatives_is_the_mean_of_the_scale_over_u():
    """The oracle in float64 for the formulas that the rules are compared with."""
    u = lambda sigma: 1.0 / math.sqrt(1.0 + sigma**2)  # noqa: E731
    delta, away = np.array([1.0, 0.5]), np.array([-0.4, 0.8])
    nodes = np.geomspace(0.3, 5.0, 40)
    curve = gg.SigmaCurve(tuple(nodes), tuple(0.5 + nodes / 5.0))

    def scale(sigma):
        return np.interp(math.log(sigma), np.log(nodes), curve.values)

    grid = (np.arange(20_000) + 0.5) / 20_000
    expected = np.mean([scale(math.sqrt(1.0 / v**2 - 1.0)) for v in grid])
    found = shift(lambda d, x, s: d[1] + scale(s) * (d[1] - d[0]))
    np.testing.assert_allclose(found, expected * delta, rtol=1e-3)
    window = shift(lambda d, x, s: d[1] + 3.0 * (0.5 < s <= 2.0) * (d[1] - d[0]))
    np.testing.assert_allclose(window, 3.0 * (u(0.5) - u(2.0)) * delta, rtol=2e-3)
    for perpendicular in (False, True):
        rule = gg.NegativeCFG(2.0, 2, 0.5, perpendicular)
        value = jax.jit(lambda d, rule=rule: rule.combine(d[:, None], d, 1.0, ())[0][0])

        def combine(d, x, s, value=value):
            return np.asarray(value(d))

        part = (away @ delta) / (delta @ delta) * delta if perpendicular else 0.0
        np.testing.assert_allclose(shift(combine), delta - 0.5 * (away - part), 3e-3)


# --- negative labels


def test_negatives_reduce_to_cfg():
    np.testing.assert_allclose(
        guided(gg.NegativeBase(3.0, 1), D_N, D_C), cfg(3.0, D_N), rtol=1e-5
    )
    for perpendicular in (False, True):
        rule = gg.NegativeCFG(3.0, 1, 0.8, perpendicular)
        np.testing.assert_allclose(
            guided(rule, D_U, D_C, D_U), cfg(3.0), rtol=1e-5, atol=1e-5
        )
        off = dataclasses.replace(rule, negative_scale=0.0)
        np.testing.assert_allclose(
            guided(off, D_U, D_C, D_N), cfg(3.0), rtol=1e-5, atol=1e-5
        )
    same = gg.NegativeCFG(3.0, 1, 0.8, True)  # D_n = D_c has no orthogonal part
    np.testing.assert_allclose(guided(same, D_U, D_C, D_C), cfg(3.0), atol=1e-5)


def test_the_negative_pass_has_the_label():
    label = jnp.array([0, 1, 2, 0])
    _, cond, negative = gg.NegativeCFG(2.0, 3).passes(label, ())
    assert cond.label is label and (negative.label == 3).all()
    assert negative.label.shape == label.shape
    cost = gg.expected_cost(gg.NegativeCFG(2.0, 3), gg.Karras(5), 4, solver="euler")
    assert cost.shared == 15.0


# --- norms and angles


@pytest.mark.ci
@pytest.mark.parametrize("over", ["token", "sample"])
def test_norms_of_velocities_are_matched_or_capped(over):
    x, uncond, cond = (
        jnp.asarray(RNG.normal(size=(3, 5, 4)), "float32") for _ in range(3)
    )
    # Rectified flow: v = x_1 - x_0 at x_t = (1 - t) x_0 + t x_1 with x = x_t / (1 - t).
    axes = -1 if over == "token" else (1, 2)

    def length(denoised):
        v = (np.asarray(x) - denoised) / float(SIGMA) - denoised
        return np.sqrt((v**2).sum(axis=axes))

    one = guided(gg.NormMatchedCFG(4.0, over), uncond, cond, x=x)
    assert (length(one) <= length(np.asarray(cond)) * (1 + 1e-4)).all()
    full = guided(gg.NormMatchedCFG(0.2, over, cap=None), uncond, cond, x=x)
    np.testing.assert_allclose(length(full), length(np.asarray(cond)), rtol=1e-4)
    off = guided(gg.NormMatchedCFG(1.0, over), uncond, cond, x=x)
    np.testing.assert_allclose(off, cond, atol=1e-6)
    alone = guided(gg.NormMatchedCFG(4.0, over), uncond[:1], cond[:1], x=x[:1])
    np.testing.assert_allclose(alone[0], one[0], atol=1e-6)


def test_adg_is_a_rotation_of_known_length():
    for scale in (1.5, 3.0):
        found = guided(gg.ADG(scale), D_U, D_C)
        c, u = np.asarray(D_C, float), np.asarray(D_U, float)
        size = np.linalg.norm(c, axis=1)
        angle = np.arccos((c * u).sum(1) / size / np.linalg.norm(u, axis=1))
        turn = np.minimum((scale - 1.0) * angle, np.pi / 3)
        wanted = size**2 * (1.0 + np.sin(2 * turn) * np.sin(angle))
        np.testing.assert_allclose((found**2).sum(1), wanted, rtol=1e-5)


def test_adg_is_off_at_one_and_finite_for_parallel_predictions():
    np.testing.assert_array_equal(guided(gg.ADG(1.0), D_U, D_C), D_C)
    assert isinstance(gg.ADG(1.0).at(POSITION), gg.Unguided)
    for other in (D_C, 2.0 * D_C, 0.0 * D_C):
        found = guided(gg.ADG(3.0), other, D_C)
        np.testing.assert_allclose(found, D_C, rtol=1e-4, atol=1e-3)
    small = 1e-3 * D_U  # a small angle: D_c + (scale - 1) e
    part = D_C - gg.NegativeCFG(1.0, 0).combine((D_C, D_C, D_C), X, 1.0, ())[0]
    assert np.abs(part).max() == 0.0
    base = np.asarray(D_C + small, float)
    c = np.asarray(D_C, float)
    e = c - (c * base).sum(1, keepdims=True) / (base**2).sum(1, keepdims=True) * base
    np.testing.assert_allclose(guided(gg.ADG(2.0), base, D_C), c + e, atol=1e-5)
    with pytest.raises(ValueError, match="one dimension"):
        guided(gg.ADG(2.0), D_U[:, :1], D_C[:, :1], x=X[:, :1])


# --- bands


@pytest.mark.ci
@pytest.mark.parametrize("size", [(8, 8), (7, 11)])
def test_bands_sum_to_the_image(size):
    uncond, cond = (
        jnp.asarray(RNG.normal(size=(2, *size, 3)), "float32") for _ in range(2)
    )
    equal = guided(gg.FDG((3.0, 3.0, 3.0)), uncond, cond, x=cond)
    np.testing.assert_allclose(equal, cfg(3.0, uncond, cond), rtol=1e-4, atol=1e-4)
    off = guided(gg.FDG((1.0, 1.0)), uncond, cond, x=cond)
    np.testing.assert_array_equal(off, cond)
    # A constant difference has no details.
    flat = guided(gg.FDG((9.0, 3.0)), cond - 0.5, cond, x=cond)
    np.testing.assert_allclose(flat, cond + 2.0 * 0.5, atol=1e-5)


def test_a_matrix_scales_directions():
    matrix = np.diag([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).astype("float32")
    found = guided(gg.MatrixCFG(matrix), D_U, D_C)
    wanted = np.stack([cfg(s)[:, i] for i, s in enumerate(range(1, 7))], axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"\[d, d\]"):
        gg.MatrixCFG(matrix[:2])


# --- history and range


def test_momentum_is_a_two_by_two_matrix_and_constants_are_fixed():
    rule = gg.Momentum(gg.Unguided(), 0.5, 0.6, process=None)
    state, seen, mean = rule.init(X), [], None
    for d in (D_C, D_U, D_N, D_N):
        value, state = rule.combine((d,), X, SIGMA, state)
        mean = d if mean is None else mean
        np.testing.assert_allclose(value, d + 0.5 * (d - mean), atol=1e-6)
        mean = 0.6 * mean + 0.4 * d
        seen.append(value)
    fixed = gg.Momentum(gg.Unguided(), 0.5, 0.0)  # on velocities
    state = fixed.init(X)
    for _ in range(2):
        value, state = fixed.combine((D_C,), X, SIGMA, state)
        np.testing.assert_allclose(value, D_C, atol=1e-6)


def test_dynamic_thresholding_acts_by_sample_and_out_of_range_only():
    big = D_C.at[1].multiply(10.0)
    found = guided(gg.Thresholded(gg.Unguided(), 1.0, 4.0), big)
    np.testing.assert_array_equal(found[[0, 2, 3]], big[np.array([0, 2, 3])])
    np.testing.assert_allclose(np.abs(found[1]).max(), 4.0, rtol=1e-6)


# --- by name


def test_rules_by_name_with_options():
    rule = parse_rule(("slg", "blocks=7,8", "window=none"), {"scale": 4.0})
    assert rule == gg.SkipLayer(4.0, (7, 8), window=None)
    assert parse_rule(("pag", "blocks=3"), {"scale": 2.0}).blocks == (3,)
    weak = parse_rule(("weak-unconditional", "distribution=8,9"), {"scale": 4.0})
    assert weak.distribution == (8, 9)
    with pytest.raises(ValueError, match="Did you mean 'apg'"):
        parse_rule(("apgg",), {})
    with pytest.raises(ValueError, match="needs blocks="):
        parse_rule(("pag",), {"scale": 2.0})
    with pytest.raises(ValueError, match="key=value with a key of scale, blocks"):
        parse_rule(("pag", "block=3"), {"scale": 2.0})
