"""The closed forms of one sample against all components, and their vectorization.

Equations (1) to (5) are those of ``mixture.gaussian_mixture``. Every ``*_at`` function
takes the mixture's parameters, one sample ``[d]``, its noise level and its label (or
``None``); ``evaluate`` applies one to many samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance.mixture.parameters import (
    Label,
    MixtureParameters,
    check_label,
    check_points,
    spread_label,
)

# (samples x components x dimensions) evaluated at a time: small enough to stay in
# cache and to bound the memory, large enough to hide the cost of the loop.
_CHUNK_ELEMENTS = 1 << 18
_UNROLLED_DIM = 8  # largest number of dimensions whose sums are unrolled


class ComponentTerms(NamedTuple):
    """One sample against all components: Eq. 1's terms and what they are made of.

    Attributes:
        log_terms: ``log w_k + log N(x; m_k, C_k) - offset``, ``[K]``.
        coordinates: ``x - m_k`` along the eigenvectors of component k, ``[d, K]``.
        precision: inverse eigenvalues of ``C_k``, ``[d or 1, K]``.
        offset: what all log terms have in common; 0 in few dimensions.
    """

    log_terms: jax.Array
    coordinates: jax.Array
    precision: jax.Array
    offset: jax.Array | float = 0.0


def component_terms(
    mixture: MixtureParameters, x: jax.Array, sigma: jax.Array
) -> ComponentTerms:
    """Eq. 1's terms at one sample ``[d]`` and noise level."""
    difference = x[:, None] - mixture.means.T
    coordinates = rotate(mixture, difference, inverse=True)
    total = mixture.variances.T + sigma**2
    log_det = jnp.sum(jnp.log(total), axis=0) * (mixture.dim / total.shape[0])
    precision = 1.0 / total
    constant = mixture.log_weights - 0.5 * (
        log_det + mixture.dim * math.log(2.0 * math.pi)
    )
    distance = _sum_leading(coordinates**2 * precision)
    parts = ComponentTerms(constant - 0.5 * distance, coordinates, precision)
    return (
        parts if mixture.dim <= _UNROLLED_DIM else _relative(mixture, x, sigma, parts)
    )


def _relative(
    mixture: MixtureParameters, x: jax.Array, sigma: jax.Array, parts: ComponentTerms
) -> ComponentTerms:
    """The terms without what they have in common with the largest.

    In d dimensions each term is of the order of d, and at high noise the terms differ
    by less than float32 resolves at that size. Differences are taken in each dimension,
    before the sum.
    """
    nearest = jnp.argmax(parts.log_terms)
    mean, variance = mixture.means[nearest], mixture.variances[nearest]
    ours = (variance + sigma**2)[:, None]
    change = mixture.variances.T - variance[:, None]
    # log(C_k / C), of which log1p knows more unless the variances are far apart.
    close = jnp.abs(change) < 0.5 * ours
    log_ratio = jnp.where(
        close,
        jnp.log1p(jnp.where(close, change / ours, 0.0)),
        -jnp.log(parts.precision * ours),
    )
    log_det = jnp.sum(log_ratio, axis=0) * (mixture.dim / log_ratio.shape[0])
    if mixture.eigenvectors is None:
        away = (x - mean)[:, None]
        step = mixture.means.T - mean[:, None]
        distance = jnp.sum(
            parts.precision * (step * (step - 2.0 * away) - change / ours * away**2),
            axis=0,
        )
        common = jnp.sum(away**2 / ours)
    else:  # each component has axes of its own; on average a dimension gives 1
        distance = jnp.sum(parts.coordinates**2 * parts.precision - 1.0, axis=0)
        common = jnp.asarray(mixture.dim, distance.dtype)
    common += jnp.sum(jnp.log(ours)) * (mixture.dim / len(ours))
    offset = -0.5 * (common + mixture.dim * math.log(2.0 * math.pi))
    log_terms = mixture.log_weights - 0.5 * (log_det + distance)
    return parts._replace(log_terms=log_terms, offset=offset)


def rotate(
    mixture: MixtureParameters, vectors: jax.Array, *, inverse: bool = False
) -> jax.Array:
    """``Q_k v_k`` of one vector for each component, ``[d, K]``; inverse: ``Q_k^T``."""
    if mixture.eigenvectors is None:
        return vectors
    if mixture.dim > _UNROLLED_DIM:
        equation = "ik,kij->jk" if inverse else "jk,kij->ik"
        return jnp.einsum(equation, vectors, mixture.eigenvectors)
    # [from, to, K]: unrolled, since XLA's batched product of tiny matrices is slow.
    order = (1, 2, 0) if inverse else (2, 1, 0)
    matrices = jnp.transpose(mixture.eigenvectors, order)
    return _sum_leading(vectors[:, None] * matrices)


def _sum_leading(terms: jax.Array) -> jax.Array:
    """Sum over a short leading axis; unrolled, 4 times faster than XLA's reduction."""
    if terms.shape[0] > _UNROLLED_DIM:
        return jnp.sum(terms, axis=0)
    return sum((term for term in terms[1:]), start=terms[0])


def _restricted(
    mixture: MixtureParameters, log_terms: jax.Array, label: jax.Array | None
) -> jax.Array:
    if label is None:
        return log_terms
    member = (_labels(mixture) == label) | (label == mixture.num_labels)
    return jnp.where(member, log_terms, -jnp.inf)


def _labels(mixture: MixtureParameters) -> jax.Array:
    return jnp.asarray(np.asarray(mixture.labels, np.int32))


def _sum_rotated(mixture: MixtureParameters, weighted: jax.Array) -> jax.Array:
    """Sum over components of ``Q_k`` times a vector each: ``[d, K]`` to ``[d]``."""
    return jnp.sum(rotate(mixture, weighted), axis=1)


def log_prob_at(mixture, x, sigma, label):
    """Eq. 1, given the label."""
    parts = component_terms(mixture, x, sigma)
    log_p = jax.nn.logsumexp(_restricted(mixture, parts.log_terms, label))
    log_p += parts.offset
    if label is None:
        return log_p
    return log_p - mixture.label_log_weights()[label]


def responsibilities_at(mixture, x, sigma, label):
    """Eq. 2, ``[K]``."""
    log_terms = component_terms(mixture, x, sigma).log_terms
    return jax.nn.softmax(_restricted(mixture, log_terms, label))


def label_posterior_at(mixture, x, sigma, label):
    """Eq. 2 summed over each class, ``[num_labels]``."""
    r = responsibilities_at(mixture, x, sigma, label)
    return jax.ops.segment_sum(r, _labels(mixture), mixture.num_labels)


def score_at(mixture, x, sigma, label):
    """Eq. 3, ``[d]``."""
    parts = component_terms(mixture, x, sigma)
    r = jax.nn.softmax(_restricted(mixture, parts.log_terms, label))
    return -_sum_rotated(mixture, r[None] * parts.coordinates * parts.precision)


def _posterior_mean(mixture, parts, r):
    # Not x + sigma^2 * score: at large sigma that is a small difference of large ones.
    shrink = mixture.variances.T * parts.precision
    return r @ mixture.means + _sum_rotated(
        mixture, r[None] * parts.coordinates * shrink
    )


def denoise_at(mixture, x, sigma, label):
    """Eq. 4, ``[d]``."""
    parts = component_terms(mixture, x, sigma)
    r = jax.nn.softmax(_restricted(mixture, parts.log_terms, label))
    return _posterior_mean(mixture, parts, r)


def denoise_rows_at(mixture, x, sigma, labels):
    """Eq. 4 for several labels, ``[row, d]``."""
    parts = component_terms(mixture, x, sigma)
    rows = [
        _posterior_mean(
            mixture, parts, jax.nn.softmax(_restricted(mixture, parts.log_terms, label))
        )
        for label in labels
    ]
    return jnp.stack(rows)


def posterior_covariance_at(mixture, x, sigma, label):
    """Eq. 5, ``[d, d]``."""
    parts = component_terms(mixture, x, sigma)
    r = jax.nn.softmax(_restricted(mixture, parts.log_terms, label))
    shrink = mixture.variances.T * parts.precision  # [d or 1, K]
    moved = rotate(mixture, parts.coordinates * shrink)
    means = mixture.means.T + moved  # [d, K] posterior mean of each component
    offset = means - (means @ r)[:, None]
    spread = jnp.broadcast_to(r[None] * shrink * sigma**2, means.shape)
    q = mixture.eigenvectors
    if q is None:
        within = jnp.diag(jnp.sum(spread, axis=1))
    else:
        within = jnp.einsum("kaj,jk,kbj->ab", q, spread, q)
    return within + jnp.einsum("k,ak,bk->ab", r, offset, offset)


@functools.partial(jax.jit, static_argnums=0)
def map_samples(function, mixture, x, sigma, labels):
    """Apply ``function`` to each sample, a bounded number of them at a time.

    ``labels`` is a pytree of per-sample integers (or None).
    """
    leading = x.shape[:-1]
    flat = functools.partial(
        jax.tree.map, lambda a: a.reshape(-1, *a.shape[len(leading) :])
    )
    x, labels = flat(x), flat(labels)
    shared_sigma = sigma.ndim == 0
    samples = (x, None if shared_sigma else sigma.reshape(-1), labels)

    def one(sample):
        x_i, sigma_i, labels_i = sample
        return function(mixture, x_i, sigma if shared_sigma else sigma_i, labels_i)

    chunk = max(1, _CHUNK_ELEMENTS // (mixture.num_components * mixture.dim))
    if x.shape[0] <= chunk:
        result = jax.vmap(one)(samples)
    else:
        result = jax.lax.map(one, samples, batch_size=chunk)
    return result.reshape(*leading, *result.shape[1:])


def evaluate(
    function: Callable[..., jax.Array],
    mixture: MixtureParameters,
    x: ArrayLike,
    sigma: ArrayLike,
    label: Label,
) -> jax.Array:
    """Validate the input and apply a closed form to each sample.

    A label known as a Python integer evaluates the components of its class alone, so
    ``function`` must give the same for a class and for that class's own mixture.
    """
    x, sigma = check_points(mixture, x, sigma)
    if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
        value = check_label(mixture, label, null_allowed=True)
        part = mixture if value == mixture.num_labels else mixture.condition(value)
        return map_samples(function, part, x, sigma, None)
    label = spread_label(mixture, label, x.shape[:-1])
    return map_samples(function, mixture, x, sigma, label)
