"""Inception score: certain and uncertain predictions, parts, loops of logarithms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmm_guidance import metrics

FEW = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def by_loops(rows):
    """exp of the mean KL divergence, as quotients, 0 log 0 = 0."""
    classes = range(len(rows[0]))
    marginal = [sum(row[c] for row in rows) / len(rows) for c in classes]
    total = 0.0
    for row in rows:
        total += sum(row[c] * math.log(row[c] / marginal[c]) for c in classes if row[c])
    return math.exp(total / len(rows))


def random_rows(rng, n, classes):
    logits = rng.normal(size=(n, classes)) * 3
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_certain_and_even_predictions_score_the_classes(classes):
    rows = np.tile(np.eye(classes), (20, 1))
    found = metrics.inception_score(rows)
    assert found == pytest.approx((classes, 0), abs=1e-12)


def test_constant_predictions_score_one():
    rows = np.tile([0.5, 0.25, 0.25, 0.0], (30, 1))
    assert metrics.inception_score(rows) == pytest.approx((1, 0), abs=1e-12)


@pytest.mark.parametrize("q", [0.01, 0.3, 0.5])
def test_two_classes_in_closed_form(q):
    """Entropy log 2 of the mean, less that of a coin of probability q."""
    rows = np.tile([[q, 1 - q], [1 - q, q]], (10, 1))
    expected = 2 * q**q * (1 - q) ** (1 - q)
    assert metrics.inception_score(rows, 5).mean == pytest.approx(expected)


def test_parts_are_contiguous_and_cut_as_in_the_reference():
    """Seven rows in three parts: 0:2, 2:4 and 4:7."""
    rows = random_rows(np.random.default_rng(0), 7, 4)
    scores = [by_loops(rows[part].tolist()) for part in np.split(np.arange(7), [2, 4])]
    mean = sum(scores) / 3
    std = math.sqrt(sum((s - mean) ** 2 for s in scores) / 3)
    assert metrics.inception_score(rows, 3) == pytest.approx((mean, std), rel=1e-12)


def test_spread_is_over_the_parts():
    """One part of one class, one part of two: scores 1 and 2."""
    rows = np.eye(2)[[0, 0, 0, 0, 0, 1, 0, 1]]
    assert metrics.inception_score(rows, 2) == pytest.approx((1.5, 0.5), rel=1e-12)


def test_a_sorted_set_is_misjudged():
    rows = np.repeat(np.eye(5), 8, axis=0)
    assert metrics.inception_score(rows, 5).mean == pytest.approx(1)
    assert metrics.inception_score(rows, 1) == pytest.approx((5, 0))


def test_default_is_ten_parts():
    rows = random_rows(np.random.default_rng(1), 100, 3)
    assert metrics.inception_score(rows) == metrics.inception_score(rows, 10)
    assert metrics.inception_score(rows) != metrics.inception_score(rows, 9)


def test_zeros_and_tiny_probabilities():
    """Numbers whose mean is rounded to zero, and those of a float32 softmax."""
    rows = np.tile([1.0, 0.0, 0.0], (4, 1))
    rows[0, 1] = 5e-324
    assert metrics.inception_score(rows, 1) == pytest.approx((1, 0), abs=1e-12)
    exact = random_rows(np.random.default_rng(2), 50, 10)
    single = metrics.inception_score(exact.astype(np.float32), 2)
    assert single == pytest.approx(metrics.inception_score(exact, 2), rel=1e-5)


@FEW
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 20))
def test_loops_range_and_order(seed, classes, n):
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, n, classes)
    found = metrics.inception_score(rows, 1).mean
    assert found == pytest.approx(by_loops(rows.tolist()), rel=1e-12)
    assert 1 - 1e-12 <= found <= min(classes, n) + 1e-12
    shuffled = rng.permutation(rng.permutation(rows), axis=1)
    assert metrics.inception_score(shuffled, 1).mean == pytest.approx(found, rel=1e-12)


def test_sums_of_one_within_a_tolerance():
    rows = np.tile([0.5, 0.4995], (4, 1))
    assert metrics.inception_score(rows, 1).mean == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="row 2 sums to 0.998"):
        metrics.inception_score(rows - [[0, 0], [0, 0], [0, 0.0015], [0, 0]], 1)


EVEN = np.full((4, 2), 0.5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((EVEN[0], 1), r"shape \[n, classes\].*got \(2,\)"),
        ((EVEN[:0], 1), r"got \(0, 2\)"),
        ((EVEN[:, :0], 1), r"got \(4, 0\)"),
        ((EVEN, 5), "1 to the number of samples, 4, got 5"),
        ((EVEN,), "the number of samples, 4, got 10"),
        ((EVEN, 0), "got 0"),
        ((EVEN, 2.0), "must be an integer .* got 2.0"),
        ((EVEN * 3, 1), "row 0 sums to 3. Pass the softmax"),
        (([[0.5, 0.5], [1.5, -0.5]], 1), "not negative; row 1 is not"),
        (([[0.5, 0.5], [np.nan, 1.0]], 1), "finite and not negative; row 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.inception_score(*arguments)
