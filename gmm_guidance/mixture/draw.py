"""Drawing from a Gaussian mixture by inverting cumulative weights.

Memory is O(samples), whatever the number of components: a categorical draw by noise
on each component's logit would need samples x components.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance.mixture.parameters import MixtureParameters


@functools.partial(jax.jit, static_argnums=2)
def sample_by_index(
    mixture: MixtureParameters,
    key: jax.Array,
    num_samples: int,
    label: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Samples ``[n, d]``, labels ``[n]``; sample i depends on key and i alone."""
    tables = _tables(mixture)
    dtype = mixture.means.dtype

    def one(index, label):
        uniform_key, normal_key = jax.random.split(jax.random.fold_in(key, index))
        u = jax.random.uniform(uniform_key, (2,), dtype)
        normal = jax.random.normal(normal_key, (mixture.dim,), dtype)
        return _place(mixture, tables, u, normal, label)

    index = jnp.arange(num_samples, dtype=jnp.uint32)
    return jax.vmap(one)(index, label)


def sample_batch(
    mixture: MixtureParameters, key: jax.Array, num_samples: int
) -> tuple[jax.Array, jax.Array]:
    """As ``sample_by_index``, from one stream for the whole batch: faster."""
    tables = _tables(mixture)
    dtype = mixture.means.dtype
    uniform_key, normal_key = jax.random.split(key)
    u = jax.random.uniform(uniform_key, (num_samples, 2), dtype)
    normal = jax.random.normal(normal_key, (num_samples, mixture.dim), dtype)
    return jax.vmap(lambda a, b: _place(mixture, tables, a, b, None))(u, normal)


class _Tables(NamedTuple):
    """Components sorted by class, and cumulative probabilities."""

    order: jax.Array  # [K] component at each sorted place
    starts: jax.Array  # [L] first place of each class
    ends: jax.Array  # [L] one past its last
    within: jax.Array  # [K] cumulative probability within the class
    labels: jax.Array  # [L] cumulative probability of the classes


def _tables(mixture: MixtureParameters) -> _Tables:
    labels = np.asarray(mixture.labels, np.int32)
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=mixture.num_labels))
    starts = np.concatenate([[0], ends[:-1]])
    # Restarted at each class, so that a class of weight 1e-12 is resolved as finely as
    # any other.
    is_first = np.zeros(mixture.num_components, bool)
    is_first[starts] = True
    label_logs = mixture.label_log_weights()
    fraction = jnp.exp(mixture.log_weights[order] - label_logs[labels[order]])

    def accumulate(left, right):
        (total_l, first_l), (total_r, first_r) = left, right
        return jnp.where(first_r, total_r, total_l + total_r), first_l | first_r

    within, _ = jax.lax.associative_scan(accumulate, (fraction, jnp.asarray(is_first)))
    return _Tables(
        jnp.asarray(order, jnp.int32),
        jnp.asarray(starts, jnp.int32),
        jnp.asarray(ends, jnp.int32),
        within,
        jnp.cumsum(jnp.exp(label_logs[:-1])),
    )


def _place(mixture, tables, u, normal, label):
    """One sample from two uniform numbers and ``d`` normal ones."""
    drawn = jnp.searchsorted(tables.labels, u[0], side="right")
    drawn = jnp.minimum(drawn, mixture.num_labels - 1).astype(jnp.int32)
    if label is None:
        label = drawn
    label = jnp.where(label == mixture.num_labels, drawn, label)
    place = _search(tables.within, tables.starts[label], tables.ends[label], u[1])
    component = tables.order[place]
    offset = normal * jnp.sqrt(mixture.variances[component])
    if mixture.eigenvectors is not None:
        offset = mixture.eigenvectors[component] @ offset
    return mixture.means[component] + offset, label


def _search(cumulative, start, end, value):
    """First place in ``start .. end - 1`` whose cumulative probability exceeds value.

    Rounding may leave the last cumulative probability below the value: then the last.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        right = (cumulative[middle] <= value) & (low < high)
        return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

    steps = math.ceil(math.log2(cumulative.shape[0] + 1))
    return jax.lax.fori_loop(0, steps, halve, (start, end - 1))[0]
