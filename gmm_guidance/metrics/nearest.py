"""Precision and recall as distances to the nearest neighbour in the other set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.metrics._checks import check_samples


class NearestNeighbours(NamedTuple):
    """Mean distances to the nearest neighbour, in units of the data; lower is better.

    Attributes:
        precision: from a sample to the nearest true one: large if samples lie where
            the truth has no mass.
        recall: from a true sample to the nearest one: large if samples miss a part.
    """

    precision: float
    recall: float


def nearest_neighbours(samples: ArrayLike, others: ArrayLike) -> NearestNeighbours:
    """Mean distance from samples to the nearest true sample, and the other way round.

    Both are positive for true samples and fall with the size of the *other* set, as ``m
    ** (-1 / d)``: compare sets of equal size only, and with ``sample_floor``. The usual
    precision and recall count the same neighbours within a radius; the mean distance
    needs none.

    Args:
        samples: array of shape ``[n, d]`` or ``[n]``.
        others: true samples, ``[m, d]`` or ``[m]``.

    Returns:
        ``NearestNeighbours``.

    Raises:
        ValueError: if the dimensions differ.
    """
    from scipy.spatial import cKDTree  # SciPy comes with JAX

    x = check_samples(samples)
    y = check_samples(others, x.shape[1])
    return NearestNeighbours(
        precision=float(np.mean(cKDTree(y).query(x)[0])),
        recall=float(np.mean(cKDTree(x).query(y)[0])),
    )
