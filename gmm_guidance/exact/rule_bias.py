"""How far exact CFG is from sampling the tilted distribution, point by point.

At each noise level CFG's score is the gradient of ``log h = scale log p(x | label) + (1
- scale) log p(x)``, i.e. of ``scale log E[p(label | y) | x]`` plus the unconditional
score. The score of the noised tilted distribution has ``log E[p(label | y)^scale | x]``
instead. The difference of these two terms, the Jensen gap

    J(x, sigma) = log E[p(label | y)^scale | x] - scale log E[p(label | y) | x],

is >= 0 for scales >= 1 and vanishes with the noise. It is ``scale - 1`` times a Renyi
divergence between the posteriors with and without the label (Moufad et al. 2025, arXiv
2505.21101), and its gradient is CFG's error. The same error appears as a defect of the
heat equation, which the densities ``h`` would obey were they noised versions of one
distribution (Skreta et al. 2025, arXiv 2503.02819).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import check_key
from gmm_guidance.exact._posterior import log_label_posterior
from gmm_guidance.exact.tilted import TiltedTarget
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture, check_mixture


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
        num_nodes: lattice nodes, as for ``TiltedTarget``, which sets the accuracy.
        key: random nodes instead, as for ``TiltedTarget``.

    Returns:
        Gaps in nats, of x's leading shape.

    Raises:
        ValueError: as ``TiltedTarget``.
    """
    check_mixture(mixture)
    if key is not None:
        check_key(key)
    target = TiltedTarget(mixture, label, scale, num_nodes, key)
    # E[p^s | x] = p(label | x) E[p^(s - 1) | x, label]: the label's own components have
    # no mass where p(label | y) is below rounding, and need fewer nodes.
    log_mean = target.tilt(x, sigma).log_mean
    log_p = log_label_posterior(mixture.parameters, x, sigma, target.label)
    return log_mean - (jnp.asarray(scale, log_p.dtype) - 1.0) * log_p


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
    """CFG's denoiser minus that of the tilted distribution, ``-sigma^2 grad J``.

    It is the error of CFG with exact denoisers: a network adds its own error to it.
    Arguments and errors as of ``jensen_gap``.

    Returns:
        Differences in units of the data, of x's shape.
    """
    check_mixture(mixture)
    if key is not None:
        check_key(key)
    target = TiltedTarget(mixture, label, scale, num_nodes, key)
    uncond, cond = mixture.denoise_rows(x, sigma, (None, target.label))
    guided = cond + (jnp.asarray(scale, cond.dtype) - 1.0) * (cond - uncond)
    return guided - target.denoise(x, sigma)


def fokker_planck_defect(
    mixture: GaussianMixture,
    x: ArrayLike,
    sigma: ArrayLike,
    label: int,
    scale: ArrayLike,
) -> jax.Array:
    """``1/2 scale (scale - 1) |grad log p_sigma(label | x)|^2``, per unit of variance.

    Noised versions of one distribution obey the heat equation in ``v = sigma^2``. CFG's
    densities ``h`` violate it by

        d/dv log h - 1/2 (laplacian log h + |grad log h|^2) = -defect:

    zero for the scales 0 and 1, and wherever the noisy point is uninformative about the
    label. As a rate of log weights along the reverse diffusion the same term corrects
    CFG; see ``repaired_sample``.

    Args:
        mixture: the clean mixture.
        x: noisy points of shape ``[..., d]``.
        sigma: noise level > 0, a scalar or one for each point.
        label: the class.
        scale: the total CFG scale.

    Returns:
        Defects in nats per unit of variance, of x's leading shape; negative for scales
        between 0 and 1.
    """
    check_mixture(mixture)
    push = mixture.score(x, sigma, label) - mixture.score(x, sigma)
    scale = jnp.asarray(scale, push.dtype)
    return 0.5 * scale * (scale - 1.0) * jnp.sum(push**2, axis=-1)
