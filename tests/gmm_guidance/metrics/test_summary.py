"""The summary of all metrics, and its floor for true samples."""

import json

import jax
import numpy as np
import pytest
from oracles.metric_truths import CORNERS, LINE, LINE_MEANS, N_CORNERS, N_LINE, draw

from gmm_guidance import metrics

COMMON = {
    "energy_distance",
    "mode_shift",
    "mode_width_ratio",
    "mode_fraction_error",
    "outside_fraction",
    "nll_mean",
    "nll_median",
    "nll_p99",
}
BY_CLASS = {"class_shift", "class_width_ratio", "wrong_mode_fraction"}


def test_summary_of_true_and_of_shifted_samples():
    x, labels = draw(LINE, N_LINE)
    true = metrics.summarize(x, labels, LINE)
    assert set(true) == COMMON | BY_CLASS | {"w2"}
    json.dumps(true)  # plain floats
    assert true == metrics.summarize(x, labels, LINE)
    each = [metrics.wasserstein_1d(x[labels == k], LINE, k) for k in (0, 1)]
    np.testing.assert_allclose(true["w2"], np.mean(each))
    moved = metrics.summarize(x + 1, labels, LINE)
    assert abs(moved["w2"] - 1) <= true["w2"] < 0.3  # the triangle inequality
    assert moved["energy_distance"] > 0.1 > abs(true["energy_distance"])


def test_summary_in_the_plane_and_without_labels():
    x, labels = draw(CORNERS, N_CORNERS)
    result = metrics.summarize(x, labels, CORNERS, key=jax.random.key(5))
    assert set(result) == COMMON | BY_CLASS | {"sliced_w2"}
    assert all(np.isfinite(value) for value in result.values())
    free = metrics.summarize(x, None, CORNERS)
    assert set(free) == COMMON | {"sliced_w2"}
    np.testing.assert_allclose(
        free["sliced_w2"], metrics.sliced_wasserstein(x, CORNERS), rtol=1e-12
    )


def test_share_error_is_the_total_variation_of_mode_shares():
    x = np.where(np.arange(N_LINE) % 4 == 0, LINE_MEANS[2], LINE_MEANS[1])
    result = metrics.summarize(x, 1, LINE)
    assert result["mode_fraction_error"] == pytest.approx(0.15)  # 3/4, 1/4 for 0.6, 0.4


def test_truth_floor_brackets_a_fresh_draw(key):
    x, labels = draw(LINE, N_LINE, seed=9)
    floor = metrics.truth_floor(key, LINE, labels, num_repeats=8)
    fresh = metrics.summarize(x, labels, LINE)
    assert set(floor) == set(fresh)
    for name, value in fresh.items():
        entry = floor[name]
        spread = entry["standard_error"] * np.sqrt(8)
        assert abs(value - entry["mean"]) <= 5 * spread + 1e-12, name
    assert floor["w2"]["mean"] < metrics.summarize(x + 0.5, labels, LINE)["w2"]


def test_truth_floor_is_deterministic(key):
    _, labels = draw(LINE, N_LINE)
    once = metrics.truth_floor(key, LINE, labels, num_repeats=2)
    assert once == metrics.truth_floor(key, LINE, labels, num_repeats=2)
    other = metrics.truth_floor(jax.random.key(1), LINE, labels, num_repeats=2)
    assert other["w2"] != once["w2"]
