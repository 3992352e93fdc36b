"""Scales that vary with the noise level, in every rule that takes a scale."""

import numpy as np
import pytest
from oracles.predictions import random_point, value

from gmm_guidance import (
    APG,
    CFG,
    MAMBOG,
    TCFG,
    AutoGuidance,
    CFGPlusPlus,
    CFGZeroStar,
    CustomSchedule,
    Rescaled,
    S2Guidance,
    SkipLayer,
    Unguided,
)
from gmm_guidance.guidance.scale import SigmaCurve
from gmm_guidance.sampling.segments import plan_segments
from gmm_guidance.sampling.solvers import Euler

WEAK = random_point(7).cond
LEVELS = np.array([0.5, 2.0, 8.0])
# 0.5 at sigma 2 and 0.75 half-way in log sigma to 8.
CURVE = SigmaCurve(LEVELS, np.array([0.0, 0.5, 1.0]))
MAKE = {
    "CFG": CFG,
    "APG": APG,
    "TCFG": TCFG,
    "MAMBOG": MAMBOG,
    "CFGZeroStar": CFGZeroStar,
    "CFGPlusPlus": CFGPlusPlus,
    "Rescaled": lambda s: Rescaled(CFG(3.0), s),
    "S2Guidance": lambda s: S2Guidance(2.0, s),
    "S2Guidance, CFG": lambda s: S2Guidance(s, 0.3),
    "SkipLayer": lambda s: SkipLayer(2.0, (1,), s),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("sigma, number", [(2.0, 0.5), (4.0, 0.75), (100.0, 1.0)])
def test_a_curve_is_its_number_at_each_level(make, sigma, number):
    point = random_point(sigma=sigma)
    got, wanted = (value(make(s), point, (WEAK,)) for s in (CURVE, number))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["CFG", "APG", "TCFG", "MAMBOG"])
def test_where_a_curve_is_one_the_rule_is_off(rule):
    segments = plan_segments(MAKE[rule](CURVE), CustomSchedule((8.0, 2.0)), Euler())
    assert segments[0].rules == (Unguided(),)
    assert segments[1].rules != (Unguided(),)


def test_where_the_weak_curve_is_zero_there_is_no_weak_pass():
    rule = S2Guidance(2.0, CURVE, window=None)
    segments = plan_segments(rule, CustomSchedule((2.0, 0.5)), Euler())
    assert type(segments[0].rules[0]).__name__ == "S2Guidance"
    assert segments[1].rules == (CFG(2.0),)


@pytest.mark.parametrize("values", [(0.5, 2.0, 0.5), (0.5, -1.0, 0.5)])
def test_limits_hold_for_each_value(values):
    curve = SigmaCurve(LEVELS, np.array(values))
    for make in (CFGPlusPlus, lambda s: Rescaled(CFG(3.0), s)):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\], got (2|-1)"):
            make(curve)
    assert AutoGuidance("worse", curve).scale is curve


def test_curves_of_tuples_lists_and_functions_are_those_of_arrays():
    point = random_point(sigma=4.0)
    wanted = value(CFG(CURVE), point, (WEAK,))
    nodes, values = LEVELS.tolist(), [0.0, 0.5, 1.0]
    for curve in (SigmaCurve(nodes, values), SigmaCurve(tuple(nodes), tuple(values))):
        np.testing.assert_array_equal(value(CFG(curve), point, (WEAK,)), wanted)
    line = SigmaCurve.from_function(lambda s: np.log(s / 0.5) / np.log(16), 0.5, 8.0, 9)
    found = value(CFG(line), point, (WEAK,))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match=r"SigmaCurve.from_function\(...\) around it"):
        CFG(lambda sigma: 2.0)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        SigmaCurve.from_function(np.log, 2.0, 1.0)
