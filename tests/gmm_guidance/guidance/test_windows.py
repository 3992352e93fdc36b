"""Windows against step counts worked out by hand."""

import math

import pytest

from gmm_guidance.guidance.windows import (
    Position,
    SigmaWindow,
    StepWindow,
    Window,
    as_window,
)


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


@pytest.mark.parametrize("num_steps", [1, 3, 7, 10, 28, 49, 50, 1000])
@pytest.mark.parametrize("parts", [2, 3, 7, 10])
def test_neighbouring_windows_share_the_steps_out(num_steps, parts):
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


@pytest.mark.parametrize("tenths", range(1, 10))
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
