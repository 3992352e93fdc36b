"""Windows against step counts worked out by hand, and windows without evaluations."""

import math

import jax
import pytest

from gmm_guidance import (
    CFG,
    CustomSchedule,
    Karras,
    Rescaled,
    S2Guidance,
    SkipLayer,
    Windowed,
    expected_cost,
    guided_sample,
)
from gmm_guidance.guidance.windows import (
    Position,
    SigmaWindow,
    StepWindow,
    Window,
    as_window,
)
from gmm_guidance.sampling.segments import plan_segments
from gmm_guidance.sampling.solvers import Euler, Heun


def inside(window, num_steps):
    positions = (Position(i / num_steps, 1.0, i, num_steps) for i in range(num_steps))
    return [p.step for p in positions if as_window(window).contains(p)]


@pytest.mark.parametrize(
    "window, expected",
    [
        (None, [0, 1, 2, 3]),
        ((0.0, 1.0), [0, 1, 2, 3]),
        ((0, 1), [0, 1, 2, 3]),
        ((0.0, 0.25), [0]),
        ((0.25, 0.5), [1]),
        ((0.75, 1.0), [3]),
        ((0.0, 0.75), [0, 1, 2]),
        ((0.1, 0.9), [1, 2, 3]),
        ((0.76, 1.0), []),
        ((0.01, 0.2), []),
        (StepWindow(0.5), [2, 3]),
        (StepWindow(hi=0.5), [0, 1]),
    ],
)
def test_four_steps(window, expected):
    assert inside(window, 4) == expected


@pytest.mark.parametrize(
    "num_steps, first, last, count",
    [(10, 1, 8, 8), (20, 2, 17, 16), (28, 3, 25, 23), (50, 5, 44, 40), (30, 3, 26, 24)],
)
def test_the_central_eighty_percent(num_steps, first, last, count):
    steps = inside((0.1, 0.9), num_steps)
    assert (steps[0], steps[-1], len(steps)) == (first, last, count)


@pytest.mark.parametrize(
    "num_steps, parts", [(1, 2), (3, 2), (7, 3), (10, 10), (49, 7), (1000, 7)]
)
def test_adjacent_windows_contain_each_step_once(num_steps, parts):
    # Ends as sums, with the rounding that brings: 0.1 + 0.1 + 0.1 > 0.3.
    ends = [0.0]
    for _ in range(parts):
        ends.append(min(ends[-1] + 1 / parts, 1.0))
    ends[-1] = 1.0
    steps = [
        i
        for lo, hi in zip(ends[:-1], ends[1:], strict=True)
        for i in inside((lo, hi), num_steps)
    ]
    assert steps == list(range(num_steps))


@pytest.mark.parametrize("tenths", [1, 3, 6, 7, 9])
def test_ends_are_decided_as_if_without_rounding(tenths):
    assert inside((0.1 * tenths, 1.0), 10) == list(range(tenths, 10))
    assert inside((0.0, 1 - 0.1 * (10 - tenths)), 10) == list(range(tenths))


@pytest.mark.parametrize(
    "sigma, expected",
    [(0.28, False), (0.2800001, True), (1.0, True), (2.9, True), (2.9000001, False)],
)
def test_sigma_window_is_open_below_and_closed_above(sigma, expected):
    window = SigmaWindow(0.28, 2.9)
    assert window.contains(Position(0.5, sigma, 2, 4)) is expected


def test_sigma_window_without_ends():
    window = SigmaWindow(0.0, math.inf)
    assert window.contains(Position(0.0, 1e6, 0, 4))
    assert not window.contains(Position(0.75, 0.0, 3, 4))


def test_as_window_accepts_every_notation():
    class FirstStep:
        def contains(self, position):
            return position.step == 0

    assert as_window(None) == StepWindow(0.0, 1.0)
    assert as_window((0.1, 0.9)) == StepWindow(0.1, 0.9)
    assert as_window(SigmaWindow(1, 2)) == SigmaWindow(1.0, 2.0)
    assert isinstance(FirstStep(), Window)
    assert inside(FirstStep(), 4) == [0]
    assert hash(StepWindow()) == hash(StepWindow(0.0, 1.0))


# --- what is refused


@pytest.mark.parametrize(
    "lo, hi",
    [(-0.1, 0.5), (0.5, 1.1), (0.9, 0.1), (0.5, 0.5), (math.nan, 1.0), (0.0, math.nan)],
)
def test_bad_step_windows(lo, hi):
    with pytest.raises(ValueError, match=f"0 <= lo < hi <= 1.*got lo={lo}, hi={hi}"):
        StepWindow(lo, hi)
    with pytest.raises(ValueError, match="0 <= lo < hi <= 1"):
        as_window((lo, hi))


@pytest.mark.parametrize(
    "lo, hi", [(-1.0, 2.0), (2.0, 1.0), (1.0, 1.0), (math.nan, 1.0), (0.0, math.nan)]
)
def test_bad_sigma_windows(lo, hi):
    with pytest.raises(ValueError, match=f"sigma window.*got lo={lo}, hi={hi}"):
        SigmaWindow(lo, hi)


@pytest.mark.parametrize("window", [(), (0.5,), (0.1, 0.5, 0.9)])
def test_windows_with_another_number_of_ends(window):
    with pytest.raises(ValueError, match=r"two ends, \(lo, hi\).*got \("):
        as_window(window)


@pytest.mark.parametrize("window", [0.5, "all", [0.1, 0.9], ("a", "b"), StepWindow])
def test_things_that_are_no_window(window):
    with pytest.raises(TypeError, match="a window must be None, a tuple.*got"):
        as_window(window)


# --- a window without evaluations of a run is an error


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
