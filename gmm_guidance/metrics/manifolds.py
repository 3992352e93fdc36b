"""Precision, recall, density and coverage by balls to the k-th nearest neighbor."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.metrics._checks import check_samples

_MAX_ROWS = 1024  # of a block of distances
_MAX_ELEMENTS = 1 << 22  # of such a block: 32 MB, however large the sets


class PrecisionRecall(NamedTuple):
    """Shares of one set in the balls of the other, in [0, 1]; higher is better.

    Attributes:
        precision: fraction of generated points within the real set's balls: low if
            they lie where there are no real ones.
        recall: fraction of real points within the generated set's balls: low if a part
            is missed.
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Generated points in the real set's balls; higher is better.

    Attributes:
        density: mean number of balls around a generated point, over ``k``. 0 or more;
            about 1 for true samples, **above 1** where points crowd in dense parts.
        coverage: fraction of real points with a generated one in their ball, in [0, 1];
            for as many true samples about ``1 - 2 ** -k``.
    """

    density: float
    coverage: float


def precision_recall(
    real: ArrayLike, generated: ArrayLike, num_neighbors: int = 3
) -> PrecisionRecall:
    """Improved precision and recall: fractions of each set on the other's manifold.

    The manifold of a set is the union of the balls around its points, each as large as
    the distance to the point's k-th nearest neighbor in its own set, itself not
    counted.

    The edge belongs to the ball, as in the paper (``<=``), and distances are exact
    there: a point that appears more than ``k`` times has a ball of radius 0, which
    holds its copies, so that a set compared with itself always reads 1 and 1. One far
    outlier has a huge ball and can raise either number; ``density_coverage`` is more
    robust.

    **Both depend on the sizes of the sets**, since the balls shrink as a set grows:
    compare only numbers from sets of equal size, with the same ``k`` and features, and
    with what equally many true samples give. Time grows with n², memory with n.

    Args:
        real: features of real samples, ``[n, d]`` or ``[n]`` on a line.
        generated: features of generated samples, ``[m, d]`` or ``[m]``. Exchanging the
            two exchanges the results.
        num_neighbors: k, an integer of at least 1 and below ``n`` and ``m``.

    Returns:
        ``PrecisionRecall``.

    Raises:
        ValueError: if the dimensions differ, a set has at most ``k`` points, or a value
            is not finite.

    References:
        Kynkäänniemi et al., Improved precision and recall metric for assessing
        generative models, arXiv:1904.06991, section 2; k = 3 is theirs.
    """
    x = check_samples(real)
    y = check_samples(generated, x.shape[1])
    _check_neighbors(num_neighbors, len(x), "real")
    _check_neighbors(num_neighbors, len(y), "generated")
    around_generated, _ = _memberships(x, _squared_radii(x, num_neighbors), y)
    around_real, _ = _memberships(y, _squared_radii(y, num_neighbors), x)
    return PrecisionRecall(
        precision=float(np.mean(around_generated > 0)),
        recall=float(np.mean(around_real > 0)),
    )


def density_coverage(
    real: ArrayLike, generated: ArrayLike, num_neighbors: int = 5
) -> DensityCoverage:
    """Density and coverage: how many, and which, real balls hold generated points.

    The balls are around the real points alone, as in ``precision_recall``, so that
    outliers among the generated ones cannot enlarge them. Density counts balls where
    precision asks for one.

    The edge belongs to the ball (``<=``): a real point that appears more than ``k``
    times has a ball of radius 0, and is covered by a copy. The authors' code leaves the
    edge out (``<``), which differs for equal distances only: a set compared with itself
    reads a density of ``1 + 1 / k`` here and of 1 there, unless points repeat.

    **Both depend on the sizes of the sets**: compare only numbers from sets of equal
    size, with the same ``k`` and features, and with what equally many true samples
    give. Time grows with n², memory with n.

    Args:
        real: features of real samples, ``[n, d]`` or ``[n]`` on a line.
        generated: features of generated samples, ``[m, d]`` or ``[m]``, at least one.
            The order matters.
        num_neighbors: k, an integer of at least 1 and below ``n``.

    Returns:
        ``DensityCoverage``.

    Raises:
        ValueError: if the dimensions differ, there are at most ``k`` real points, or a
            value is not finite.

    References:
        Naeem et al., Reliable fidelity and diversity metrics for generative models,
        arXiv:2002.09797, section 3; k = 5 is theirs.
    """
    x = check_samples(real)
    y = check_samples(generated, x.shape[1])
    _check_neighbors(num_neighbors, len(x), "real")
    balls, points = _memberships(x, _squared_radii(x, num_neighbors), y)
    return DensityCoverage(
        density=float(balls.sum() / (num_neighbors * len(y))),
        coverage=float(np.mean(points > 0)),
    )


def _check_neighbors(number: int, count: int, name: str) -> None:
    whole = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    if not whole or number < 1:
        raise ValueError(
            f"num_neighbors must be an integer of at least 1, got {number}."
        )
    if number >= count:
        raise ValueError(
            f"num_neighbors must be below the number of {name} samples, since a point "
            f"is no neighbor of itself; got {number} for {count}. Use more samples."
        )


def _memberships(
    centers: np.ndarray, squared_radii: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """In how many balls each point lies, and how many points each ball holds."""
    balls = np.zeros(len(points), np.int64)
    held = np.zeros(len(centers), np.int64)
    for block in _blocks(len(points), len(centers)):
        low, high = _bounds(points[block], centers)
        inside = high <= squared_radii
        unsure = (low <= squared_radii) & ~inside
        i, j, squares = _exact(points[block], centers, unsure)
        inside[i, j] = squares <= squared_radii[j]
        balls[block] = inside.sum(axis=1)
        held += inside.sum(axis=0)
    return balls, held


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each point to its k-th nearest neighbor in the set."""
    radii = np.empty(len(x))
    for block in _blocks(len(x), len(x)):
        low, high = _bounds(x[block], x)
        # Entry 0 of a sorted row is the point itself (or a copy: both at distance 0),
        # entry k the radius. That is at most the k-th upper bound: pairs whose lower
        # bound is above do not matter.
        limit = np.partition(high, k, axis=1)[:, k, None]
        i, j, squares = _exact(x[block], x, low <= limit)
        high.fill(np.inf)
        high[i, j] = squares
        radii[block] = np.partition(high, k, axis=1)[:, k]
    return radii


def _blocks(num_rows: int, num_columns: int) -> list[slice]:
    size = min(_MAX_ROWS, max(1, _MAX_ELEMENTS // num_columns))
    return [slice(i, i + size) for i in range(0, num_rows, size)]


def _bounds(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of the squared distances ``[n, m]``, from one product.

    The product is about ten times as fast as differences, but rounds: copies would lie
    at distances of about 1e-8 instead of 0, on either side of an edge. The bounds say
    for which pairs the differences are needed: few, unless the features are much
    farther from the origin than from each other, which costs time and no accuracy.
    """
    norms = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)
    squares = norms - 2 * (a @ b.T)
    # A sum of d products errs by at most d eps / 2 of their sizes (Higham, Accuracy and
    # Stability of Numerical Algorithms, 3.1). This occurs in the norms, in the product,
    # and, twice as large, in the sum of squared differences; the factor is twice that.
    norms *= 4 * (a.shape[1] + 16) * np.finfo(np.float64).eps
    return squares - norms, squares + norms


def _exact(
    a: np.ndarray, b: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and squared distances of the wanted pairs, from differences.

    These are the same in either order of the two points and in blocks of any size.
    """
    rows, columns = np.nonzero(wanted)
    squares = np.empty(len(rows))
    starts = np.searchsorted(rows, np.arange(len(a) + 1))
    for row, (start, stop) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        if start < stop:  # row by row, so that differences take no more than b does
            differences = a[row] - b[columns[start:stop]]
            squares[start:stop] = np.square(differences).sum(axis=1)
    return rows, columns, squares
