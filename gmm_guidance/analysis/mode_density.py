"""Changes of the modes of a class from the change of its density."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance.analysis.mode_fit import Estimate, Mode, Points
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture

_FLOW_STEPS = 32
_NODES = 4096  # for moments of the clean distribution, per component


def density_changes(
    data: GaussianMixture,
    shapes: list[Mode],
    points: list[Points],
    sigmas: np.ndarray,
) -> tuple[list[Estimate], list[Estimate]]:
    """Changes of width and shift of each mode from that of the density.

    Eq. 3 of ``weak_pass_effect``.

    ``s`` is fitted by the moments of each mode at the clean sample, up to second order.
    Their products with each other are known exactly, so that only what they leave
    unexplained has sampling noise: nothing, where the correction is linear in a mode.
    """
    x = np.concatenate([p.x for p in points], axis=1)
    correction = np.concatenate([p.correction for p in points], axis=1)
    divergence = np.concatenate([p.divergence for p in points], axis=1)
    # The same number of samples from each mode, whatever its probability.
    probability = np.asarray(data.label_weights, np.float64)
    shares = np.repeat(probability * len(points), points[0].x.shape[1])
    clean, score = _flow_to_clean(data, jnp.asarray(sigmas), jnp.asarray(x))
    score = np.asarray(score, np.float64)
    change = -(divergence + np.sum(correction * score, axis=-1))
    gram = _exact_gram(data, shapes)
    dim, size = data.dim, len(gram)
    rows = []  # width and shift of each mode, as functionals of the change
    for mode, shape in enumerate(shapes):
        first = mode * (1 + 2 * dim)
        width, shift = np.zeros(size), np.zeros(size)
        width[first + 1 + dim : first + 1 + 2 * dim] = (
            0.5 * shape.variances / shape.variances.sum()
        )
        shift[first + 1 : first + 1 + dim] = (
            shape.along * np.sqrt(shape.variances) / shape.spread
        )
        rows += [width / probability[mode], shift / probability[mode]]
    target = np.stack(rows) @ gram
    values, parts = [], []
    for level in range(len(sigmas)):
        end = np.asarray(clean[level])
        moments = _moments(shapes, _inside(data, end), end.astype(np.float64))
        weighted = shares[:, None] * moments
        inverse = np.linalg.pinv(moments.T @ weighted / len(moments), hermitian=True)
        fitted = inverse @ (weighted.T @ change[level]) / len(moments)
        leverage = np.sum((weighted @ inverse) * moments, axis=1) / len(moments)
        residual = (change[level] - moments @ fitted) / (1.0 - leverage)
        values.append(target @ fitted)
        parts.append((target @ inverse @ weighted.T) * residual)
    found = [
        Estimate(np.stack(value), np.stack(part))
        for value, part in zip(np.stack(values, 1), np.stack(parts, 1), strict=True)
    ]
    return found[::2], found[1::2]


@jax.jit
def _flow_to_clean(data, sigmas, x):
    """Ends of the probability flow from each level, and the score at its start."""
    lowest = 0.02 * jnp.sqrt(data.variances.min())

    def from_level(inputs):
        sigma, start = inputs
        last = jnp.minimum(lowest, sigma)
        ramp = jnp.linspace(0.0, 1.0, _FLOW_STEPS + 1, dtype=sigma.dtype)
        root = 1.0 / 7.0  # the spacing of EDM
        grid = ((1.0 - ramp) * sigma**root + ramp * last**root) ** 7

        def step(x, ends):  # Heun
            now, after = ends
            slope = (x - data.denoise(x, now)) / now
            guess = x + (after - now) * slope
            other = (guess - data.denoise(guess, after)) / after
            return x + 0.5 * (after - now) * (slope + other), None

        end, _ = jax.lax.scan(step, start, (grid[:-1], grid[1:]))
        return data.denoise(end, last), data.score(start, sigma)

    return jax.lax.map(from_level, (sigmas, x))


def _moments(shapes: list[Mode], inside: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """For each mode its probability ``inside`` times ``1, y, y^2 - 1``: ``[n, ...]``.

    ``y`` are the whitened coordinates of the clean samples.
    """
    columns = []
    for mode, shape in enumerate(shapes):
        own, y = inside[:, mode, None], shape.whiten(clean)
        columns += [own, own * y, own * (y**2 - 1.0)]
    return np.concatenate(columns, axis=1)


def _inside(data: GaussianMixture, clean: np.ndarray) -> np.ndarray:
    """Probability of each mode at clean samples, ``[n, modes]``."""
    components = np.asarray(data.responsibilities(clean), np.float64)
    return components @ np.eye(data.num_labels)[data.labels]


def _exact_gram(data: GaussianMixture, shapes: list[Mode]) -> np.ndarray:
    """Mean products of the moments over the clean distribution.

    Those of separate modes are known; draws correct for what is in two modes at once.
    """
    size = 1 + 2 * data.dim
    gram = np.zeros((size * len(shapes),) * 2)
    normal = np.random.default_rng(0).normal(size=(_NODES, data.dim))
    covariances = np.asarray(data.covariances, np.float64)
    for component, mode in enumerate(data.labels):
        weight, mean = float(data.weights[component]), data.means[component]
        own = slice(mode * size, (mode + 1) * size)
        gram[own, own] += weight * _gaussian_products(
            shapes[mode], np.asarray(mean, np.float64), covariances[component]
        )
        root = np.linalg.cholesky(covariances[component])
        clean = (np.asarray(mean) + normal @ root.T).astype(data.means.dtype)
        hard = np.tile(np.eye(len(shapes))[mode], (_NODES, 1))
        for inside, sign in ((_inside(data, clean), 1.0), (hard, -1.0)):
            moments = _moments(shapes, inside, clean.astype(np.float64))
            gram += sign * weight * moments.T @ moments / _NODES
    return gram


def _gaussian_products(
    shape: Mode, mean: np.ndarray, covariance: np.ndarray
) -> np.ndarray:
    """``E[h h^T]`` of ``h = (1, y, y^2 - 1)`` for a Gaussian, by Isserlis' theorem."""
    axes = shape.axes / np.sqrt(shape.variances)
    c, s = shape.whiten(mean), axes.T @ covariance @ axes
    square = np.diag(s) + c**2
    first = np.concatenate([[1.0], c, square - 1.0])
    middle = s + np.outer(c, c)
    third = 2.0 * s * c  # E[y_a y_b^2] - E[y_a] E[y_b^2]
    fourth = 2.0 * s**2 + 4.0 * np.outer(c, c) * s
    dim = len(c)
    products = np.outer(first, first)
    products[1 : 1 + dim, 1 : 1 + dim] = middle
    products[1 : 1 + dim, 1 + dim :] += third
    products[1 + dim :, 1 : 1 + dim] += third.T
    products[1 + dim :, 1 + dim :] += fourth
    return products
