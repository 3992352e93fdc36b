"""Every request that ``guided_sample``, a rule or a schedule refuses."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from oracles.toy_stack import ToyStack

from gmm_guidance import (
    CFG,
    AutoGuidance,
    Bernoulli,
    ExactDenoiser,
    FixedBlocks,
    FixedCount,
    Karras,
    S2Guidance,
    SigmaWindow,
    SkipLayer,
    StepWindow,
    Unguided,
    Windowed,
    guided_sample,
    presets,
)

KEY = jax.random.key(0)
CORNERS = ExactDenoiser(presets.four_corners())
STACK = ToyStack.random(num_blocks=3)


def draw(denoiser=CORNERS, label=1, key=KEY, num_samples=4, **options):
    options = {"schedule": Karras(2), **options}
    return guided_sample(key, denoiser, label, num_samples=num_samples, **options)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"key": 0}, TypeError, r"must be a JAX random key, got int.*key\(seed\)"),
        ({"key": jax.random.split(KEY)}, ValueError, r"single key.*shape \(2,\)"),
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"first_index": -1}, ValueError, "first_index must be at least 0, got -1"),
        ({"label": 5}, ValueError, r"label must be in 0\.\.3 \(or 4.*got \[5\]"),
        ({"label": -1}, ValueError, r"label must be in 0\.\.3.*got \[-1\]"),
        ({"label": np.array([0, 9, 1, 7])}, ValueError, r"got \[7, 9\]"),
        ({"label": np.array([0, 1])}, ValueError, r"\[4\] integers.*shape \(2,\)"),
        ({"label": 1.0}, ValueError, "label must be an integer, got dtype float"),
        ({"label": True}, ValueError, "label must be an integer, got dtype bool"),
        ({"solver": "huen"}, ValueError, "got 'huen'. Did you mean 'heun'"),
        ({"initial": np.zeros((3, 2))}, ValueError, r"shape \(4, 2\), got \(3, 2\)"),
        ({"initial": np.zeros((4, 3))}, ValueError, r"shape \(4, 2\), got \(4, 3\)"),
    ],
)
def test_bad_requests(options, error, message):
    with pytest.raises(error, match=message):
        draw(**options)


@pytest.mark.parametrize(
    "rule",
    [
        CFG(2.0),
        Windowed(CFG(2.0), (0.0, 0.5)),
        Windowed(Unguided(), (0.0, 0.5), outside=CFG(2.0)),
        S2Guidance(2.0),
        SkipLayer(2.0, (1,), window=None),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_rules_that_guide_towards_a_label_need_one(rule):
    name = type(rule).__name__
    with pytest.raises(ValueError, match=f"{name} guides towards a label, got label="):
        draw(STACK, None, guidance=rule)


@pytest.mark.parametrize(
    "rule",
    [
        S2Guidance(2.0, window=None),
        S2Guidance(1.0, s2_scale=0.3, num_masks="all", window=None),
        SkipLayer(2.0, (1,), window=(0.0, 0.5)),
        Windowed(S2Guidance(2.0, window=None), (0.0, 0.5)),
    ],
    ids=["S2", "all masks", "SkipLayer", "Windowed"],
)
@pytest.mark.parametrize(
    "denoiser", [CORNERS, lambda x, sigma, label: x], ids=["exact", "function"]
)
def test_rules_that_drop_blocks_need_a_model_of_blocks(rule, denoiser):
    with pytest.raises(TypeError, match="drops blocks.*BlockStack.*none .CFG, Auto"):
        draw(denoiser, guidance=rule, sample_shape=(2,))


def test_the_shape_of_a_sample_must_be_known():
    with pytest.raises(ValueError, match="shape of a sample is unknown: function has"):
        draw(lambda x, sigma, label: x)


def test_parts_of_a_denoiser_are_arrays_or_hashable():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Odd:
        names: object

        def __call__(self, x, sigma, label):
            return x

    with pytest.raises(TypeError, match="unhashable set. Register its class as a pytr"):
        draw(Odd({"a"}), sample_shape=(2,))


# --- rules


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32(-math.inf)])
@pytest.mark.parametrize(
    "rule",
    [
        CFG,
        lambda s: AutoGuidance(CORNERS, s),
        S2Guidance,
        lambda s: SkipLayer(s, (1,)),
    ],
    ids=["CFG", "AutoGuidance", "S2Guidance", "SkipLayer"],
)
def test_scales_are_finite(rule, value):
    with pytest.raises(ValueError, match="scale must be finite, got (nan|inf|-inf)"):
        rule(value)


def test_weak_scales_are_finite():
    with pytest.raises(ValueError, match="s2_scale must be finite, got nan"):
        S2Guidance(2.0, s2_scale=math.nan)
    with pytest.raises(ValueError, match="skip_scale must be finite, got inf"):
        SkipLayer(2.0, (1,), skip_scale=math.inf)


WINDOWS = [
    ((0.9, 0.1), ValueError, "0 <= lo < hi <= 1.*got lo=0.9, hi=0.1"),
    ((0.5, 0.5), ValueError, "got lo=0.5, hi=0.5"),
    ((-0.1, 0.5), ValueError, "got lo=-0.1, hi=0.5"),
    ((0.1, 1.5), ValueError, "got lo=0.1, hi=1.5.*use SigmaWindow"),
    ((0.1, math.nan), ValueError, "got lo=0.1, hi=nan"),
    ((0.1, 0.5, 0.9), ValueError, "must have two ends"),
    ("always", TypeError, "a window must be None, a tuple .*got 'always'"),
    ((0.1, "end"), TypeError, "a window must be None, a tuple"),
    (StepWindow, TypeError, "a window must be None, a tuple"),
]


@pytest.mark.parametrize("window, error, message", WINDOWS)
@pytest.mark.parametrize(
    "rule",
    [
        lambda w: S2Guidance(2.0, window=w),
        lambda w: SkipLayer(2.0, (1,), window=w),
        lambda w: Windowed(CFG(2.0), w),
    ],
    ids=["S2Guidance", "SkipLayer", "Windowed"],
)
def test_bad_windows(rule, window, error, message):
    with pytest.raises(error, match=message):
        rule(window)


@pytest.mark.parametrize("low, high", [(3.0, 1.0), (-1.0, 2.0), (2.0, 2.0)])
def test_bad_sigma_windows(low, high):
    with pytest.raises(ValueError, match=f"0 <= lo < hi.*got lo={low}, hi={high}"):
        SigmaWindow(low, high)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_dropped": 0}, "num_dropped must be at least 1, got 0"),
        ({"num_masks": 0}, 'num_masks must be at least 1 or "all", got 0'),
        ({"form": "centred"}, "form must be one of centered, .*got 'centred'"),
        ({"redraw": "never"}, "redraw must be one of step, .*got 'never'"),
    ],
)
def test_bad_s2(options, message):
    with pytest.raises(ValueError, match=message):
        S2Guidance(2.0, **options)


@pytest.mark.parametrize(
    "law, message",
    [
        (FixedCount(1, (0, 1, 2)), "all 3 blocks are protected.*protect fewer"),
        (FixedCount(3, ()), "3"),  # no block would be left
        (FixedCount(3, (0,)), "3"),  # more than there are
        (FixedCount(1, (0, 7)), r"protected blocks must be in 0\.\.2.*got \[7\]"),
        (FixedBlocks((1, 5)), "5"),
        (FixedBlocks((0, 1, 2)), "3"),
        (Bernoulli(0.5, ()), "protect"),
    ],
)
def test_laws_that_do_not_fit_the_model(law, message):
    with pytest.raises(ValueError, match=message):
        draw(STACK, guidance=S2Guidance(2.0, distribution=law, window=None))


def test_all_masks_are_those_of_a_fixed_count():
    rule = S2Guidance(2.0, distribution=Bernoulli(0.3), num_masks="all", window=None)
    with pytest.raises(ValueError, match='num_masks="all".*FixedCount, got Bernoulli'):
        draw(STACK, guidance=rule)


@pytest.mark.parametrize("steps", [0, -3, 2.5])
def test_steps_are_counted_from_one(steps):
    with pytest.raises(ValueError, match=f"num_steps must be a whole .*got {steps}"):
        draw(schedule=Karras(steps))
