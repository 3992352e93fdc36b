"""Precision, recall, density and coverage against loops written from the papers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gmm_guidance import metrics
from gmm_guidance.metrics import manifolds

FEW = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def squared_distance(a, b):
    return sum((p - q) ** 2 for p, q in zip(a.tolist(), b.tolist(), strict=True))


def squared_radius(points, i, k):
    others = [squared_distance(points[i], p) for j, p in enumerate(points) if j != i]
    return sorted(others)[k - 1]


def share_on_manifold(points, manifold, k):
    """Kynkäänniemi et al., section 2."""
    found = 0
    for point in points:
        found += any(
            squared_distance(point, center) <= squared_radius(manifold, i, k)
            for i, center in enumerate(manifold)
        )
    return found / len(points)


def by_loops(real, generated, k):
    """Precision, recall, density, coverage."""
    total, covered = 0, 0
    for i, center in enumerate(real):  # Naeem et al., section 3
        radius = squared_radius(real, i, k)
        inside = [squared_distance(center, point) <= radius for point in generated]
        total += sum(inside)
        covered += any(inside)
    return (
        share_on_manifold(generated, real, k),
        share_on_manifold(real, generated, k),
        total / (k * len(generated)),
        covered / len(real),
    )


def all_four(real, generated, k):
    return (
        *metrics.precision_recall(real, generated, k),
        *metrics.density_coverage(real, generated, k),
    )


def test_on_a_line_by_hand():
    """Balls of k = 1: [-1, 1], [0, 2], [1, 3] and [2, 18]."""
    real, generated = [0, 1, 2, 10], [3, 19, -1, 30]
    # -1 lies on an edge; 3 on an edge and in the last ball; 19 and 30 in none. The
    # generated balls [-1, 7], [8, 30], [-5, 3] and [19, 41] hold all real points.
    assert metrics.precision_recall(real, generated, 1) == (0.5, 1.0)
    # Three balls for four points; [0, 2] is not covered.
    assert metrics.density_coverage(real, generated, 1) == (0.75, 0.75)


def test_second_neighbour_by_hand():
    """Balls of k = 2: [-2, 2], [0, 2], [0, 4] and [1, 19], the second by a tie."""
    real, generated = [0, 1, 2, 10], [2, -2.5, 1.5]
    # 2 lies in all four balls, two by their edges; 1.5 in all four as well. Generated
    # balls: [-2.5, 6.5], [-7, 2], [-2.5, 5.5]: 10 is missed.
    assert metrics.precision_recall(real, generated, 2) == (2 / 3, 0.75)
    assert metrics.density_coverage(real, generated, 2) == (8 / 6, 1.0)


@pytest.mark.parametrize("dim", [1, 2, 7])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_all_four_agree_with_loops_from_the_papers(dim, k):
    rng = np.random.default_rng(10 * dim + k)
    real = rng.normal(size=(23, dim))
    generated = 1.5 * rng.normal(size=(17, dim)) + 0.4
    assert all_four(real, generated, k) == by_loops(real, generated, k)


def test_defaults_are_the_papers():
    x, y = np.random.default_rng(0).normal(size=(2, 40, 2))
    assert metrics.precision_recall(x, y) == metrics.precision_recall(x, y, 3)
    assert metrics.density_coverage(x, y) == metrics.density_coverage(x, y, 5)


@FEW
@given(
    arrays(np.int64, (9, 2), elements=st.integers(-2, 2)),
    arrays(np.int64, (7, 2), elements=st.integers(-2, 2)),
    st.integers(1, 6),
)
def test_ties_and_copies_on_a_lattice(real, generated, k):
    """Points of a 5 by 5 lattice: hardly a distance is unique, and loops are exact."""
    assert all_four(real, generated, k) == by_loops(real, generated, k)


def test_far_from_the_origin_ties_stay_exact():
    """Products of numbers near 1e8 cannot tell these points apart; differences do."""
    rng = np.random.default_rng(1)
    real, generated = rng.integers(-3, 4, (2, 20, 3)).astype(float)
    generated[:, 0] += 3
    expected = by_loops(real, generated, 3)
    assert all_four(real + 2.0**26, generated + 2.0**26, 3) == expected
    assert 0 < expected[3] < 1


def test_copies_in_many_dimensions():
    """A copy is at distance 0, not at the 1e-7 that rounding would give."""
    rng = np.random.default_rng(2)
    points = rng.normal(size=(6, 500)).astype(np.float32) + 3
    real = np.repeat(points, 4, axis=0)  # k = 3: balls of radius 0
    assert metrics.precision_recall(real, real[::-1]) == (1, 1)
    assert metrics.density_coverage(real, points, 3) == (4 / 3, 1)
    nudged = points.astype(np.float64)
    nudged[:, 0] += 1e-7
    assert metrics.density_coverage(real, nudged, 3) == (0, 0)
    # Their own balls (k = 3) are wide and hold all real points.
    assert metrics.precision_recall(real, nudged) == (0, 1)


def test_all_points_equal():
    ones = np.ones((6, 2))
    assert metrics.precision_recall(ones, ones) == (1, 1)
    assert metrics.density_coverage(ones, ones) == (6 / 5, 1)  # six balls hold each
    assert all_four(ones, ones + 1e-9, 3) == (0, 0, 0, 0)


def test_identical_and_disjoint_sets():
    x = np.random.default_rng(3).normal(size=(50, 4))
    assert metrics.precision_recall(x, x) == (1, 1)
    assert metrics.density_coverage(x, x) == (1 + 1 / 5, 1)  # k neighbors and itself
    assert all_four(x, x + 100, 3) == (0, 0, 0, 0)


def test_a_missed_and_a_superfluous_mode():
    """A missed mode costs recall and coverage, a superfluous one precision, density."""
    rng = np.random.default_rng(4)
    left, right = rng.normal(size=(2, 100, 2)) * 0.1 + [[[-5, 0]], [[5, 0]]]
    both = np.concatenate([left, right])
    again = rng.permutation(left) + 1e-3
    missed = all_four(both, again, 3)
    assert missed[0] > 0.9 and missed[2] > 0.7
    assert missed[1] <= 0.5 and missed[3] <= 0.5
    superfluous = all_four(left, np.concatenate([again, right]), 3)
    assert superfluous[0] <= 0.5 and superfluous[2] < 0.7
    assert superfluous[1] > 0.9 and superfluous[3] > 0.9


def test_an_outlier_spoils_precision_but_hardly_density():
    """The paper's example: one real outlier's ball holds whatever is generated."""
    rng = np.random.default_rng(5)
    real = np.concatenate([rng.normal(size=(99, 2)), [[60.0, 0.0]]])
    generated = rng.normal(size=(100, 2)) + [30, 0]
    assert metrics.precision_recall(real, generated, 5).precision == 1
    assert metrics.density_coverage(real, generated, 5).density == pytest.approx(0.2)
    assert metrics.density_coverage(real, generated, 5).coverage == 0.01


def test_expectations_for_true_samples():
    """The k nearest points are all real by chance, for any distribution (Naeem, 3).

    A generated point is in a real one's ball with probability k / n.
    """
    rng, n, m, k, repeats = np.random.default_rng(6), 20, 30, 3, 600
    values = np.array(
        [
            metrics.density_coverage(
                rng.normal(size=(n, 2)), rng.normal(size=(m, 2)), k
            )
            for _ in range(repeats)
        ]
    )
    error = values.std(axis=0) / math.sqrt(repeats)
    missed = math.prod((n - 1 - j) / (n + m - 1 - j) for j in range(k))
    assert (np.abs(values.mean(axis=0) - [1, 1 - missed]) < 4 * error).all()
    assert (error < 0.02).all()


@pytest.mark.parametrize("rows, elements", [(1, 1 << 22), (7, 1 << 22), (1024, 50)])
def test_blocks_of_any_size_agree(monkeypatch, rows, elements):
    rng = np.random.default_rng(7)
    real, generated = rng.normal(size=(40, 8)), rng.normal(size=(33, 8))
    generated[:10] = real[5:15]  # distances equal to radii, from blocks elsewhere
    real[30:] = real[:10]
    whole = all_four(real, generated, 3)
    monkeypatch.setattr(manifolds, "_MAX_ROWS", rows)
    monkeypatch.setattr(manifolds, "_MAX_ELEMENTS", elements)
    assert all_four(real, generated, 3) == whole == by_loops(real, generated, 3)


def test_a_block_is_bounded(monkeypatch):
    """No array of distances grows with the product of the sizes."""
    sizes = []
    bounds = manifolds._bounds

    def recorded(a, b):
        sizes.append(len(a) * len(b))
        return bounds(a, b)

    monkeypatch.setattr(manifolds, "_bounds", recorded)
    monkeypatch.setattr(manifolds, "_MAX_ELEMENTS", 10_000)
    x, y = np.random.default_rng(8).normal(size=(2, 400, 2))
    all_four(x, y, 3)
    assert max(sizes) <= 10_000


@FEW
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(-20, 20))
def test_exchange_rotation_order_and_scale(seed, dim, power):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(14, dim)), rng.normal(size=(11, dim)) + 0.3
    found = metrics.precision_recall(x, y)
    assert metrics.precision_recall(y, x) == found[::-1]
    four = all_four(x, y, 3)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    assert all_four(x @ turn, y @ turn, 3) == four
    assert all_four(2.0**power * x, 2.0**power * y, 3) == four
    assert all_four(rng.permutation(x), rng.permutation(y), 3) == four


PLANE = np.random.default_rng(9).normal(size=(4, 2))
BOTH = [metrics.precision_recall, metrics.density_coverage]


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize(
    "arguments, message",
    [
        ((PLANE, PLANE[:, :1], 1), r"shape \[n, 2\].*got \(4, 1\)"),
        ((PLANE, PLANE, 4), "below the number of real samples.* got 4 for 4"),
        ((PLANE, PLANE, 0), "integer of at least 1, got 0"),
        ((PLANE, PLANE, 1.0), "integer of at least 1, got 1.0"),
        ((PLANE, PLANE, True), "integer of at least 1, got True"),
        ((PLANE, np.full((4, 2), np.nan), 1), "4 of 4 hold NaN"),
        (([], PLANE, 1), "at least 1 samples are needed, got 0"),
    ],
)
def test_bad_arguments_are_named(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_only_sets_with_balls_need_neighbors():
    with pytest.raises(ValueError, match="number of generated samples.* got 2 for 2"):
        metrics.precision_recall(PLANE, PLANE[:2], 2)
    assert metrics.density_coverage(PLANE, PLANE[:1], 3).coverage > 0
    assert metrics.precision_recall(PLANE, PLANE, 3) == (1, 1)  # k = n - 1 is allowed
