"""A denoiser that is Gaussian under each of two conditions, and what guidance makes.

Given a label the data are N(mean, a) in every coordinate, without one N(0, b). The
denoiser is written for the tests (posterior mean of a Gaussian), and CFG's flow from
any finite noise level is affine with the coefficients of Bradley & Nakkiran (arXiv
2408.09000) as in ``toy_theory.md`` 3.3.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from scipy.integrate import quad


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TwoGaussians:
    """``D(x, sigma, label)``; a pytree of numbers, so that all share a program."""

    mean: Any
    a: Any
    b: Any

    def __call__(self, x, sigma, label):
        mean, variance = (0.0, self.b) if label is None else (self.mean, self.a)
        return mean + variance / (variance + sigma**2) * (x - mean)


def exact_flow(mean, variance, x, sigma_start, sigma_end=0.0):
    """Probability flow of one Gaussian from one noise level to another."""
    gain = np.sqrt((variance + sigma_end**2) / (variance + sigma_start**2))
    return mean + gain * (x - mean)


def guided_flow(mean, a, b, scale, sigma_start):
    """Slope and intercept of CFG's map from noise at ``sigma_start`` to samples."""

    def phi(v):
        return (a + v) ** (scale / 2) * (b + v) ** ((1 - scale) / 2)

    # In v = sigma^2 the integrand spans many decades: integrate over log(1 + v).
    def integrand(u):
        v = np.expm1(u)
        return 0.5 * scale * mean / ((a + v) * phi(v)) * np.exp(u)

    start = sigma_start**2
    total, _ = quad(integrand, 0, np.log1p(start), epsabs=1e-13, epsrel=1e-12)
    return phi(0.0) / phi(start), phi(0.0) * total
