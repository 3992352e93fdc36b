"""Records and their statistics."""

import numpy as np
import pytest

from toy_experiments.common.records import (
    distinct,
    exact_value,
    measurement,
    over_seeds,
    paired_change,
    plus_minus,
    select,
    single,
    verdict,
)

METRICS = {
    "tables": {
        "cells": [
            {"rule": "cfg", "scale": 2.0, "w2": measurement([1.0, 5.0, 9.0])},
            {"rule": "s2", "scale": 2.0, "w2": measurement([0.9, 4.9, 8.9])},
            {"rule": "s2", "scale": 4.0, "w2": measurement([1.0, 2.0, 3.0])},
        ]
    }
}


def test_a_measurement_against_a_t_table():
    found = over_seeds([{"x": 1.0}, {"x": 2.0}, {"x": 6.0}])["x"]
    assert found["mean"] == 3.0 and found["seeds"] == [1.0, 2.0, 6.0]
    error = np.sqrt(7.0 / 3.0)  # variance (4 + 1 + 9) / 2 over 3
    assert found["standard_error"] == pytest.approx(error)
    ends = [3.0 - 4.302653 * error, 3.0 + 4.302653 * error]
    assert found["interval_95"] == pytest.approx(ends)
    assert plus_minus(found, 2) == "3.00 ± 1.53"
    assert plus_minus(exact_value(3.0), 1) == "3.0"


def test_selection_by_fields():
    assert len(select(METRICS, "cells", rule="s2")) == 2
    assert single(METRICS, "cells", rule="s2", scale=4)["w2"]["mean"] == 2.0
    assert distinct(METRICS["tables"]["cells"], "scale") == [2.0, 4.0]
    for fields, count in (({"rule": "s2"}, 2), ({"rule": "x"}, 0)):
        with pytest.raises(ValueError, match=f"one record .* got {count}"):
            single(METRICS, "cells", **fields)


def test_changes_are_paired_by_seed():
    """Seeds differ by far more than the change, which is the same in each."""
    cfg, s2, _ = METRICS["tables"]["cells"]
    change = paired_change(s2, cfg, "w2")
    low, high = change["interval_95"]
    assert change["mean"] == pytest.approx(-0.1)
    assert high < 0 and low == pytest.approx(high)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ((-1.0, -1.1, -0.9), "closer"),
        ((1.0, 1.1, 0.9), "farther"),
        ((-1.0, 1.0, 0.1), "undecided"),
    ],
)
def test_verdict_of_a_change(values, wanted):
    assert verdict(measurement(values)) == wanted
