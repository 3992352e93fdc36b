"""Maximum mean discrepancy against loops over pairs, and closed forms of Gaussians."""

import math

import numpy as np
import pytest

from gmm_guidance import metrics


def loops(x, y, lengths):
    def kernel(a, b):
        square = sum((u - v) ** 2 for u, v in zip(a, b, strict=True))
        return sum(math.exp(-square / (2 * h * h)) for h in lengths) / len(lengths)

    def mean(a, b, same):
        values = [
            kernel(p, q)
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (same and i == j)
        ]
        return sum(values) / len(values)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_loops_over_all_pairs(dim):
    rng = np.random.default_rng(dim)
    x, y = rng.normal(size=(7, dim)), 1.0 + 2.0 * rng.normal(size=(11, dim))
    for given in (0.7, [0.3, 2.0]):
        wanted = loops(x, y, np.atleast_1d(given))
        np.testing.assert_allclose(metrics.mmd(x, y, given), wanted, atol=1e-6)
    gaps = [math.dist(y[i], y[j]) for i in range(len(y)) for j in range(i + 1, len(y))]
    lengths = [f * np.median(gaps) for f in (0.25, 0.5, 1, 2, 4)]
    np.testing.assert_allclose(metrics.mmd(x, y), loops(x, y, lengths), atol=1e-6)


def test_blocks_do_not_show():
    """More points than a block has, each taken several times: known from the few."""
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(3, 2)), rng.normal(size=(5, 2)) + 1.0
    x, y = np.repeat(few, 700, axis=0), np.repeat(many, 410, axis=0)

    def mean(a, b):
        squares = ((a[:, None] - b[None]) ** 2).sum(-1)
        return np.exp(-squares / 2).mean()

    def without_self(a, n):
        return (mean(a, a) * n * n - n) / (n * (n - 1))

    wanted = without_self(few, 2100) + without_self(many, 2050) - 2 * mean(few, many)
    np.testing.assert_allclose(metrics.mmd(x, y, 1.0), wanted, atol=2e-6)


def test_gaussians_in_closed_form():
    """``E k`` of Gaussian differences: h / sqrt(h^2 + v) exp(-m^2 / (2 (h^2 + v)))."""
    rng = np.random.default_rng(1)
    n, h, shift, std = 20_000, 0.8, 1.5, 0.5
    x, y = rng.normal(size=n), shift + std * rng.normal(size=n)

    def mean(v, m):
        return h / math.sqrt(h * h + v) * math.exp(-m * m / (2 * (h * h + v)))

    wanted = mean(2.0, 0) + mean(2 * std**2, 0) - 2 * mean(1 + std**2, shift)
    np.testing.assert_allclose(metrics.mmd(x, y, h), wanted, rtol=0.02)


def test_no_bias_for_equal_laws_and_both_signs():
    rng = np.random.default_rng(0)
    values = np.array(
        [metrics.mmd(*rng.normal(size=(2, 50, 2)), bandwidth=1.0) for _ in range(200)]
    )
    assert (values < 0).any() and (values > 0).any()
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))


def test_place_does_not_matter():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 100, 2))
    near, far = metrics.mmd(x, y, 0.5), metrics.mmd(x + 1e5, y + 1e5, 0.5)
    np.testing.assert_allclose(far, near, atol=1e-6)


def test_errors():
    x = np.random.default_rng(0).normal(size=(5, 2))
    for wrong in (0.0, -1.0, np.inf, [1.0, np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="bandwidth must be"):
            metrics.mmd(x, x, wrong)
    with pytest.raises(ValueError, match="coincide"):
        metrics.mmd(x, np.zeros((5, 2)))
    with pytest.raises(ValueError, match="at least 2"):
        metrics.mmd(x[:1], x)
    with pytest.raises(ValueError, match="shape"):
        metrics.mmd(x, x[:, :1])
