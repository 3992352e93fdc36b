"""How far the densities that CFG follows are from a diffusion, point by point."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


def fokker_planck_defect(
    mixture: GaussianMixture,
    x: ArrayLike,
    sigma: ArrayLike,
    label: int,
    scale: ArrayLike,
) -> jax.Array:
    """``1/2 scale (scale - 1) |grad log p_sigma(label | x)|^2``, per unit of variance.

    CFG's score at each noise level is that of ``h = p_sigma(x | label)^scale
    p_sigma(x)^(1 - scale)``. Were these the noised versions of one law, they would obey
    the heat equation in ``v = sigma^2``. Instead

        d/dv log h - 1/2 (laplacian log h + |grad log h|^2) = -defect:

    zero for the scales 0 and 1 and wherever the noisy point says nothing on the label.
    As a rate of log weights along the reverse diffusion the same term repairs CFG
    (Skreta et al. 2025, arXiv 2503.02819); see ``repaired_sample``.

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
    push = mixture.score(x, sigma, label) - mixture.score(x, sigma)
    scale = jnp.asarray(scale, push.dtype)
    return 0.5 * scale * (scale - 1.0) * jnp.sum(push**2, axis=-1)
