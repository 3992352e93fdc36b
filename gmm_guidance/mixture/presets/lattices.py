"""Presets on a square lattice: a grid of modes, and a checkerboard of filled cells."""

from __future__ import annotations

import numpy as np

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.mixture.presets._checks import (
    check_count,
    check_one_of,
    check_positive,
)


def grid(
    side: int = 5,
    spacing: float = 2.0,
    std: float = 0.1,
    labels: str = "checkerboard",
) -> GaussianMixture:
    """Equal isotropic Gaussians on a square grid centred at the origin.

    Args:
        side: modes along each axis, at least 1 (2 for two classes).
        spacing: distance of neighbouring modes, > 0.
        std: standard deviation of each mode, > 0.
        labels: ``"checkerboard"``, 0 and 1 alternating; ``"mode"``, one label each, row
            by row; or ``"single"``, label 0 for all.

    Returns:
        A mixture of ``side^2`` components in 2 dimensions.

    Raises:
        ValueError: if a count or length is out of range, or ``labels`` is unknown.
    """
    side = check_count("side", side)
    spacing, std = check_positive("spacing", spacing), check_positive("std", std)
    check_one_of("labels", labels, ("checkerboard", "mode", "single"))
    row, column = _cells(side)
    means = spacing * (np.stack([row, column], axis=1) - (side - 1) / 2)
    chosen = {
        "checkerboard": (row + column) % 2,
        "mode": np.arange(side**2),
        "single": np.zeros(side**2, int),
    }[labels]
    return GaussianMixture(means, std**2, labels=chosen)


def checkerboard(
    side: int = 4,
    width: float = 8.0,
    per_cell_side: int = 4,
    labels: str = "colour",
) -> GaussianMixture:
    """A checkerboard of uniform cells, approximated by small Gaussians.

    A cell is filled with ``per_cell_side^2`` equal isotropic Gaussians at distance
    ``h = width / side / per_cell_side``, of standard deviation ``h / 2``. The density
    inside a cell then ripples by 1.4 % along each axis, and its edges are blurred with
    standard deviation ``h / 2``, which puts ``1 - (1 - 0.32 / per_cell_side)^2`` of a
    cell's mass, 15 % by default, outside it. More Gaussians sharpen the edges.

    Args:
        side: cells along each axis, at least 2.
        width: side length of the whole board, > 0, centred at the origin.
        per_cell_side: Gaussians along each axis of a cell, at least 1.
        labels: ``"colour"``, all cells filled, label 0 for black and 1 for white;
            ``"cell"``, black cells only, one label each; or ``"single"``, black cells
            only, label 0 for all (the density-estimation classic).

    Returns:
        A mixture in 2 dimensions; the cell at the lower left corner is black.

    Raises:
        ValueError: if a count or length is out of range, or ``labels`` is unknown.
    """
    side = check_count("side", side, least=2)
    width = check_positive("width", width)
    per_cell_side = check_count("per_cell_side", per_cell_side)
    check_one_of("labels", labels, ("colour", "cell", "single"))
    row, column = _cells(side)
    colour = (row + column) % 2
    if labels != "colour":
        row, column = row[colour == 0], column[colour == 0]
    label = {
        "colour": colour,
        "cell": np.arange(len(row)),
        "single": np.zeros(len(row), int),
    }[labels]
    cell = width / side
    corner = cell * np.stack([row, column], axis=1) - width / 2
    inner = (np.stack(_cells(per_cell_side), axis=1) + 0.5) * (cell / per_cell_side)
    means = (corner[:, None] + inner[None]).reshape(-1, 2)
    std = 0.5 * cell / per_cell_side
    return GaussianMixture(means, std**2, labels=np.repeat(label, per_cell_side**2))


def _cells(side: int) -> tuple[np.ndarray, np.ndarray]:
    """First and second index of the cells of a square, each ``[side^2]``."""
    return np.divmod(np.arange(side**2), side)
