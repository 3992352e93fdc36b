"""A DiT asked as PyTorch's are: scaled inputs with channels first, times, labels."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

import gmm_guidance as gg


def inputs(network, x, times):
    """The library's samples and noise levels for the network's input and times."""
    x = jnp.asarray(np.moveaxis(np.asarray(x), 1, -1))
    times = np.asarray(times)
    if isinstance(network.config.process, gg.DDPM):
        sigma = gg.DDPM().sigmas()[times]
        scale = np.sqrt(1.0 + sigma**2)
    else:
        scale = 1.0 / times.astype(np.float64)
        sigma = scale - 1.0
    scale = jnp.asarray(scale, jnp.float32)[:, None, None, None]
    return x * scale, jnp.asarray(sigma, jnp.float32)


def predictions(network, x, times, labels):
    """The network's own output, channels first."""
    noisy, sigma = inputs(network, x, times)
    if labels is not None:
        labels = jnp.asarray(np.asarray(labels), jnp.int32)
    return jnp.moveaxis(_predict(network, noisy, sigma, labels), -1, 1)


def drop_blocks(network, x, times, labels, dropped, kind="drop"):
    """Noise or velocity of the full and of the weak pass, from the denoised samples."""
    noisy, sigma = inputs(network, x, times)
    labels = jnp.asarray(np.asarray(labels), jnp.int32)
    values = np.asarray(
        _evaluate(network, noisy, sigma, labels, dropped, kind), np.float64
    )
    noisy, level = (np.asarray(a, np.float64) for a in (noisy, sigma))
    level = level[:, None, None, None]
    if isinstance(network.config.process, gg.DDPM):
        result = (noisy - values) / level
    else:
        result = ((1.0 + level) * values - noisy) / level
    return np.moveaxis(result, -1, 2)


@jax.jit
def _predict(network, noisy, sigma, labels):
    return network.predict(noisy, sigma, labels)


@functools.partial(jax.jit, static_argnames="kind")
def _evaluate(network, noisy, sigma, labels, dropped, kind):
    perturb = gg.Perturbation(kind, dropped)
    passes = [gg.Pass(labels), gg.Pass(labels, perturb=perturb)]
    return gg.evaluate_passes(network, noisy, sigma, passes)


def relative_error(found, expected):
    """Norm of the difference over the norm.

    At late steps the time features of float32 alone differ by 4e-5, here as there: the
    phase is up to 999 radians.
    """
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)
