"""Corrections that are computed every few steps and held in between.

Runs are recomputed step by step in NumPy, with a network of a few lines.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.linear_stack import TermStack
from oracles.toy_stack import ToyStack
from support.sampling import guided_value

from gmm_guidance import (
    APG,
    CFG,
    AutoGuidance,
    CFGZeroStar,
    Karras,
    Rescaled,
    S2Guidance,
    SigmaCurve,
    SigmaWindow,
    SkipLayer,
    Windowed,
    expected_cost,
    guided_sample,
)
from gmm_guidance.blocks.drop import FixedBlocks
from gmm_guidance.guidance.weak import Held, recomputed
from gmm_guidance.guidance.windows import Position
from gmm_guidance.sampling.segments import find_loops, plan_segments
from gmm_guidance.sampling.solvers import Euler, Heun

STACK, WORSE = ToyStack.random(0), ToyStack.random(1)
START = np.random.default_rng(2).normal(scale=5.0, size=(3, 2))
SCALE, WEIGHT, BLOCKS = 1.7, 0.6, (1, 3)
CI = pytest.mark.ci
FIXED = {"distribution": FixedBlocks(BLOCKS)}


def by_hand(x, sigma, label, dropped=(), network=STACK):
    """The denoiser of ``ToyStack`` in float64."""
    weights, table = (
        np.asarray(a, np.float64) for a in (network.weights, network.table)
    )
    hidden = x / np.sqrt(1 + sigma**2)
    for block, matrix in enumerate(weights):
        if block not in dropped:
            hidden = hidden + np.tanh(hidden @ matrix + table[label])
    return x / (1 + sigma**2) + sigma / np.sqrt(1 + sigma**2) * hidden


class PlainRun:
    """A run of any solver, one step after the other; the noise change is held."""

    def __init__(self, rule, hold, acting, num_steps):
        self.rule, self.hold, self.acting = rule, hold, acting
        self.sigmas = Karras(num_steps, 0.1, 5.0).sigmas()
        self.held, self.computed = None, []

    def denoise(self, x, sigma, step):
        cond, uncond = by_hand(x, sigma, 1), by_hand(x, sigma, 2)
        if self.rule == "autoguidance":
            guided, weight = cond, SCALE - 1
        else:
            guided, weight = uncond + SCALE * (cond - uncond), WEIGHT
        if step not in self.acting:
            return guided
        if (step - self.acting[0]) % self.hold == 0:
            if self.rule == "autoguidance":
                weak = by_hand(x, sigma, 1, network=WORSE)
            else:
                weak = by_hand(x, sigma, 1, BLOCKS)
            # In noise, (x - D) / sigma, in which it is held.
            self.held = (x - weak) / sigma - (x - cond) / sigma
            self.computed.append(step)
        return guided + weight * sigma * self.held

    def path(self, solver, x):
        """States after each step, ``[steps + 1, n, d]``."""
        states, previous, before = [x], None, 0.0
        for step, (sigma, after) in enumerate(itertools.pairwise(self.sigmas)):
            denoised = self.denoise(x, sigma, step)
            slope = (x - denoised) / sigma
            ahead = x + (after - sigma) * slope
            if solver == "heun" and after > 0:
                other = (ahead - self.denoise(ahead, after, step)) / after
                ahead = x + (after - sigma) * (slope + other) / 2
            if solver == "dpmpp_2m":
                value = denoised
                if previous is not None and after > 0:
                    h, h_before = math.log(sigma / after), math.log(before / sigma)
                    value = denoised + h / (2 * h_before) * (denoised - previous)
                ahead = value + after / sigma * (x - value)
                previous, before = denoised, sigma
            x = ahead
            states.append(x)
        return np.stack(states)


def draw(rule, stack=STACK, start=START, *, num_steps=8, **options):
    return guided_sample(
        jax.random.key(0),
        stack,
        1,
        num_samples=len(start),
        guidance=rule,
        schedule=Karras(num_steps, 0.1, 5.0),
        initial=start,
        **options,
    )


@pytest.mark.parametrize(
    "rule, hold, window, acting, num_steps, solver",
    [
        # Two groups of three steps, and a rest of two.
        ("s2", 3, (0.1, 0.9), range(1, 9), 10, "euler"),
        # The last step, of one evaluation, is held too.
        ("skip_layer", 2, None, range(6), 6, "heun"),
        ("autoguidance", 3, None, range(7), 7, "dpmpp_2m"),
        pytest.param(
            "s2", 2, (0.25, 0.75), range(2, 6), 8, "heun", marks=pytest.mark.ci
        ),
        pytest.param("s2", 99, (0.0, 0.9), range(9), 10, "euler", marks=pytest.mark.ci),
    ],
)
def test_every_step_by_hand(rule, hold, window, acting, num_steps, solver):
    plain = PlainRun(rule, hold, acting, num_steps)
    made = {
        "s2": S2Guidance(SCALE, WEIGHT, window=window, hold=hold, **FIXED),
        "skip_layer": SkipLayer(SCALE, BLOCKS, WEIGHT, window=window, hold=hold),
        "autoguidance": AutoGuidance(WORSE, SCALE, hold=hold),
    }[rule]
    wanted = plain.path(solver, START)
    _, path = draw(made, num_steps=num_steps, solver=solver, trajectory=True)
    np.testing.assert_allclose(path, wanted, rtol=2e-4, atol=2e-4)
    # The held correction matters: computed in each step the samples are others.
    every = PlainRun(rule, 1, acting, num_steps).path(solver, START)
    assert np.abs(every[-1] - wanted[-1]).max() > 0.02
    assert set(plain.computed) == set(acting[::hold])


# The correction is sigma times a constant: one noise change, whatever the step.
STEADY = TermStack(
    (
        lambda x, sigma: -0.2 * x,
        lambda x, sigma: 0.3 * sigma[:, None] * jnp.ones_like(x),
        lambda x, sigma: 0.1 * jnp.tanh(x),
    ),
    dim=2,
)
STEADY_TERM = {"num_dropped": 1, "protected": (0, 2), "s2_scale": 0.8}


@pytest.mark.ci
@pytest.mark.parametrize(
    "solver", ["euler", "heun", "dpmpp_2m", "edm_stochastic", "ancestral"]
)
@pytest.mark.parametrize(
    "wrap",
    [lambda rule: rule, lambda rule: Rescaled(rule, 0.5)],
    ids=["alone", "rescaled"],
)
def test_a_constant_correction_may_be_held_under_any_solver(solver, wrap):
    """Also with momentum, which passes the ends of the window."""

    def sample(hold):
        rule = wrap(S2Guidance(APG(3.0), hold=hold, **STEADY_TERM))
        return draw(rule, STEADY, num_steps=12, solver=solver, batch_size=2)

    np.testing.assert_allclose(sample(3), sample(1), rtol=1e-4, atol=1e-4)


def test_a_held_term_over_a_held_term():
    inner = SkipLayer(SCALE, (1,), 0.5, window=None, hold=2)
    rule = S2Guidance(inner, window=None, hold=3, **FIXED)
    segments = plan_segments(rule, Karras(13), Euler())
    kinds = [
        (isinstance(s.rules[0], Held), isinstance(recomputed_base(s.rules[0]), Held))
        for s in segments
        for _ in range(s.start, s.stop)
    ]
    assert kinds == [(i % 3 > 0, i % 2 > 0) for i in range(13)]
    loops = find_loops(segments)
    assert [(sum(s.stop - s.start for s in p.body), p.repeats) for p in loops] == [
        (6, 2),
        (1, 1),
    ]


def recomputed_base(rule):
    term = rule.rule if isinstance(rule, Held) else rule
    return term.scale


@pytest.mark.parametrize("num_steps, hold", [(24, 3), (25, 3), (50, 6), (7, 2), (5, 9)])
def test_loops_are_the_same_steps_in_few_programs(num_steps, hold):
    rule = S2Guidance(2.0, hold=hold)
    segments = plan_segments(rule, Karras(num_steps), Heun())
    loops = find_loops(segments)
    assert sum(len(loop.body) for loop in loops) <= 7
    again = [s for loop in loops for _ in range(loop.repeats) for s in loop.body]
    assert [(s.stop - s.start, s.rules) for s in again] == [
        (s.stop - s.start, s.rules) for s in segments
    ]
    inside = [i for i in range(num_steps) if 0.1 <= i / num_steps < 0.9]
    computed = [s for s in segments if isinstance(s.rules[0], S2Guidance)]
    assert [i for s in computed for i in range(s.start, s.stop)] == inside[::hold]


def test_a_term_starts_anew_after_a_gap():
    position = [Position(0.0, 1.0, step, 9) for step in range(9)]
    shared = [
        Position(0.0, 1.0, p.step, 9, stretches=position[0].stretches) for p in position
    ]
    term = object()
    assert [shared[i].steps_acting(term) for i in (1, 2, 2, 3, 6, 7)] == [
        0,
        1,
        1,
        2,
        0,
        1,
    ]


def test_no_correction_is_held_before_a_network_has_run():
    rule = S2Guidance(CFGZeroStar(2.0, 2), window=None, hold=3, **FIXED)
    segments = plan_segments(rule, Karras(6), Euler())
    computed = [s.start for s in segments if isinstance(s.rules[0], S2Guidance)]
    assert computed == [2, 5]


@pytest.mark.parametrize("solver, most", [("euler", 1), ("heun", 2), ("dpmpp_2m", 1)])
@pytest.mark.parametrize("hold", [2, 3, 6, 40])
def test_cost_counts_the_steps_in_which_it_is_computed(solver, most, hold):
    schedule, depth = Karras(30), 28
    steps = [i for i in range(30) if 0.1 <= i / 30 < 0.9][::hold]
    cfg, s2 = (
        expected_cost(rule, schedule, depth, solver=solver)
        for rule in (CFG(2.0), S2Guidance(2.0, hold=hold))
    )
    mean_shared = np.mean([depth - 1 - block for block in range(1, depth)]) / depth
    extra = most * len(steps)
    assert s2.shared - cfg.shared == pytest.approx(extra * mean_shared)
    assert s2.separate - cfg.separate == pytest.approx(extra * (depth - 1) / depth)
    assert s2.evaluations == cfg.evaluations


def test_a_step_may_hold_one_of_its_two_evaluations():
    """Heun's second evaluation enters the interval one step early."""
    window = SigmaWindow(0.0, float(Karras(6, 0.1, 5.0).sigmas()[3]))
    rule = S2Guidance(SCALE, WEIGHT, window=window, hold=2, **FIXED)
    segments = plan_segments(rule, Karras(6, 0.1, 5.0), Heun())
    kinds = {s.start: [type(r).__name__ for r in s.rules] for s in segments}
    assert kinds[2] == ["CFG", "S2Guidance"]
    assert kinds[3] == ["Held"]
    assert np.isfinite(draw(rule, num_steps=6, solver="heun")).all()


def test_masks_are_those_of_the_steps_in_which_they_are_used():
    """The first and the fourth step see the masks that they see without a hold."""
    curve = SigmaCurve((0.1, 5.0), (0.3, 0.3))
    paths = [
        draw(
            S2Guidance(SCALE, curve, window=None, hold=h),
            num_steps=4,
            trajectory=True,
            solver="euler",
        )[1]
        for h in (1, 3)
    ]
    np.testing.assert_allclose(paths[0][1], paths[1][1], rtol=1e-5)
    assert np.abs(paths[0][2] - paths[1][2]).max() > 1e-3


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_sided_removes_what_points_with_cfg(sign):
    x, sigma = np.random.default_rng(4).normal(size=(8, 2)), 0.5
    cond, uncond = by_hand(x, sigma, 1), by_hand(x, sigma, 2)
    push, cfg = sign * (cond - by_hand(x, sigma, 1, BLOCKS)), cond - uncond
    wanted = []
    for p, c in zip(push, cfg, strict=True):
        along = (p @ c) / (c @ c)
        wanted.append(p - along * c if along > 0 else p)
    rule = S2Guidance(SCALE, sign * WEIGHT, window=None, one_sided=True, **FIXED)
    got = guided_value(rule, STACK, x)
    expected = uncond + SCALE * cfg + WEIGHT * np.array(wanted)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    along = np.sum(push * cfg, axis=1)
    assert along.min() < -0.05 and along.max() > 0.05


@pytest.mark.parametrize("hold", [0, -1, 2.0])
def test_a_hold_is_a_number_of_steps(hold):
    for make in (
        lambda: S2Guidance(2.0, hold=hold),
        lambda: SkipLayer(2.0, (1,), hold=hold),
        lambda: AutoGuidance(WORSE, 2.0, hold=hold),
    ):
        with pytest.raises(ValueError, match="hold must be a number of steps"):
            make()


def test_recomputed_holds_nothing():
    inner = SkipLayer(SCALE, (1,), 0.5, window=None, hold=2)
    rule = Windowed(Rescaled(S2Guidance(inner, window=None, hold=2)), (0.0, 1.0))
    segments = plan_segments(rule, Karras(4), Euler())
    computed, held = segments[0].rules[0], segments[1].rules[0]
    assert held != computed
    assert recomputed(held) == recomputed(computed) == computed
