"""Guidance rules: hand-made numbers, identities, and the masks that they really use."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.ledger import Ledger
from oracles.predictions import outputs_of
from support.sampling import guided_value

from gmm_guidance import (
    CFG,
    AutoGuidance,
    CustomSchedule,
    GuidanceRule,
    Pass,
    S2Guidance,
    SkipLayer,
    Unguided,
    Windowed,
    guidance_rule,
    static_field,
)
from gmm_guidance.blocks.drop import Bernoulli
from gmm_guidance.guidance.rule import Unconditional
from gmm_guidance.sampling.segments import plan_segments
from gmm_guidance.sampling.solvers import Euler

N = 6
STACK = Ledger(4)
X = jnp.zeros((N, 2))


def guided(rule, *, stack=STACK, start=X, **options):
    return guided_value(rule, stack, start, **options)


# --- the combination: hand-made outputs with answers worked out by hand

U, C, W, V = (np.full((2, 3), v, np.float32) for v in (1.0, 3.0, 2.5, 2.0))
POINT = {"x": np.full((2, 3), 5.0, np.float32), "sigma": np.float32(0.5), "state": ()}


def combine(rule, *, uncond, cond, worse=None, first=None, second=None):
    """Outputs by what each pass is: its label, its model, its mask."""
    rows = {"uncond": uncond, None: cond, "worse": worse}
    return rule.combine(outputs_of(rule, rows, (first, second)), **POINT)[0]


HAND_MADE = [
    (Unguided(), 3.0),
    (Unconditional(), 1.0),
    (CFG(0.0), 1.0),
    (CFG(1.0), 3.0),
    (CFG(2.0), 5.0),
    (CFG(7.5), 16.0),
    (CFG(-1.0), -1.0),
    (AutoGuidance("worse", 1.0), 3.0),
    (AutoGuidance("worse", 2.0), 4.0),
    (AutoGuidance("worse", 4.0), 6.0),
    (S2Guidance(2.0), 5.125),
    (S2Guidance(1.0), 3.125),
    (S2Guidance(2.0, 1.0), 5.5),
    (S2Guidance(2.0, 1.0, num_masks=2), 5.75),
    (SkipLayer(2.0, (1,)), 6.25),
    (SkipLayer(1.0, (1,), 1.0), 3.5),
    (S2Guidance(2.0, 1.0, form="subtract"), 2.5),
    (S2Guidance(2.0, 1.0, num_masks=2, form="subtract"), 2.75),
    (S2Guidance(2.0, 1.0, form="subtract_eps"), 7.5),
]


@pytest.mark.parametrize("rule, expected", HAND_MADE, ids=repr)
def test_hand_made_outputs(rule, expected):
    """Unconditional 1, conditional 3, weak 2.5 and 2, the worse model's 2."""
    got = combine(rule, uncond=U, cond=C, first=W, second=V, worse=V)
    np.testing.assert_array_equal(got, np.full((2, 3), expected))


AFFINE = [r for r, _ in HAND_MADE if getattr(r, "form", "centered") == "centered"]
AFFINE = [r for r in AFFINE if not isinstance(r, (Unguided, Unconditional))]


@pytest.mark.parametrize("rule", AFFINE, ids=repr)
def test_affine_rules_have_coefficients_that_sum_to_one(rule):
    rng = np.random.default_rng(0)
    rows = {
        name: rng.normal(size=(2, 3)).astype(np.float32)
        for name in ("uncond", "cond", "first", "second", "worse")
    }
    same = combine(rule, **dict.fromkeys(rows, rows["cond"]))
    np.testing.assert_array_equal(same, rows["cond"])
    moved = combine(rule, **{name: row + 10.0 for name, row in rows.items()})
    np.testing.assert_allclose(moved, combine(rule, **rows) + 10.0, atol=1e-4)

    # The same rule in noise space, eps = (x - D) / sigma, leads to the same result.
    x, sigma = POINT["x"], POINT["sigma"]
    eps = combine(rule, **{name: (x - row) / sigma for name, row in rows.items()})
    np.testing.assert_allclose(x - sigma * eps, combine(rule, **rows), atol=1e-4)


def test_subtracting_shrinks_and_depends_on_the_space():
    """Equal outputs D: (1 - omega) D in x0 space, x - (1 - omega)(x - D) in noise."""
    rows = dict.fromkeys(("uncond", "cond", "first"), C)
    in_x0 = combine(S2Guidance(4.0, 0.25, form="subtract"), **rows)
    np.testing.assert_allclose(in_x0, 0.75 * C)
    in_eps = combine(S2Guidance(4.0, 0.25, form="subtract_eps"), **rows)
    np.testing.assert_allclose(in_eps, POINT["x"] - 0.75 * (POINT["x"] - C))


def test_small_differences_are_taken_in_float32():
    """1 + 1.25 / 128 lies between two numbers of bfloat16."""

    def denoiser(x, sigma, label):
        value = 1.0 if label is None else 1.0 + 1.0 / 128.0
        return jnp.full_like(x, value, jnp.bfloat16)

    got = guided(CFG(1.25), stack=denoiser)
    np.testing.assert_array_equal(got, np.full((N, 2), 1.0 + 1.25 / 128.0, np.float32))


# --- rules as values


def test_scales_are_leaves_and_the_rest_is_static():
    weak = {"weights": jnp.ones(2)}
    cases = [
        (CFG(3.0), [3.0]),
        (S2Guidance(3.0, 0.5), [3.0, 0.5]),
        (SkipLayer(3.0, (1, 2), 2.0), [3.0, 2.0]),
        (Windowed(CFG(3.0), (0.0, 0.5), outside=CFG(2.0)), [3.0, 2.0]),
        (Unguided(), []),
    ]
    for rule, leaves in cases:
        assert jax.tree.leaves(rule) == leaves
        twice = jax.tree.map(lambda v: 2 * v, rule)
        assert jax.tree.leaves(twice) == [2 * v for v in leaves]
        assert type(twice) is type(rule)
    assert jax.tree.leaves(AutoGuidance(weak, 3.0))[1] == 3.0
    changed = dataclasses.replace(S2Guidance(3.0), num_dropped=2)
    structure = jax.tree.structure
    assert structure(changed) != structure(S2Guidance(3.0))
    assert structure(S2Guidance(4.0, 0.1)) == structure(S2Guidance(3.0))


def test_rules_are_frozen_and_compare_by_value():
    rule = S2Guidance(3.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.scale = 4.0
    assert rule == S2Guidance(3.0) and rule != S2Guidance(4.0)
    assert len({rule, S2Guidance(3.0), CFG(3.0)}) == 2


@guidance_rule
class Momentum(GuidanceRule):
    """CFG whose difference is accumulated over the steps."""

    scale: float
    decay: float = static_field(default=0.5)

    def init(self, x):
        return jnp.zeros_like(x)

    def passes(self, label, draws):
        return Pass(label), Pass(None)

    def combine(self, outputs, x, sigma, state):
        cond, uncond = outputs
        state = cond - uncond + self.decay * state
        return cond + (self.scale - 1.0) * state, state


def test_an_own_rule_keeps_its_state_from_window_to_window():
    """Against a loop in NumPy; a state lost on the way would be visible."""

    def denoiser(x, sigma, label):
        return 0.5 * x if label is None else 0.5 * x + 1.0

    levels = (8.0, 4.0, 2.0, 1.0)
    rule = Windowed(Momentum(3.0), (0.0, 0.5), outside=Momentum(2.0))
    assert len(plan_segments(rule, CustomSchedule(levels), Euler())) == 3
    start = jnp.linspace(-1.0, 1.0, 2 * N).reshape(N, 2)
    got = guided(rule, stack=denoiser, start=start, schedule=CustomSchedule(levels))

    x, state = np.asarray(start, np.float64), 0.0
    for step, (now, after) in enumerate(itertools.pairwise((*levels, 0.0))):
        state = 1.0 + 0.5 * state
        value = 0.5 * x + 1.0 + (2.0 if step < 2 else 1.0) * state
        x = value + after / now * (x - value)
    np.testing.assert_allclose(got, x, rtol=1e-5)


def test_a_rule_must_define_its_two_methods():
    with pytest.raises(NotImplementedError, match=r"GuidanceRule must define passes"):
        GuidanceRule().passes(None, ())
    with pytest.raises(NotImplementedError, match=r"GuidanceRule must define combine"):
        GuidanceRule().combine(None, None, None, ())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CFG(math.nan), "scale must be finite, got nan"),
        (lambda: CFG(jnp.asarray(jnp.inf)), "scale must be finite, got inf"),
        (lambda: AutoGuidance(STACK, math.inf), "scale must be finite, got inf"),
        (lambda: SkipLayer(math.nan, (1,)), "scale must be finite"),
        (lambda: SkipLayer(2.0, (1,), math.nan), "skip_scale must be finite"),
        (lambda: SkipLayer(2.0, ()), "at least one block"),
        (lambda: SkipLayer(2.0, (1, 1)), "each once"),
        (lambda: SkipLayer(2.0, (1,), window=(0.2, 0.1)), "0 <= lo < hi <= 1"),
        (lambda: S2Guidance(math.nan), "scale must be finite"),
        (lambda: S2Guidance(2.0, -math.inf), "s2_scale must be finite, got -inf"),
        (lambda: S2Guidance(2.0, num_dropped=0), "num_dropped must be at least 1"),
        (lambda: S2Guidance(2.0, num_masks=0), 'at least 1 or "all", got 0'),
        (lambda: S2Guidance(2.0, form="middle"), "form must be .* 'middle'"),
        (lambda: S2Guidance(2.0, redraw="never"), "redraw must be .* 'never'"),
        (lambda: S2Guidance(2.0, window=(0.9, 0.1)), "0 <= lo < hi <= 1"),
        (lambda: Windowed(CFG(2.0), (0.5, 0.5)), "0 <= lo < hi <= 1"),
    ],
)
def test_bad_values_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "rule, message",
    [
        (S2Guidance(2.0, num_dropped=4), "num_dropped=4 exceeds the 3 unprotected"),
        (SkipLayer(2.0, (4,), window=None), r"dropped blocks must be in 0\.\.3"),
        (
            S2Guidance(2.0, distribution=Bernoulli(0.5), num_masks="all"),
            "enumerates the sets of FixedCount, got Bernoulli",
        ),
    ],
    ids=repr,
)
def test_a_rule_that_does_not_fit_the_model_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        guided(rule, schedule=CustomSchedule((4.0, 2.0)))
