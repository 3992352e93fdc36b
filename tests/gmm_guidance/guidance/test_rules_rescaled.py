"""Rescaling: hand-made numbers, exact limits, and what it does to spreads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.predictions import Point, random_point, value
from oracles.toy_stack import ToyStack

from gmm_guidance import (
    APG,
    CFG,
    CustomSchedule,
    Rescaled,
    S2Guidance,
    Unguided,
    guided_sample,
)
from gmm_guidance.guidance.windows import Position

POINT = random_point(shape=(6, 3, 4))
START = Position(0.0, 1.0, 0, 10)


@pytest.mark.parametrize(
    "factor, wanted", [(0.0, (0, 8)), (1.0, (0, 4)), (0.75, (0, 5)), (0.5, (0, 6))]
)
def test_by_hand(factor, wanted):
    """D_c = (1, 5) has a spread of 2, the guided D = (0, 8) of 4."""
    rows = np.float32([[1, 5]]), np.float32([[2, 2]])
    point = Point(*rows, np.float32([[7, 7]]), 1.0)
    assert value(CFG(2.0), point).tolist() == [[0, 8]]
    np.testing.assert_allclose(value(Rescaled(CFG(2.0), factor), point), [wanted])


def test_each_sample_is_pulled_back_to_its_own_spread():
    """Fully at 1, whatever the rule; 0.7 of the way by default."""
    weak = (0.5 * POINT.uncond,)
    for rule in (CFG(4.0), APG(7.0, 1.0), S2Guidance(4.0, 0.1)):
        got, plain = (value(r, POINT, weak) for r in (Rescaled(rule, 1.0), rule))
        spreads = [np.std(a, axis=(1, 2)) for a in (got, POINT.cond, plain)]
        np.testing.assert_allclose(spreads[0], spreads[1], rtol=1e-4)
        assert (spreads[2] > spreads[1]).all()
        np.testing.assert_allclose(
            value(Rescaled(rule), POINT, weak),
            0.7 * got + 0.3 * plain,
            rtol=1e-4,
            atol=1e-5,
        )


def test_off_values_are_the_rule_alone():
    for factor in (0.0, jnp.asarray(0.0)):
        np.testing.assert_array_equal(
            value(Rescaled(CFG(4.0), factor), POINT), value(CFG(4.0), POINT)
        )
    assert Rescaled(CFG(4.0), 0.0).at(START) == CFG(4.0)
    assert Rescaled(CFG(1.0)).at(START) == Unguided()
    # Equal spreads change nothing, to the last bit.
    np.testing.assert_array_equal(value(Rescaled(CFG(1.0)), POINT), POINT.cond)


def test_flat_results_stay_finite():
    flat = POINT._replace(
        cond=np.ones_like(POINT.cond), uncond=np.zeros_like(POINT.cond)
    )
    np.testing.assert_allclose(value(Rescaled(CFG(4.0), 1.0), flat), 4.0)


def test_it_depends_on_the_space():
    """The same formula in noise is another rule."""
    in_x0 = value(Rescaled(CFG(4.0)), POINT)
    x, sigma = POINT.x, np.float32(POINT.sigma)
    noise = Point((x - POINT.cond) / sigma, (x - POINT.uncond) / sigma, x, POINT.sigma)
    in_noise = x - sigma * value(Rescaled(CFG(4.0)), noise)
    assert np.abs(in_x0 - in_noise).max() > 0.1


def test_a_sample_of_one_number_has_no_spread():
    line = ToyStack.random(dim=1)
    with pytest.raises(
        ValueError, match=r"at least two numbers.*samples of shape \(1,"
    ):
        guided_sample(
            jax.random.key(0),
            line,
            1,
            num_samples=3,
            guidance=Rescaled(CFG(2.0)),
            schedule=CustomSchedule((2.0, 1.0)),
        )


@pytest.mark.parametrize("factor", [-0.1, 1.5, np.nan])
def test_factors_are_shares(factor):
    with pytest.raises(ValueError, match=r"factor must be (in \[0, 1\]|finite), got"):
        Rescaled(CFG(2.0), factor)
