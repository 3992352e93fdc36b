"""The Jensen gap: why the denoiser of CFG is not that of the tilted law.

CFG's score is the gradient of ``scale log E[p(label | y) | x]`` plus the unconditional
one, the tilted law's that of ``log E[p(label | y)^scale | x]`` plus the same. The gap
between these two,

    J(x, sigma) = log E[p(label | y)^scale | x] - scale log E[p(label | y) | x],

is >= 0 for scales >= 1 by Jensen's inequality and vanishes with the noise. It is
``scale - 1`` times a Renyi divergence between the posteriors with and without the label
(Moufad et al. 2025, arXiv 2505.21101), and its gradient is CFG's error.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gmm_guidance.exact._posterior import log_label_posterior
from gmm_guidance.exact.tilted import TiltedTarget
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


def jensen_gap(
    mixture: GaussianMixture,
    x: ArrayLike,
    sigma: ArrayLike,
    label: int,
    scale: ArrayLike,
    *,
    num_nodes: int | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The gap ``J(x, sigma)``, differentiable in ``x``.

    Args:
        mixture: the clean mixture.
        x: noisy points of shape ``[..., d]``.
        sigma: noise level > 0, a scalar or one for each point.
        label: the class.
        scale: the total CFG scale, >= 1; 1 gives 0.
        num_nodes: as for ``TiltedTarget``, whose accuracy it has.
        key: likewise.

    Returns:
        Gaps in nats, of x's leading shape.

    Raises:
        ValueError: as ``TiltedTarget``.
    """
    target = TiltedTarget(mixture, label, scale, num_nodes, key)
    # E[p^s | x] = p(label | x) E[p^(s - 1) | x, label]: the label's own components have
    # no mass where p(label | y) is below rounding, and take fewer nodes.
    log_mean = target._tilt(x, sigma).log_mean
    own = log_label_posterior(mixture.parameters, x, sigma, target.label)
    return log_mean - (jnp.asarray(scale, own.dtype) - 1.0) * own


def rule_bias(
    mixture: GaussianMixture,
    x: ArrayLike,
    sigma: ArrayLike,
    label: int,
    scale: ArrayLike,
    *,
    num_nodes: int | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """CFG's denoiser minus that of the tilted law, ``-sigma^2 grad J``.

    It is the error of exact CFG at a point: no network, however good, is without it.

    Args:
        mixture: the clean mixture.
        x: noisy points of shape ``[..., d]``.
        sigma: noise level > 0, a scalar or one for each point.
        label: the class.
        scale: the total CFG scale, >= 1; 1 gives 0.
        num_nodes: as for ``TiltedTarget``, whose accuracy it has.
        key: likewise.

    Returns:
        Differences in units of the data, of x's shape.

    Raises:
        ValueError: as ``TiltedTarget``.
    """
    target = TiltedTarget(mixture, label, scale, num_nodes, key)
    uncond, cond = mixture.denoise_rows(x, sigma, (None, target.label))
    guided = cond + (jnp.asarray(scale, cond.dtype) - 1.0) * (cond - uncond)
    return guided - target.denoise(x, sigma)
