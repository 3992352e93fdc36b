"""The experiment on the first-order law: its statistics."""

import numpy as np
import pytest

from toy_experiments.effect_law import _correlation


def test_correlation_and_slope_are_those_of_a_line():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = 0.5 * x + 0.1 * rng.normal(size=200)
    found = [
        {"scale": 1.0, "prediction": "edm", "predicted_shift": a, "measured_shift": b}
        for a, b in zip(x, y, strict=True)
    ]
    other = {"scale": 1.0, "prediction": "x0"}
    other |= {"predicted_shift": 5.0, "measured_shift": -90.0}
    own = _correlation([*found, other], 1.0, "shift", "edm")
    # r = 0.5 / sqrt(0.25 + 0.01) for standard normal x
    assert own["networks"] == 200
    assert own["correlation"] == pytest.approx(0.98, abs=0.01)
    assert own["slope"] == pytest.approx(0.5, abs=0.03)
    assert own["same_sign"] == np.mean(x * y > 0)
    assert _correlation([*found, other], 1.0, "shift", None)["correlation"] < 0.5
