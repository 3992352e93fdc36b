"""The named mixtures of the guidance literature, each a function of a few numbers.

Every function returns a ``GaussianMixture``; lengths are in the units of the data and
``std`` is a standard deviation (the mixture's own argument is a variance). One class of
a preset is ``mixture.condition(label)``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gmm_guidance._runtime.checks import check_key
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


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
    std, mean = _check_positive("std", std), _check_positive("mean", mean)
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
    std, mean = _check_positive("std", std), _check_positive("mean", mean)
    _check_one_of("labels", labels, ("corner", "diagonal"))
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
    num_modes = _check_count("num_modes", num_modes)
    radius, std = _check_positive("radius", radius), _check_positive("std", std)
    labels = _cyclic_labels(num_labels, num_modes, "num_modes")
    angles = 2 * math.pi * np.arange(num_modes) / num_modes
    means = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return GaussianMixture(means, std**2, labels=labels)


def grid(
    side: int = 5,
    spacing: float = 2.0,
    std: float = 0.1,
    labels: str = "checkerboard",
) -> GaussianMixture:
    """Equal isotropic Gaussians on a square grid centered at the origin.

    Args:
        side: modes along each axis, at least 1 (2 for two classes).
        spacing: distance of neighboring modes, > 0.
        std: standard deviation of each mode, > 0.
        labels: ``"checkerboard"``, 0 and 1 alternating; ``"mode"``, one label each, row
            by row; or ``"single"``, label 0 for all.

    Returns:
        A mixture of ``side^2`` components in 2 dimensions.

    Raises:
        ValueError: if a count or length is out of range, or ``labels`` is unknown.
    """
    side = _check_count("side", side)
    spacing, std = _check_positive("spacing", spacing), _check_positive("std", std)
    _check_one_of("labels", labels, ("checkerboard", "mode", "single"))
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
    labels: str = "color",
) -> GaussianMixture:
    """A checkerboard of uniform cells, approximated by small Gaussians.

    A cell is filled with ``per_cell_side^2`` equal isotropic Gaussians at distance
    ``h = width / side / per_cell_side``, of standard deviation ``h / 2``. The density
    inside a cell then ripples by 1.4 % along each axis, and its edges are blurred with
    standard deviation ``h / 2``, which puts ``1 - (1 - 0.32 / per_cell_side)^2`` of a
    cell's mass, 15 % by default, outside it. More Gaussians sharpen the edges.

    Args:
        side: cells along each axis, at least 2.
        width: side length of the whole board, > 0, centered at the origin.
        per_cell_side: Gaussians along each axis of a cell, at least 1.
        labels: ``"color"``, all cells filled, label 0 for black and 1 for white;
            ``"cell"``, black cells only, one label each; or ``"single"``, black cells
            only, label 0 for all (the density-estimation classic).

    Returns:
        A mixture in 2 dimensions; the cell at the lower left corner is black.

    Raises:
        ValueError: if a count or length is out of range, or ``labels`` is unknown.
    """
    side = _check_count("side", side, least=2)
    width = _check_positive("width", width)
    per_cell_side = _check_count("per_cell_side", per_cell_side)
    _check_one_of("labels", labels, ("color", "cell", "single"))
    row, column = _cells(side)
    color = (row + column) % 2
    if labels != "color":
        row, column = row[color == 0], column[color == 0]
    label = {
        "color": color,
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
    depth = _check_count("depth", depth)
    per_branch = _check_count("components_per_branch", components_per_branch)
    classes = _check_count("classes", classes)
    seed = _check_count("seed", seed, least=0)
    scale = _check_positive("scale", scale)
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


def random(
    key: jax.Array | int,
    num_components: int = 8,
    dim: int = 2,
    num_labels: int = 2,
    spread: float = 2.0,
    std: float = 1.0,
    condition_number: float = 10.0,
) -> GaussianMixture:
    """A random mixture with rotated full covariances, for tests of generality.

    Means are normal with standard deviation ``spread``; each covariance has a random
    orientation and variances log-uniform in ``[std^2 / condition_number, std^2]``;
    weights are proportional to uniforms in [0.5, 1.5]; labels cycle over components.

    Args:
        key: a JAX random key, or an integer seed >= 0.
        num_components: number of Gaussians, at least 1.
        dim: dimension, at least 1.
        num_labels: number of classes, in ``1 .. num_components``.
        spread: standard deviation of the means, > 0.
        std: largest standard deviation of a component, > 0.
        condition_number: bound on a covariance's ratio of eigenvalues, >= 1.

    Returns:
        A mixture of ``num_components`` components in ``dim`` dimensions.

    Raises:
        ValueError: if a count or length is out of range.
        TypeError: if ``key`` is neither a key nor an integer.
    """
    num_components = _check_count("num_components", num_components)
    dim = _check_count("dim", dim)
    spread, std = _check_positive("spread", spread), _check_positive("std", std)
    if not (math.isfinite(condition_number) and condition_number >= 1):
        raise ValueError(
            f"condition_number must be finite and at least 1 (1 is isotropic), got "
            f"{condition_number}."
        )
    labels = _cyclic_labels(num_labels, num_components, "num_components")
    if isinstance(key, (int, np.integer)):
        key = jax.random.key(_check_count("key", key, least=0))
    check_key(key)
    means_key, vectors_key, variances_key, weights_key = jax.random.split(key, 4)
    shape = (num_components, dim)
    means = spread * np.asarray(jax.random.normal(means_key, shape), np.float64)
    normals = np.asarray(jax.random.normal(vectors_key, (*shape, dim)), np.float64)
    eigenvectors, triangle = np.linalg.qr(normals)
    # The sign of QR is arbitrary; this choice makes the rotation uniform.
    eigenvectors *= np.sign(np.diagonal(triangle, axis1=1, axis2=2))[:, None, :]
    uniform = np.asarray(jax.random.uniform(variances_key, shape), np.float64)
    variances = std**2 * condition_number**-uniform
    covariances = np.einsum("kij,kj,klj->kil", eigenvectors, variances, eigenvectors)
    weights = 0.5 + np.asarray(
        jax.random.uniform(weights_key, (num_components,)), np.float64
    )
    return GaussianMixture(means, covariances, weights / weights.sum(), labels)


PRESETS: dict[str, Callable[..., GaussianMixture]] = {
    "two_modes": two_modes,
    "four_corners": four_corners,
    "tree": tree,
    "ring": ring,
    "grid": grid,
    "checkerboard": checkerboard,
    "random": random,
}


def names() -> tuple[str, ...]:
    """Names of all presets, as ``get`` takes them."""
    return tuple(PRESETS)


def get(name: str, **kwargs: Any) -> GaussianMixture:
    """The preset called ``name``, with its function's keyword arguments.

    Raises:
        ValueError: if there is no such preset; the message suggests the nearest name.
        TypeError: if the preset does not take one of the arguments.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"name must be one of {', '.join(PRESETS)}, got {name!r}.{hint}"
        )
    return PRESETS[name](**kwargs)


def _check_positive(name: str, value: float) -> float:
    """A positive and finite number."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}.")
    return float(value)


def _check_count(name: str, value: int, least: int = 1) -> int:
    """An integer of at least ``least``."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value}.")
    return int(value)


def _check_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise unless ``value`` is among ``allowed``."""
    if value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}."
        )


def _cyclic_labels(num_labels: int | None, count: int, what: str) -> np.ndarray:
    """Labels of ``count`` components in turn, or one label each for ``None``."""
    if num_labels is None:
        return np.arange(count)
    num_labels = _check_count("num_labels", num_labels)
    if num_labels > count:
        raise ValueError(
            f"num_labels must be at most {what} = {count}, got {num_labels}: every "
            f"label needs a component. Lower num_labels or raise {what}."
        )
    return np.arange(count) % num_labels
