"""Expectations over the posterior of one class, tilted by powers of p(label | y).

Given a noisy ``x`` and a class, the clean sample ``y`` has the distribution ``sum_k r_k
N(mu_k, V_k)`` over the class's components (Eqs. 4 and 5 of
``mixture.gaussian_mixture``). Expectations of functions of ``y`` are sums over nodes
placed in each component.

The nodes are an even lattice (the trapezoidal rule), in units of the component's
standard deviations. For analytic functions it converges as fast as Gauss-Hermite nodes
do, and uses no nodes where the Gaussian is below rounding (Trefethen 2022, arXiv
2101.09501). It reaches far since a steep tilt moves the mass away from the middle.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance.mixture.closed_forms import (
    component_terms,
    evaluate,
    map_samples,
    rotate,
)
from gmm_guidance.mixture.parameters import MixtureParameters

# (points x nodes x components x dimensions) at a time.
_CHUNK_ELEMENTS = 1 << 18
# Reach of the lattice in standard deviations, and nodes along each axis.
REACH = {1: 12.0, 2: 7.0}
NUM_NODES = {1: 64, 2: 32}


@dataclasses.dataclass(frozen=True)
class LogLabelPosterior:
    """``log p(label | x)`` at one point, without the rounding of ``log(1 - small)``."""

    label: int

    def __call__(self, mixture, x, sigma, _):
        """A scalar <= 0."""
        terms = component_terms(mixture, x, sigma).log_terms
        own = np.asarray(mixture.labels) == self.label
        if own.all():
            return jnp.zeros((), terms.dtype)
        rest, mine = (jax.nn.logsumexp(terms[np.flatnonzero(m)]) for m in (~own, own))
        return -jax.nn.softplus(rest - mine)


def log_label_posterior(
    mixture: MixtureParameters, x: ArrayLike, sigma: ArrayLike, label: int
) -> jax.Array:
    """``log p(label | x)`` of noised samples at points ``[..., d]``."""
    return evaluate(LogLabelPosterior(label), mixture, x, sigma, None)


class Quadrature(NamedTuple):
    """The choice of nodes; static.

    Attributes:
        num_nodes: lattice nodes along each axis; 0 for random ones.
        num_draws: random nodes, an even number.
    """

    num_nodes: int
    num_draws: int


class Tilt(NamedTuple):
    """Moments of the tilted posterior of noisy points; leading axes as the points'.

    Attributes:
        log_mean: ``log E[p(label | y)^(scale - 1) | x, label]``.
        denoised: mean of the tilted posterior, ``[..., d]``.
        score: ``(denoised - x) / sigma^2`` without its cancellation, ``[..., d]``.
    """

    log_mean: jax.Array
    denoised: jax.Array
    score: jax.Array


class _Nodes(NamedTuple):
    points: jax.Array  # [P, d]
    slopes: jax.Array  # [P, d]: (points - x) / sigma^2
    log_weights: jax.Array  # [P]


@functools.lru_cache(maxsize=16)
def lattice(dim: int, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes ``[M, d]`` and log weights ``[M]`` of a standard normal, in a ball."""
    reach = REACH[dim]
    axis = np.linspace(-reach, reach, num_nodes)
    nodes = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim)
    square = np.sum(nodes**2, axis=1)
    inside = square <= reach**2 * (1 + 1e-12)
    log_weights = -0.5 * square[inside]
    return nodes[inside], log_weights - np.log(np.exp(log_weights).sum())


@functools.partial(jax.jit, static_argnames=("label", "quadrature"))
def tilted_posterior(
    mixture: MixtureParameters,
    x: jax.Array,
    sigma: jax.Array,
    scale: jax.Array,
    key: jax.Array | None,
    *,
    label: int,
    quadrature: Quadrature,
) -> Tilt:
    """The tilted posterior at points ``[..., d]``, a bounded number of them at a time.

    Args:
        mixture: the clean mixture.
        x: noisy points.
        sigma: noise level > 0, a scalar or of x's leading shape.
        scale: exponent of the tilt plus one.
        key: for random nodes, which are then common to all points.
        label: the class.
        quadrature: the nodes.
    """
    part = mixture.condition(label)
    dim, leading = mixture.dim, x.shape[:-1]
    if quadrature.num_nodes:
        standard = lattice(dim, quadrature.num_nodes)
        place = functools.partial(
            _lattice_nodes, part, *(jnp.asarray(a, x.dtype) for a in standard)
        )
        count = len(standard[0]) * part.num_components
    else:
        if key is None:
            raise ValueError("random nodes need a key, got None; pass key=...")
        half = jax.random.normal(key, (quadrature.num_draws // 2, dim), x.dtype)
        # Antithetic pairs are adjacent, so that most fall into the same component.
        normal = jnp.stack([half, -half], axis=1).reshape(-1, dim)
        place = functools.partial(_drawn_nodes, part, normal)
        count = quadrature.num_draws

    def one(point):
        nodes = place(*point)
        zero = jnp.zeros((), x.dtype)
        log_p = map_samples(LogLabelPosterior(label), mixture, nodes.points, zero, None)
        terms = nodes.log_weights + (scale - 1.0) * log_p
        weights = jax.nn.softmax(terms)
        return Tilt(
            jax.nn.logsumexp(terms), weights @ nodes.points, weights @ nodes.slopes
        )

    points = (
        x.reshape(-1, dim),
        jnp.broadcast_to(sigma, leading).reshape(-1),
    )
    chunk = max(1, _CHUNK_ELEMENTS // (count * mixture.num_components * dim))
    if points[1].shape[0] <= chunk:
        result = jax.vmap(one)(points)
    else:
        result = jax.lax.map(one, points, batch_size=chunk)
    return jax.tree.map(lambda a: a.reshape(*leading, *a.shape[1:]), result)


def clean_log_mean(
    mixture: MixtureParameters, scale: jax.Array, label: int, num_nodes: int
) -> jax.Array:
    """``log E[p(label | y)^(scale - 1) | label]`` of clean samples, by the lattice."""
    part = mixture.condition(label)
    dtype = mixture.means.dtype
    nodes, log_w = (jnp.asarray(a, dtype) for a in lattice(mixture.dim, num_nodes))
    offset = nodes[:, :, None] * jnp.sqrt(part.variances.T)[None]
    points = part.means.T[None] + _rotate_all(part, offset)
    points = jnp.swapaxes(points, 1, 2)  # [M, K, d]
    zero = jnp.zeros((), dtype)
    log_p = map_samples(LogLabelPosterior(label), mixture, points, zero, None)
    terms = log_w[:, None] + part.log_weights[None] + (scale - 1.0) * log_p
    return jax.nn.logsumexp(terms)


def _lattice_nodes(part, standard, log_weights, x, sigma) -> _Nodes:
    """The lattice in every component."""
    parts = component_terms(part, x, sigma)
    shrink = part.variances.T * parts.precision  # [d or 1, K], of V = sigma^2 shrink
    root = jnp.sqrt(shrink)[None]
    spread = standard[:, :, None] * root
    means = part.means.T + rotate(part, parts.coordinates * shrink)
    points = means[None] + _rotate_all(part, spread * sigma)
    slopes = _rotate_all(
        part, spread / sigma - (parts.coordinates * parts.precision)[None]
    )
    log_r = jax.nn.log_softmax(parts.log_terms)
    points, slopes = (
        jnp.swapaxes(a, 1, 2).reshape(-1, part.dim) for a in (points, slopes)
    )
    return _Nodes(points, slopes, (log_weights[:, None] + log_r[None]).reshape(-1))


def _drawn_nodes(part, normal, x, sigma) -> _Nodes:
    """Random nodes, distributed over the components by their responsibilities."""
    parts = component_terms(part, x, sigma)
    log_r = jax.nn.log_softmax(parts.log_terms)
    count = normal.shape[0]
    levels = jnp.asarray((np.arange(count) + 0.5) / count, x.dtype)
    k = jnp.searchsorted(jnp.cumsum(jnp.exp(log_r)), levels)
    k = jnp.minimum(k, part.num_components - 1)
    shrink = (part.variances.T * parts.precision)[:, k]  # [d or 1, P]
    spread = normal.T * jnp.sqrt(shrink)
    coordinates = parts.coordinates[:, k]
    offset = coordinates * shrink + spread * sigma
    slopes = spread / sigma - coordinates * parts.precision[:, k]
    if part.eigenvectors is not None:
        q = part.eigenvectors[k]
        offset, slopes = (jnp.einsum("pij,jp->ip", q, a) for a in (offset, slopes))
    # 1 in value; carries the derivative of the responsibilities, which the discrete
    # choice of components lacks.
    kept = log_r[k] - jax.lax.stop_gradient(log_r[k])
    return _Nodes(part.means[k] + offset.T, slopes.T, kept - math.log(count))


def _rotate_all(part, vectors: jax.Array) -> jax.Array:
    """``Q_k v_k`` of vectors ``[M, d, K]``."""
    return jax.vmap(functools.partial(rotate, part))(vectors)
