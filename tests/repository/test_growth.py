"""Growth of cost: slopes and verdicts, and one axis measured at tiny sizes."""

import numpy as np
import pytest

from benchmarks.growth import AXES, judge, measure, upper_half
from benchmarks.growth_figure import growth_figure

_X = 2.0 ** np.arange(3, 11)
_EXPECTED = "as expected"
_NOT = "not as expected"


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_a_known_slope_lies_in_its_interval(power):
    noise = np.exp(0.02 * np.random.default_rng(0).normal(size=_X.size))
    found = judge(_X, 3.0 * _X**power * noise, "linear")
    assert found["interval"][0] < power < found["interval"][1]
    assert found["slope"] == pytest.approx(power, abs=0.1)
    exact = judge(_X, 3.0 * _X**power, "linear")
    assert exact["interval"] == pytest.approx([power, power], abs=1e-6)


@pytest.mark.parametrize(
    ("power", "verdicts"),
    [
        (0.0, {"flat": _EXPECTED, "linear": _NOT, "at most linear": _EXPECTED}),
        (1.0, {"flat": _NOT, "linear": _EXPECTED, "at most linear": _EXPECTED}),
        (2.0, {"flat": _NOT, "linear": _NOT, "at most linear": _NOT}),
    ],
)
def test_verdicts_follow_from_the_numbers(power, verdicts):
    for expected, verdict in verdicts.items():
        assert judge(_X, _X**power, expected)["verdict"] == verdict


def test_fixed_costs_are_left_to_the_lower_half():
    chosen = upper_half(_X)
    np.testing.assert_array_equal(chosen, [0, 0, 0, 0, 1, 1, 1, 1])
    assert upper_half([1.0, 100.0, 101.0]).all()  # never fewer than three
    with_offset = _X + 40.0
    assert np.polyfit(np.log(_X), np.log(with_offset), 1)[0] < 0.8
    assert judge(_X, with_offset, "linear")["verdict"] == _EXPECTED


def test_the_arithmetic_is_that_of_the_passes():
    masks = np.array([0, 1, 2, 4, 8])
    passes = 2.0 + 0.4 * masks
    assert judge(masks, 0.03 * passes, "arithmetic", passes)["verdict"] == _EXPECTED
    separate = 0.03 * (2.0 + 0.9 * masks)
    assert judge(masks, separate, "arithmetic", passes)["verdict"] == _NOT
    passes_of_dropped = [2.0, 2.4, 2.5, 2.4, 2.0]
    constant = judge(masks, [2.0, 2.4, 2.4, 2.4, 2.4], "arithmetic", passes_of_dropped)
    assert constant["largest_deviation"] == pytest.approx(0.2)
    assert constant["verdict"] == _NOT
    # Where zero is a run without masks, it has no place on a logarithmic axis.
    assert judge(masks, masks + 1.0, "linear")["points_fitted"] == 3


@pytest.mark.ci
@pytest.mark.parametrize("axis", [AXES[0], AXES[-2], AXES[-1]], ids=lambda a: a.title)
def test_axes_are_measured_and_drawn(axis, tmp_path):
    entry = measure(axis, quick=True)
    assert np.isfinite(entry["time_seconds"]).all() and min(entry["time_seconds"]) > 0
    assert np.isfinite([entry["time_slope"], *entry["time_interval"]]).all()
    if axis is AXES[0]:  # batches: one program, whatever the number of samples
        assert len(set(entry["memory_mib"])) == 1
        assert entry["memory_verdict"] == _EXPECTED
    growth_figure([entry], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 0


def test_every_axis_has_three_points_at_either_size():
    assert all(min(len(a.values), len(a.quick)) >= 3 for a in AXES)
    assert len({a.title for a in AXES}) == len(AXES)
