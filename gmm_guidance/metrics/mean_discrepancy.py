"""Maximum mean discrepancy between samples: differences at chosen length scales."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.metrics._checks import check_samples
from gmm_guidance.metrics._pairs import pair_sum, squared_distances

_FACTORS = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
_POINTS_OF_MEDIAN = 1000


def mmd(
    samples: ArrayLike, others: ArrayLike, bandwidth: ArrayLike | None = None
) -> float:
    """Squared maximum mean discrepancy with Gaussian kernels, unbiased.

    ``E k(X, X') + E k(Y, Y') - 2 E k(X, Y)`` with ``k(x, y)`` the mean over bandwidths
    h of ``exp(-|x - y|^2 / (2 h^2))``. Pairs of a sample with itself are left out, so
    the estimate has mean zero when both laws agree and **may be negative**: do not take
    its root. Its spread is then about ``1 / n``, which ``sample_floor`` measures. It
    sees differences at the scale of its bandwidths only, and its size depends on them.
    The time is quadratic in the number of samples, the memory is not.

    Args:
        samples: array of shape ``[n, d]`` or ``[n]``, ``n`` at least 2.
        others: array of shape ``[m, d]`` or ``[m]``, ``m`` at least 2: the truth, say.
        bandwidth: one or several lengths > 0, in units of the data. By default a
            quarter, a half, once, twice and four times the median distance between
            points of ``others`` (1,000 of them, evenly spread), which does not depend
            on the samples that are judged.

    Returns:
        The estimate, at most 2 (without a unit). Kernels are float32, summed in
        float64: the rounding error is about 1e-7.

    Raises:
        ValueError: if a set has fewer than 2 points, the dimensions differ, or a
            bandwidth is not positive and finite.

    References:
        Gretton et al., A kernel two-sample test (2012), Eq. 3.
    """
    x = check_samples(samples, least=2)
    y = check_samples(others, x.shape[1], least=2)
    n, m = len(x), len(y)
    if bandwidth is None:
        lengths = _FACTORS * _median_distance(y)
    else:
        lengths = np.atleast_1d(np.asarray(bandwidth, np.float64))
    if lengths.ndim != 1 or not (np.isfinite(lengths) & (lengths > 0)).all():
        if bandwidth is None:
            raise ValueError(
                "the median distance between the points of others is 0: most of them "
                "coincide. Give a bandwidth."
            )
        raise ValueError(
            f"bandwidth must be one or several finite lengths > 0, got {bandwidth}."
        )
    # The differences matter, not the place: centring keeps float32 exact.
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    rates = jnp.asarray(0.5 / lengths**2, jnp.float32)
    row_sums = functools.partial(_kernel_row_sums, rates)
    # A point with itself has kernel 1 and was counted as a half.
    within_x = pair_sum(row_sums, x, None) - 0.5 * n
    within_y = pair_sum(row_sums, y, None) - 0.5 * m
    across = pair_sum(row_sums, x, y)
    return float(
        2 * within_x / (n * (n - 1))
        + 2 * within_y / (m * (m - 1))
        - 2 * across / (n * m)
    )


def _median_distance(x: np.ndarray) -> float:
    """Median distance between different points, of at most 1,000 of them."""
    from scipy.spatial.distance import pdist  # SciPy comes with JAX

    return float(np.median(pdist(x[:: -(-len(x) // _POINTS_OF_MEDIAN)])))


@jax.jit
def _kernel_row_sums(
    rates: jax.Array, rows: jax.Array, columns: jax.Array, weights: ArrayLike
) -> jax.Array:
    squares = squared_distances(rows, columns)
    kernel = jnp.zeros_like(squares)
    for i in range(len(rates)):
        kernel += jnp.exp(-rates[i] * squares)
    return jnp.sum(kernel * jnp.asarray(weights)[None, :], axis=1) / len(rates)
