"""A random mixture, for tests of generality."""

from __future__ import annotations

import math

import jax
import numpy as np

from gmm_guidance._runtime.checks import check_key
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.mixture.presets._checks import (
    check_count,
    check_positive,
    cyclic_labels,
)


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
    weights are proportional to uniforms in [0.5, 1.5]; labels go round the components.

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
    num_components = check_count("num_components", num_components)
    dim = check_count("dim", dim)
    spread, std = check_positive("spread", spread), check_positive("std", std)
    if not (math.isfinite(condition_number) and condition_number >= 1):
        raise ValueError(
            f"condition_number must be finite and at least 1 (1 is isotropic), got "
            f"{condition_number}."
        )
    labels = cyclic_labels(num_labels, num_components, "num_components")
    if isinstance(key, (int, np.integer)):
        key = jax.random.key(check_count("key", key, least=0))
    check_key(key)
    means_key, axes_key, variances_key, weights_key = jax.random.split(key, 4)
    shape = (num_components, dim)
    means = spread * np.asarray(jax.random.normal(means_key, shape), np.float64)
    normals = np.asarray(jax.random.normal(axes_key, (*shape, dim)), np.float64)
    axes, triangle = np.linalg.qr(normals)
    # The sign of QR is arbitrary; this choice makes the rotation uniform.
    axes = axes * np.sign(np.diagonal(triangle, axis1=1, axis2=2))[:, None, :]
    uniform = np.asarray(jax.random.uniform(variances_key, shape), np.float64)
    variances = std**2 * condition_number**-uniform
    covariances = np.einsum("kij,kj,klj->kil", axes, variances, axes)
    weights = 0.5 + np.asarray(
        jax.random.uniform(weights_key, (num_components,)), np.float64
    )
    return GaussianMixture(means, covariances, weights / weights.sum(), labels)
