"""The branching mixture of autoguidance."""

from __future__ import annotations

import math

import numpy as np

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.mixture.presets._checks import check_count, check_positive


def tree(
    depth: int = 7,
    components_per_branch: int = 8,
    classes: int = 2,
    seed: int = 2,
    scale: float = 0.5,
) -> GaussianMixture:
    """Branching mixture: each class a self-similar tree that grows from the origin.

    Class ``c`` starts at angle ``45 + 360 c / classes`` degrees; a branch at level
    ``l = 0 .. depth - 1`` has length ``0.292 * 0.8^l`` and ends in two branches turned
    by ``+-0.7^l`` radians. Lengths and turns are jittered by a factor uniform in
    [0.8, 1.2]. Along a branch of length ``L`` lie equally spaced Gaussians of weight
    proportional to ``L * 0.5^l``, with standard deviations ``0.06 L`` along it and
    ``0.012 * 0.8^l`` across it (before scaling).

    The published description leaves two things open. It says that the whole is "scaled
    to about sd 0.5": here it is scaled so that the root mean square coordinate, about
    the common origin, is exactly ``scale``; that gives the published mean (0.37, 0.36)
    and standard deviation (0.34, 0.34) of class 0 to within the jitter. And the random
    draws, hence each twig, necessarily differ. Each class has equal probability.

    Args:
        depth: levels of branching, at least 1; a class has ``2^depth - 1`` branches.
        components_per_branch: Gaussians along each branch, at least 1.
        classes: number of trees (and labels), at least 1.
        seed: seed of the jitter, an integer >= 0. A class's jitter depends on the seed
            and its own number only.
        scale: root mean square coordinate of the whole mixture, > 0.

    Returns:
        A mixture of ``classes * (2^depth - 1) * components_per_branch`` components in
        2 dimensions (2 x 1016 by default), one label for each tree.

    Raises:
        ValueError: if a count is not an integer of at least 1, or ``scale`` not > 0.

    References:
        Karras et al., Guiding a Diffusion Model with a Bad Version of Itself,
        arXiv 2406.02507, appendix on the 2-D toy (derived from the description).
        ``classes=24, depth=1`` and ``classes=4, depth=3`` are the variants of
        arXiv 2603.20584.
    """
    depth = check_count("depth", depth)
    per_branch = check_count("components_per_branch", components_per_branch)
    classes = check_count("classes", classes)
    seed = check_count("seed", seed, least=0)
    scale = check_positive("scale", scale)
    trees = [
        _grow_tree(
            np.random.default_rng((number, seed)),
            math.pi / 4 + 2 * math.pi * number / classes,
            depth,
            per_branch,
        )
        for number in range(classes)
    ]
    means = np.concatenate([part[0] for part in trees])
    covariances = np.concatenate([part[1] for part in trees])
    weights = np.concatenate([part[2] / classes for part in trees])
    second_moment = means**2 + np.diagonal(covariances, axis1=1, axis2=2)
    factor = scale / math.sqrt((weights @ second_moment).mean())
    labels = np.repeat(np.arange(classes), len(trees[0][0]))
    return GaussianMixture(means * factor, covariances * factor**2, weights, labels)


def _grow_tree(
    rng: np.random.Generator, angle: float, depth: int, per_branch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One class's means ``[K, 2]``, covariances ``[K, 2, 2]`` and weights ``[K]``."""
    starts, angles = np.zeros((1, 2)), np.array([angle])
    along = (np.arange(per_branch) + 0.5) / per_branch
    means, covariances, weights = [], [], []
    for level in range(depth):
        jitter = rng.uniform(0.8, 1.2, (len(angles), 3))  # length, left, right turn
        lengths = 0.292 * 0.8**level * jitter[:, 0]
        direction = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        steps = lengths[:, None, None] * along[None, :, None] * direction[:, None]
        means.append((starts[:, None] + steps).reshape(-1, 2))
        outer = direction[:, :, None] * direction[:, None, :]
        long, thin = (0.06 * lengths) ** 2, (0.012 * 0.8**level) ** 2
        spread = (long - thin)[:, None, None] * outer + thin * np.eye(2)[None]
        covariances.append(np.repeat(spread, per_branch, axis=0))
        weights.append(np.repeat(lengths * 0.5**level, per_branch))
        starts = np.repeat(starts + lengths[:, None] * direction, 2, axis=0)
        turns = 0.7**level * jitter[:, 1:] * np.array([[-1.0, 1.0]])
        angles = (angles[:, None] + turns).reshape(-1)
    weight = np.concatenate(weights)
    return np.concatenate(means), np.concatenate(covariances), weight / weight.sum()
