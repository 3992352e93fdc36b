"""The density along CFG's probability flow, by its divergence, in float64.

The divergence of a denoiser is the trace of the posterior covariance over sigma^2, so
that ``log q_0 = log q_T + int_0^sigma_max (d - tr grad D) / sigma dsigma``.
"""

from __future__ import annotations

import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import softmax


def trace_of_covariance(mixture, x, sigma, label):
    """Of the posterior of a ``Mixture64``, ``[n]``."""
    part = mixture.part(label)
    r = softmax(part.log_terms(x, sigma), axis=1)
    gain = part.covariances @ np.linalg.inv(part._noised(sigma))
    means = part.means + np.einsum("kij,nkj->nki", gain, x[:, None] - part.means)
    within = sigma**2 * np.trace(gain, axis1=1, axis2=2)
    offset = means - part.denoise(x, sigma)[:, None]
    return np.einsum("nk,nk->n", r, within + (offset**2).sum(-1))


def flow(mixture, x, sigma_max, label, scale):
    """Outputs of the flow from ``x`` at ``sigma_max``, and log densities there."""
    count, dim = x.shape

    def slope(u, state):
        sigma = np.exp(u)
        x = state[: count * dim].reshape(count, dim)
        own, all_ = mixture.denoise(x, sigma, label), mixture.denoise(x, sigma)
        traces = (trace_of_covariance(mixture, x, sigma, c) for c in (label, None))
        trace_own, trace_all = traces
        divergence = (scale * trace_own + (1 - scale) * trace_all) / sigma**2
        guided = all_ + scale * (own - all_)
        return np.concatenate([(x - guided).ravel(), -(dim - divergence)])

    density = -0.5 * ((x / sigma_max) ** 2 + np.log(2 * np.pi * sigma_max**2)).sum(1)
    start = np.concatenate([x.ravel(), density])
    span = np.log(sigma_max), np.log(1e-4)
    end = solve_ivp(slope, span, start, rtol=1e-9, atol=1e-9).y[:, -1]
    return end[: count * dim].reshape(count, dim), end[count * dim :]
