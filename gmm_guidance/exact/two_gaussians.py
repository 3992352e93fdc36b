"""Closed forms of CFG for Gaussians.

The data are N(mean, a) given the label and N(0, b) without, along one axis; covariances
that commute separate into such axes. All functions take numbers or arrays of one shape.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


class Moments(NamedTuple):
    """Moments of a Gaussian.

    Attributes:
        mean: mean, in units of the data.
        variance: variance.
    """

    mean: np.ndarray
    variance: np.ndarray


def cfg_ode_moments(
    mean: ArrayLike,
    var_cond: ArrayLike,
    var_uncond: ArrayLike,
    scale: ArrayLike,
    sigma_max: float = np.inf,
) -> Moments:
    """Output of CFG's probability flow (the limit of DDIM) from N(0, sigma_max^2).

    From infinite noise the variance is ``a^scale b^(1 - scale)`` (Bradley & Nakkiran
    2024, arXiv 2408.09000). The mean is an integral of ``(1 + (b - a) t^2)^((scale -
    1) / 2)`` over ``t = (a + v)^(-1/2)``, which the quadrature
    computes to rounding.

    Args:
        mean: conditional mean, where the unconditional one is 0.
        var_cond: conditional variance a > 0.
        var_uncond: unconditional variance b > 0.
        scale: the total CFG scale.
        sigma_max: noise level of the start, > 0.

    Returns:
        Moments of the output, which is Gaussian.

    Raises:
        ValueError: for values out of these ranges.
    """
    mean, a, b, scale = _prepare(mean, var_cond, var_uncond, scale)
    if not sigma_max > 0:
        raise ValueError(f"sigma_max must be above 0, got {sigma_max}.")
    start = sigma_max**2
    factor = a ** (scale / 2) * b ** ((1 - scale) / 2)
    integral = _power_integral(b - a, scale, 1 / np.sqrt(a + start), 1 / np.sqrt(a))
    # start / Phi(start)^2, which tends to 1.
    ratio = np.ones_like(a)
    if np.isfinite(start):
        ratio = (1 + a / start) ** -scale * (1 + b / start) ** (scale - 1)
    return Moments(scale * mean * factor * integral, factor**2 * ratio)


def cfg_sde_moments(
    mean: ArrayLike, var_cond: ArrayLike, var_uncond: ArrayLike, scale: ArrayLike
) -> Moments:
    """Output of CFG's reverse diffusion (the limit of DDPM) from infinite noise.

    Mean ``m b (1 - (a / b)^scale) / (b - a)`` and variance ``a^(2 scale) b^(2 - 2
    scale) ((b / a)^(2 scale - 1) - 1) / ((b - a)(2 scale - 1))`` (Bradley & Nakkiran
    2024, arXiv 2408.09000).

    Args:
        mean: conditional mean, where the unconditional one is 0.
        var_cond: conditional variance a > 0.
        var_uncond: unconditional variance b > 0.
        scale: the total CFG scale.

    Returns:
        Moments of the output, which is Gaussian.

    Raises:
        ValueError: for variances that are not positive.
    """
    mean, a, b, scale = _prepare(mean, var_cond, var_uncond, scale)
    log_ratio = np.log(b / a)
    # With L = log(b / a), each is a ratio of (exp(k L) - 1) / (k L), which is 1 at 0.
    shift = scale * np.exp(log_ratio) * _growth(-scale * log_ratio) / _growth(log_ratio)
    spread = _growth((2 * scale - 1) * log_ratio) / _growth(log_ratio)
    return Moments(mean * shift, a * np.exp((2 - 2 * scale) * log_ratio) * spread)


def tilted_moments(
    mean: ArrayLike, var_cond: ArrayLike, var_uncond: ArrayLike, scale: ArrayLike
) -> Moments:
    """The normalized distribution ``p(x | label)^scale p(x)^(1 - scale)``.

    Precision ``scale / a + (1 - scale) / b``, mean ``scale m / a`` divided by it.

    Args:
        mean: conditional mean, where the unconditional one is 0.
        var_cond: conditional variance a > 0.
        var_uncond: unconditional variance b > 0.
        scale: the total CFG scale.

    Returns:
        Moments of that Gaussian.

    Raises:
        ValueError: for variances that are not positive, or if the precision is not, so
            that there is no such distribution.
    """
    mean, a, b, scale = _prepare(mean, var_cond, var_uncond, scale)
    precision = scale / a + (1 - scale) / b
    if (precision <= 0).any():
        raise ValueError(
            f"p(x | label)^scale p(x)^(1 - scale) cannot be normalized: its precision "
            f"is {precision.min():.3g}. Increase the unconditional variance or lower "
            f"the scale."
        )
    return Moments(scale * mean / (a * precision), 1 / precision)


def _prepare(*values: ArrayLike) -> list[np.ndarray]:
    arrays = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in values))
    if not all(np.isfinite(a).all() for a in arrays):
        raise ValueError("mean, variances and scale must be finite.")
    if (arrays[1] <= 0).any() or (arrays[2] <= 0).any():
        raise ValueError(
            f"variances must be above 0, got {arrays[1].min()} and {arrays[2].min()}."
        )
    return list(arrays)


def _growth(exponent: np.ndarray) -> np.ndarray:
    """``(exp(u) - 1) / u``, 1 at 0."""
    safe = np.where(exponent == 0, 1.0, exponent)
    return np.where(exponent == 0, 1.0, np.expm1(safe) / safe)


def _power_integral(excess, scale, low, high) -> np.ndarray:
    """Integral over t of ``(1 + excess t^2)^((scale - 1) / 2)``.

    With ``sqrt(excess) t = sinh(u)`` it is that of ``cosh(u)^scale``, and of a cosine
    if the excess is negative: smooth however different the variances are.
    """
    root = np.sqrt(np.abs(excess))
    safe = np.where(root == 0, 1.0, root)
    wide = excess > 0

    def angle(t):
        z = safe * t
        return np.where(wide, np.arcsinh(z), np.arcsin(np.minimum(z, 1.0)))

    start, end = angle(low), angle(high)
    middle, half = (start + end) / 2, (end - start) / 2
    u = middle[..., None] + half[..., None] * _NODES
    base = np.where(wide[..., None], np.cosh(u), np.cos(u))
    integral = half * np.sum(_WEIGHTS * base ** scale[..., None], axis=-1) / safe
    return np.where(root == 0, high - low, integral)
