"""Second moments of features and errors, over groups of independent samples.

The regression needs only inner products of the features ``u_k``, of the residual ``x0 -
D_c`` and, where the truth is known, of the error ``D* - D_c``, averaged over samples.
Per group of samples, they also give standard errors and held-out errors, and their size
does not depend on the number of samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.pytree import Static, join, split
from gmm_guidance.blocks.evaluate import evaluate_passes
from gmm_guidance.diffusion.parameterization import Prediction, denoised_at_sigma
from gmm_guidance.diffusion.process import Process
from gmm_guidance.guidance.calibrated import Feature, feature_passes
from gmm_guidance.guidance.rule import full_precision
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture

Batch = tuple[ArrayLike, ArrayLike | None]


class Moments(NamedTuple):
    """Mean inner products per element, float64.

    Attributes:
        products: ``[S, G, F + 1 (+ 1), same]``: features in their order, then the
            residual ``x0 - D_c``, then the error ``D* - D_c`` if the truth is known.
        output: mean inner products of the network's own output ``D_c - a x`` with the
            same and with itself, ``[S, G, Z + 1]``; ``None`` if the parameterization of
            the model is not known.
        clean: mean square of ``x0`` about its mean, a scalar.
    """

    products: np.ndarray
    output: np.ndarray | None
    clean: float


def gather_moments(
    key: jax.Array,
    model: Any,
    data: GaussianMixture | Batch,
    features: Sequence[Feature],
    sigmas: np.ndarray,
    *,
    label: int | None,
    num_samples: int,
    num_groups: int,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> Moments:
    """Run the passes on noised data, ``num_samples`` at each noise level.

    The samples and their noise are the same at every level, which makes coefficients
    vary smoothly over it.
    """
    mixture = data if isinstance(data, GaussianMixture) else None
    arrays, static = split((model, mixture))
    levels = jnp.asarray(sigmas, jnp.result_type(float))
    own = _parameterization(model)
    totals, counts = [], []
    values: list[np.ndarray] = []
    for group in range(num_groups):
        total: Any = 0.0
        count = 0
        group_key = jax.random.fold_in(key, group)
        size = (num_samples + num_groups - 1 - group) // num_groups
        for clean, labels, noise in _batches(
            group_key, data, label, group, num_groups, size, batch_size
        ):
            sums = _products(
                static, tuple(features), own, arrays, levels, clean, labels, noise
            )
            total = total + np.asarray(sums, np.float64)
            count += len(clean)
            if len(values) < 64:
                values.append(np.asarray(clean, np.float64))
        totals.append(total)
        counts.append(count)
        progress(group + 1, num_groups)
    products = np.stack(totals, axis=1) / np.array(counts)[None, :, None, None]
    every = np.concatenate(values)
    variance = float(np.mean((every - every.mean(axis=0)) ** 2))
    if own is None:
        return Moments(products, None, variance)
    return Moments(products[..., :-1, :-1], products[..., -1, :], variance)


def _parameterization(model: Any) -> tuple[Process, Prediction] | None:
    """Process and prediction of a ``ProcessStack``, also of one inside a wrapper."""
    found = getattr(model, "process", None), getattr(model, "prediction", None)
    return None if None in found else found  # type: ignore[return-value]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _products(
    static: Static,
    features: tuple[Feature, ...],
    own: tuple[Process, Prediction] | None,
    arrays: list[Any],
    sigmas: jax.Array,
    clean: jax.Array,
    label: jax.Array | None,
    noise: jax.Array,
) -> jax.Array:
    """Sums over the samples of inner products per element: ``[S, Z, Z]``."""
    model, mixture = join(arrays, static)
    passes = feature_passes(features, label)

    def at(sigma):
        x = clean + sigma * noise
        outputs = full_precision(evaluate_passes(model, x, sigma, passes), x)
        cond, others = outputs[0], jnp.stack(outputs[1:])
        rows = [cond[None] - others, (clean - cond)[None]]
        if mixture is not None:
            rows.append((mixture.denoise(x, sigma, label) - cond)[None])
        if own is not None:
            process, prediction = own
            without = denoised_at_sigma(
                process, jnp.zeros_like(x), x, sigma, prediction
            )
            rows.append((cond - without)[None])
        z = jnp.concatenate(rows)
        flat = z.reshape(z.shape[0], -1)
        highest = jax.lax.Precision.HIGHEST
        per_element = clean[0].size
        return jnp.einsum("ai,bi->ab", flat, flat, precision=highest) / per_element

    return jax.lax.map(at, sigmas)


def _batches(
    key: jax.Array,
    data: GaussianMixture | Batch,
    label: int | None,
    group: int,
    num_groups: int,
    size: int,
    batch_size: int,
) -> Iterator[tuple[jax.Array, jax.Array | None, jax.Array]]:
    """Clean samples, labels and noise of one group, in batches.

    Sample ``i`` and its noise depend on the key and ``i`` alone. A data set is divided
    among the groups, so that held-out groups are held-out data; where it has fewer
    samples than requested, each is repeated with fresh noise.
    """
    data_key, noise_key = jax.random.split(key)
    labels: jax.Array | None
    if isinstance(data, GaussianMixture):
        clean, labels = data.sample(data_key, size, label)
    else:
        every, classes = np.asarray(data[0]), data[1]
        own = np.arange(group, len(every), num_groups)
        order = own[np.arange(size) % len(own)]
        clean = jnp.asarray(every[order])
        labels = None if classes is None else jnp.asarray(np.asarray(classes)[order])
    shape, dtype = clean.shape[1:], clean.dtype
    for start in range(0, size, batch_size):
        part = slice(start, min(start + batch_size, size))
        index = jnp.arange(part.start, part.stop, dtype=jnp.uint32)
        noise = _noise(noise_key, index, shape, dtype)
        yield clean[part], None if labels is None else labels[part], noise


@functools.partial(jax.jit, static_argnums=(2, 3))
def _noise(key, index, shape, dtype):
    return jax.vmap(
        lambda i: jax.random.normal(jax.random.fold_in(key, i), shape, dtype)
    )(index)
