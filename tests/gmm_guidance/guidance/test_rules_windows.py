"""A window that contains no evaluation of a run is an error, not a silent nothing."""

import jax
import pytest

from gmm_guidance import (
    CFG,
    CustomSchedule,
    Karras,
    Rescaled,
    S2Guidance,
    SigmaWindow,
    SkipLayer,
    Windowed,
    expected_cost,
    guided_sample,
)
from gmm_guidance.sampling.segments import plan_segments
from gmm_guidance.sampling.solvers import Euler, Heun

FOUR = CustomSchedule((8.0, 4.0, 2.0, 1.0))  # steps at shares 0, 1/4, 1/2, 3/4


def acting(rule, num_steps):
    """The steps with a weak pass."""
    segments = plan_segments(rule, Karras(num_steps), Euler())
    weak = [s for s in segments if isinstance(s.rules[0], SkipLayer)]
    return [i for s in weak for i in range(s.start, s.stop)]


@pytest.mark.parametrize("num_steps", [4, 5])
def test_skip_layers_own_window_is_refused_where_it_holds_no_step(num_steps):
    """(0.01, 0.2) lies between steps 0 and 1 of four; of six it holds step 1."""
    message = (
        rf"the window \(0.01, 0.2\) of SkipLayer contains no evaluation of this run of "
        rf"{num_steps} steps.*widen the window"
    )
    with pytest.raises(ValueError, match=message):
        guided_sample(
            jax.random.key(0),
            lambda x, sigma, label: x,
            0,
            num_samples=1,
            guidance=SkipLayer(4.0, (1,)),
            schedule=Karras(num_steps),
            sample_shape=(2,),
        )
    assert acting(SkipLayer(4.0, (1,)), 6) == [1]


EMPTY = [
    S2Guidance(2.0, window=(0.8, 1.0)),
    S2Guidance(2.0, window=SigmaWindow(8.0, 80.0)),
    S2Guidance(2.0, window=SigmaWindow(0.0, 0.9)),
    SkipLayer(2.0, (1,), window=(0.3, 0.45)),
    Windowed(CFG(2.0), (0.1, 0.2)),
    Windowed(CFG(2.0), SigmaWindow(2.5, 3.5)),
    # Each window holds steps, but none of them is inside of both.
    Windowed(S2Guidance(2.0, window=(0.5, 1.0)), (0.0, 0.5)),
    Windowed(CFG(2.0), (0.0, 0.5), outside=S2Guidance(2.0, window=(0.0, 0.5))),
    Rescaled(S2Guidance(2.0, window=(0.8, 1.0))),
    S2Guidance(SkipLayer(2.0, (1,), window=(0.8, 1.0)), window=None),
]


@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=["euler", "heun"])
@pytest.mark.parametrize("rule", EMPTY, ids=repr)
def test_empty_windows_are_found_wherever_they_are(rule, solver):
    with pytest.raises(ValueError, match="no evaluation of this run of 4 steps"):
        plan_segments(rule, FOUR, solver)
    with pytest.raises(ValueError, match="contains no evaluation"):
        expected_cost(rule, FOUR, 5, solver=solver)


NOT_EMPTY = [
    S2Guidance(2.0, window=(0.75, 1.0)),
    S2Guidance(2.0, window=(0.0, 0.1)),
    S2Guidance(2.0, window=SigmaWindow(7.9, 80.0)),
    S2Guidance(2.0, window=SigmaWindow(0.9, 1.0)),
    S2Guidance(2.0, s2_scale=0.0, window=(0.8, 1.0)),  # the term is off anyway
    Windowed(S2Guidance(2.0, window=(0.5, 1.0)), (0.0, 0.75)),
    Windowed(CFG(2.0), None, outside=S2Guidance(2.0, window=(0.8, 1.0))),
]


@pytest.mark.parametrize("rule", NOT_EMPTY, ids=repr)
def test_one_evaluation_is_enough(rule):
    assert plan_segments(rule, FOUR, Euler())


def test_a_second_evaluation_counts():
    """Heun evaluates at 2 twice, at the end of one step and the start of the next."""
    schedule = CustomSchedule((4.0, 2.0, 1.0))
    rule = Windowed(CFG(2.0), SigmaWindow(1.5, 2.5))
    assert expected_cost(rule, schedule, 1, solver="heun").shared == 5 + 2
    assert expected_cost(rule, schedule, 1, solver="euler").shared == 3 + 1


def test_the_message_of_a_single_step():
    with pytest.raises(ValueError, match=r"S2Guidance .*this run of 1 step, so"):
        plan_segments(S2Guidance(2.0), CustomSchedule((1.0,)), Euler())
