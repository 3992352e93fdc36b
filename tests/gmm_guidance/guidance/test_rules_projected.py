"""APG and TCFG: hand-made numbers, vector algebra in NumPy, limits and invariances."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.predictions import (
    Point,
    flow_velocity,
    from_flow_velocity,
    random_point,
    step,
    value,
)

from gmm_guidance import APG, CFG, TCFG, CustomSchedule, RectifiedFlow, guided_sample

POINT = random_point()
ROW = np.float32
# The difference is (1, 1): one half along D_c = (2, 0), one across it.
HAND_MADE = Point(ROW([[2, 0]]), ROW([[1, -1]]), ROW([[5, 5]]), 1.0)


@pytest.mark.parametrize(
    "rule, wanted",
    [
        (APG(3.0, momentum=0.0), (2, 2)),
        (APG(3.0, 1.0, momentum=0.0), (4, 2)),
        (APG(3.0, 0.5, momentum=0.0), (3, 2)),
        (APG(3.0, 0.0, np.sqrt(0.5), 0.0), (2, 1)),  # half as long
        (APG(3.0, 1.0, np.sqrt(8.0), 0.0), (4, 2)),  # shorter than the limit
        (APG(0.0, momentum=0.0), (2, -1)),
        (APG(1.0, 0.5, 0.1), (2, 0)),
    ],
    ids=repr,
)
def test_apg_by_hand(rule, wanted):
    np.testing.assert_allclose(value(rule, HAND_MADE), [wanted], rtol=1e-6)


def test_momentum_by_hand():
    """d = (1, 1) - 0.5 (0, 2) = (1, 0), all of it along D_c; kept before clipping."""
    rule = APG(3.0, 0.5, 0.25, momentum=-0.5)
    guided, state = step(rule, HAND_MADE, jnp.array([[0.0, 2.0]]))
    np.testing.assert_allclose(guided, [[2 + 2 * 0.5 * 0.25, 0]])
    np.testing.assert_allclose(state, [[1, 0]])


def apg_by_lstsq(point, scale, eta, threshold, d):
    """Of one update ``d``, sample by sample: the parallel part by least squares."""
    guided = []
    for cond, update in zip(np.asarray(point.cond, float), d, strict=True):
        update = update.ravel()
        length = np.linalg.norm(update)
        if length > threshold:
            update = update * threshold / length
        basis = cond.reshape(-1, 1)
        parallel = basis @ np.linalg.lstsq(basis, update, rcond=None)[0]
        kept = (update - parallel) + eta * parallel
        guided.append(cond + (scale - 1) * kept.reshape(cond.shape))
    return np.stack(guided)


def test_apg_is_the_papers_over_several_evaluations():
    rule = APG(4.0, 0.3, 2.0, momentum=-0.75)
    d, state = 0.0, None
    for seed in range(4):
        point = random_point(seed)
        guided, state = step(rule, point, state)
        d = np.asarray(point.cond, float) - point.uncond - 0.75 * d
        np.testing.assert_allclose(
            guided, apg_by_lstsq(point, 4.0, 0.3, 2.0, d), rtol=1e-4, atol=1e-5
        )


def test_apg_without_its_parts_is_cfg():
    np.testing.assert_allclose(
        value(APG(4.0, 1.0, momentum=0.0), POINT), value(CFG(4.0), POINT), rtol=1e-5
    )
    assert APG(4.0, momentum=0.0).init(jnp.zeros((2, 2))) == ()


def test_the_four_forms_of_apg_differ_and_only_the_papers_can_be_switched_off():
    """At scale 1 and eta 0: D_c + (s - 1) u, D_c + s u, D_u + s u (diffusers)."""
    scale = jnp.asarray(1.0)  # traced or an array, the pass is run
    u = value(APG(2.0, momentum=0.0), POINT) - POINT.cond
    np.testing.assert_array_equal(
        value(APG(scale, momentum=0.0), POINT), jnp.asarray(POINT.cond)
    )
    for other in (POINT.cond + u, POINT.uncond + u):
        assert np.abs(other - POINT.cond).max() > 0.1
    twice = value(APG(2.0, momentum=0.0), POINT)
    for other in (POINT.cond + 2 * u, POINT.uncond + 2 * u):
        assert np.abs(other - twice).max() > 0.1


@pytest.mark.parametrize("solver, updates", [("euler", 3), ("heun", 5)])
def test_momentum_is_carried_from_evaluation_to_evaluation(solver, updates):
    """Constant orthogonal predictions: the update at call k is 1 - 0.5 + 0.25 - ..."""
    cond, uncond = np.array([2.0, 0.0]), np.array([2.0, -1.0])

    def denoiser(x, sigma, label):
        return 0.0 * x + jnp.asarray(uncond if label is None else cond, x.dtype)[None]

    levels = (4.0, 2.0, 1.0)
    _, path = guided_sample(
        jax.random.key(0),
        denoiser,
        0,
        num_samples=1,
        guidance=APG(2.0),
        schedule=CustomSchedule(levels),
        solver=solver,
        initial=jnp.zeros((1, 2)),
        trajectory=True,
    )
    sizes = itertools.accumulate(range(updates), lambda d, _: 1 - 0.5 * d, initial=1.0)
    values = [cond + [0, d] for d in sizes]
    x, k = np.zeros(2), 0
    for now, after in itertools.pairwise((*levels, 0.0)):
        slope = (x - values[k]) / now
        end, k = x + (after - now) * slope, k + 1
        if solver == "heun" and after:
            slope = (slope + (end - values[k]) / after) / 2
            end, k = x + (after - now) * slope, k + 1
        x = end
    assert k == updates
    np.testing.assert_allclose(path[-1, 0], x, rtol=1e-5)


def tcfg_by_svd(cond, uncond, scale):
    """The definition, with a singular value decomposition of each sample's two rows."""
    guided = []
    for c, u in zip(np.asarray(cond, float), np.asarray(uncond, float), strict=True):
        first = np.linalg.svd(np.stack([c.ravel(), u.ravel()]))[2][0]
        u = (first * (first @ u.ravel())).reshape(u.shape)
        guided.append(u + scale * (c - u))
    return np.stack(guided)


@pytest.mark.parametrize("seed", range(3))
def test_tcfg_is_its_definition_in_noise(seed):
    point = random_point(seed, shape=(40, 2, 2))
    noise = [(point.x - d) / point.sigma for d in (point.cond, point.uncond)]
    wanted = point.x - point.sigma * tcfg_by_svd(*noise, 3.0)
    np.testing.assert_allclose(value(TCFG(3.0), point), wanted, rtol=1e-4, atol=1e-4)


def test_tcfg_is_its_definition_in_velocity():
    flows = [flow_velocity(d, POINT.x, POINT.sigma) for d in (POINT.cond, POINT.uncond)]
    wanted = from_flow_velocity(tcfg_by_svd(*flows, 3.0), POINT.x, POINT.sigma)
    got = value(TCFG(3.0, RectifiedFlow()), POINT)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(got - value(TCFG(3.0), POINT)).max() > 0.1


@pytest.mark.parametrize(
    "cond, uncond, kept",
    [
        ((1, 2), (2, 4), 1.0),  # parallel: nothing to damp
        ((1, 2), (-2, -4), 1.0),
        ((1, 2), (0, 0), 1.0),
        ((0, 0), (1, 2), 1.0),
        ((0, 0), (0, 0), 1.0),
        ((3, 0), (0, 1), 0.0),  # orthogonal and shorter: all of it
        ((1, 0), (0, 3), 1.0),  # orthogonal and longer: the singular vector itself
        ((1, 0), (0, 1), 1.0),  # no first one: CFG
    ],
)
def test_tcfg_of_parallel_orthogonal_and_zero_noises(cond, uncond, kept):
    """With D = x - noise at sigma 1: the projected noise is ``kept`` times its own."""
    point = Point(ROW([[5, 5]]) - ROW([cond]), ROW([[5, 5]]) - ROW([uncond]),
                  ROW([[5, 5]]), 1.0)  # fmt: skip
    u = kept * ROW([uncond])
    wanted = point.x - (u + 3 * (ROW([cond]) - u))
    np.testing.assert_allclose(value(TCFG(3.0), point), wanted, atol=1e-5)


def test_tcfg_of_nearly_equal_predictions_keeps_their_difference():
    """At sigma 80 noises differ in their last digits, the guided D does not."""
    point = random_point(3, sigma=80.0)
    noise = [(np.float64(point.x) - d) / 80.0 for d in (point.cond, point.uncond)]
    wanted = np.float64(point.x) - 80.0 * tcfg_by_svd(*noise, 3.0)
    np.testing.assert_allclose(value(TCFG(3.0), point), wanted, atol=1e-3)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: APG(np.nan), ValueError, "scale must be finite"),
        (lambda: APG(2.0, np.inf), ValueError, "eta must be finite"),
        (lambda: APG(2.0, momentum=np.nan), ValueError, "momentum must be finite"),
        (
            lambda: APG(2.0, norm_threshold=0.0),
            ValueError,
            "> 0, got 0.0; None",
        ),
        (lambda: TCFG(np.inf), ValueError, "scale must be finite"),
        (
            lambda: TCFG(2.0, "velocity"),
            TypeError,
            '"noise" or a process',
        ),
    ],
)
def test_bad_values(make, error, message):
    with pytest.raises(error, match=message):
        make()
