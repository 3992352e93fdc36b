"""Presets of a few separate modes: on a line, in the corners, on a ring."""

from __future__ import annotations

import math

import numpy as np

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.mixture.presets._checks import (
    check_count,
    check_one_of,
    check_positive,
    cyclic_labels,
)


def two_modes(std: float = 1.0, mean: float = 4.0) -> GaussianMixture:
    """Two equal Gaussians on a line: label 0 at ``-mean``, label 1 at ``+mean``.

    Args:
        std: standard deviation of each mode, > 0. S2-Guidance does not publish its own.
        mean: distance of each mode from the origin, > 0.

    Returns:
        A mixture of 2 components in 1 dimension with 2 labels.

    Raises:
        ValueError: if ``std`` or ``mean`` is not positive and finite.

    References:
        Chen et al., S2-Guidance, arXiv 2508.12880, section 3.1 (modes at -4 and +4).
        ``mean=1, std=1`` is the example of Chidambaram et al., arXiv 2409.13074.
    """
    std, mean = check_positive("std", std), check_positive("mean", mean)
    return GaussianMixture(np.array([[-mean], [mean]]), std**2, labels=np.arange(2))


def four_corners(
    std: float = 1.0, labels: str = "corner", mean: float = 4.0
) -> GaussianMixture:
    """Four equal isotropic Gaussians at ``(+-mean, +-mean)``.

    Args:
        std: standard deviation of each mode, > 0.
        labels: ``"corner"``, one label each, in the order (-,-), (-,+), (+,-), (+,+);
            or ``"diagonal"``, two classes of two modes: 0 for the corners whose
            coordinates have equal signs, 1 for the others. The paper does not say which
            of the two it uses.
        mean: distance of the modes from both axes, > 0.

    Returns:
        A mixture of 4 components in 2 dimensions with 4 or 2 labels.

    Raises:
        ValueError: if a length is not positive and finite, or ``labels`` is unknown.

    References:
        Chen et al., S2-Guidance, arXiv 2508.12880, section 3.1.
    """
    std, mean = check_positive("std", std), check_positive("mean", mean)
    check_one_of("labels", labels, ("corner", "diagonal"))
    means = mean * np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    chosen = np.array([0, 1, 2, 3] if labels == "corner" else [0, 1, 1, 0])
    return GaussianMixture(means, std**2, labels=chosen)


def ring(
    num_modes: int = 8,
    radius: float = 4.0,
    std: float = 0.3,
    num_labels: int | None = None,
) -> GaussianMixture:
    """Equal isotropic Gaussians evenly spread on a circle, from angle 0 on.

    Args:
        num_modes: number of modes, at least 1.
        radius: radius of the circle, > 0.
        std: standard deviation of each mode, > 0.
        num_labels: number of classes, in ``1 .. num_modes``; mode ``i`` has label
            ``i % num_labels``. One label for each mode when ``None``.

    Returns:
        A mixture of ``num_modes`` components in 2 dimensions.

    Raises:
        ValueError: if a count or length is out of range.
    """
    num_modes = check_count("num_modes", num_modes)
    radius, std = check_positive("radius", radius), check_positive("std", std)
    labels = cyclic_labels(num_labels, num_modes, "num_modes")
    angles = 2 * math.pi * np.arange(num_modes) / num_modes
    means = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return GaussianMixture(means, std**2, labels=labels)
