"""APG, TCFG, CFG-Zero*, MAMBO-G: hand-made numbers, vector algebra in NumPy, limits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.ledger import Ledger
from oracles.predictions import (
    Point,
    flow_velocity,
    from_flow_velocity,
    random_point,
    step,
    value,
)
from oracles.toy_stack import ToyStack

from gmm_guidance import (
    APG,
    CFG,
    MAMBOG,
    TCFG,
    VE,
    VP,
    CFGZeroStar,
    CustomSchedule,
    Karras,
    RectifiedFlow,
    Rescaled,
    S2Guidance,
    expected_cost,
    guided_sample,
)
from gmm_guidance.guidance.updates import ZeroVelocity
from gmm_guidance.sampling.segments import plan_segments
from gmm_guidance.sampling.solvers import Euler

# --- APG and TCFG


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
def test_bad_numbers_of_apg_and_tcfg(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- CFG-Zero* and MAMBO-G


LEVELS = (8.0, 4.0, 2.0, 1.0)
STACK = ToyStack.random()


def at_velocities(cond, uncond, x=(5.0, 5.0), sigma=1.0):
    """A point where the straight path has these velocities."""
    x = np.float32([x])
    rows = (from_flow_velocity([v], x, sigma) for v in (cond, uncond))
    return Point(*(row.astype(np.float32) for row in rows), x, sigma)


def velocity(rule, point):
    return flow_velocity(value(rule, point), point.x, point.sigma)


@pytest.mark.parametrize(
    "cond, uncond, wanted",
    [
        ((2, 1), (1, 0), (2, 3)),  # k = 2, k v_u = (2, 0)
        ((2, 1), (10, 0), (2, 3)),  # the length of v_u does not matter
        ((2, 1), (-1, 0), (2, 3)),  # nor its sign
        ((0, 1), (1, 0), (0, 3)),  # orthogonal: k = 0
        ((2, 1), (4, 2), (2, 1)),  # parallel: k v_u is v_c
        ((2, 1), (0, 0), (6, 3)),
    ],
)
def test_zero_star_by_hand(cond, uncond, wanted):
    """``k v_u + 3 (v_c - k v_u)``."""
    got = velocity(CFGZeroStar(3.0), at_velocities(cond, uncond))
    np.testing.assert_allclose(got, [wanted], atol=1e-5)


def test_zero_star_fits_the_unconditional_velocity_by_least_squares():
    flows = [flow_velocity(d, POINT.x, POINT.sigma) for d in (POINT.cond, POINT.uncond)]
    wanted = []
    for c, u in zip(*flows, strict=True):
        k = np.linalg.lstsq(u.reshape(-1, 1), c.ravel(), rcond=None)[0][0]
        wanted.append(k * u + 2.5 * (c - k * u))
    got = velocity(CFGZeroStar(2.5), POINT)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "rule", [lambda s, p: CFGZeroStar(s, process=p),
        lambda s, p: MAMBOG(s, 2.0, p)
    ], ids=["zero", "mambo"]
)  # fmt: skip
def test_the_process_matters_but_not_the_direction_of_its_clock(rule):
    flow, sit = (value(rule(3.0, RectifiedFlow(b)), POINT) for b in (False, True))
    np.testing.assert_allclose(flow, sit, rtol=1e-4, atol=1e-5)
    for process in (VE(), VP()):
        assert np.abs(value(rule(3.0, process), POINT) - flow).max() > 0.05


@pytest.mark.parametrize(
    "rule, wanted",
    [
        (MAMBOG(3.0, 0.5), 1 + 2 * np.exp(-0.5 * 2.5 / 5)),
        (MAMBOG(3.0, 0.0), 3.0),
        (MAMBOG(1.0), 1.0),
        (MAMBOG(), 1 + 9 * np.exp(-8 * 2.5 / 5)),
    ],
    ids=repr,
)
def test_mambo_by_hand(rule, wanted):
    """``|v_u| = 5`` and ``|v_c - v_u| = 2.5``: the scale of a CFG."""
    point = at_velocities((4.5, 6.0), (3.0, 4.0))
    uncond, cond = np.array([3.0, 4.0]), np.array([4.5, 6.0])
    got = velocity(rule, point)
    np.testing.assert_allclose(got, [uncond + wanted * (cond - uncond)], rtol=1e-5)


def test_mambo_of_vanishing_velocities():
    still = at_velocities((4.5, 6.0), (0.0, 0.0))._replace(
        uncond=np.float32([[2.5, 2.5]])
    )
    np.testing.assert_array_equal(value(MAMBOG(), still), still.cond)
    np.testing.assert_allclose(
        value(MAMBOG(3.0, 0.0), still), value(CFG(3.0), still), rtol=1e-6
    )
    equal = POINT._replace(uncond=POINT.cond)
    np.testing.assert_array_equal(value(MAMBOG(), equal), equal.cond)


# --- steps of zero velocity


@pytest.fixture
def eager():
    """A few steps of a tiny stack run in less time than they compile."""
    with jax.disable_jit():
        yield


def zero_steps_of(rule, num_steps):
    """Which steps run no network."""
    segments = plan_segments(rule, Karras(num_steps), Euler())
    still = [s for s in segments if isinstance(s.rules[0], ZeroVelocity)]
    return [i for s in still for i in range(s.start, s.stop)]


@pytest.mark.parametrize(
    "zero_steps, num_steps, count",
    [
        (1, 4, 1), (3, 4, 3), (0, 4, 0), (0.0, 4, 0), (1, 50, 1),
        (0.04, 4, 1), (0.04, 25, 1), (0.04, 26, 2), (0.04, 50, 2), (0.04, 100, 4),
        (0.25, 4, 1), (0.26, 4, 2), (0.75, 4, 3),
    ],
)  # fmt: skip
def test_how_many_steps_are_zero(zero_steps, num_steps, count):
    rule = CFGZeroStar(3.0, zero_steps)
    assert zero_steps_of(rule, num_steps) == list(range(count))


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m"])
def test_zero_velocity_leaves_the_flows_state_where_it_is(eager, solver):
    """``x_t = x / (1 + sigma)`` stands still, whatever the solver."""
    _, path = guided_sample(
        jax.random.key(0), STACK, 1, num_samples=3, guidance=CFGZeroStar(2.0, 2),
        schedule=CustomSchedule(LEVELS), solver=solver, trajectory=True,
    )  # fmt: skip
    flow = np.asarray(path) / (1 + np.array([*LEVELS, 0.0]))[:, None, None]
    for i in (1, 2):
        np.testing.assert_allclose(flow[i], flow[0], rtol=1e-5)
    assert np.abs(flow[3] - flow[0]).max() > 0.05


@pytest.mark.parametrize(
    "rule, passes",
    [
        (CFGZeroStar(3.0), 3 * 2),
        (CFGZeroStar(3.0, 2), 2 * 2),
        (CFGZeroStar(3.0, 0), 4 * 2),
        (CFGZeroStar(1.0, 2), 2),
        (CFGZeroStar(1.0, 0), 4),
        (Rescaled(CFGZeroStar(3.0, 2)), 2 * 2),
        (MAMBOG(), 4 * 2),
        (MAMBOG(1.0), 4),
    ],
    ids=repr,
)
def test_zero_steps_and_scales_that_are_off_run_no_pass(eager, rule, passes):
    stack, schedule = Ledger(3), CustomSchedule(LEVELS)
    jax.block_until_ready(
        guided_sample(
            jax.random.key(0), stack, 1, num_samples=2, guidance=rule,
            schedule=schedule, solver="euler",
        )
    )  # fmt: skip
    assert stack.count() == 3 * passes
    assert expected_cost(rule, schedule, 3, solver="euler").shared == passes


def test_a_weak_term_is_not_added_to_a_step_without_passes(eager):
    options = {"num_samples": 3, "schedule": CustomSchedule(LEVELS), "solver": "euler"}
    rule = S2Guidance(CFGZeroStar(2.0, 1), 0.5, window=None)
    paths = [
        guided_sample(
            jax.random.key(0), STACK, 1, guidance=r, trajectory=True, **options
        )
        for r in (rule, CFGZeroStar(2.0, 1))
    ]
    (_, weak), (_, plain) = paths
    np.testing.assert_array_equal(weak[1], plain[1])
    assert np.abs(weak[2] - plain[2]).max() > 0.01


@pytest.mark.parametrize("zero_steps", [4, 7, 0.8])
def test_a_run_of_zero_velocity_alone_is_refused(zero_steps):
    message = f"after zero_steps={zero_steps} of CFGZeroStar .* this run of 4"
    with pytest.raises(ValueError, match=message):
        plan_segments(CFGZeroStar(2.0, zero_steps), CustomSchedule(LEVELS), Euler())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CFGZeroStar(np.nan), "scale must be finite"),
        (lambda: CFGZeroStar(2.0, -1), r"count >= 0, or a fraction .*got -1"),
        (lambda: CFGZeroStar(2.0, 1.0), r"in \[0, 1\) as a float, got 1.0"),
        (lambda: CFGZeroStar(2.0, -0.1), "got -0.1"),
        (lambda: MAMBOG(np.inf), "scale must be finite"),
        (lambda: MAMBOG(2.0, -1.0), "alpha must be >= 0, got -1.0"),
    ],
)
def test_bad_numbers_of_cfg_zero_and_mambo(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_traced_scales_of_one_return_the_conditional_value_exactly():
    one = jnp.asarray(1.0)
    for rule in (CFGZeroStar(one), MAMBOG(one)):
        np.testing.assert_array_equal(value(rule, POINT), POINT.cond)
