"""Tilted distributions p(x | c)^w p(x)^(1 - w) on a grid, in float64."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp


class TiltedGrid:
    """A ``Mixture64`` tilted towards a label, as masses on an even grid of points."""

    def __init__(self, mixture, label, scale, reach, count):
        dim = mixture.means.shape[1]
        axis = np.linspace(-reach, reach, count)
        self.points = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1)
        self.points = self.points.reshape(-1, dim)
        self.cell = (axis[1] - axis[0]) ** dim
        own = mixture.log_prob(self.points, 0.0, label)
        whole = mixture.log_prob(self.points, 0.0)
        self.log_terms = scale * own + (1 - scale) * whole
        self.log_mass = logsumexp(self.log_terms) + np.log(self.cell)

    def mean(self):
        weights = np.exp(self.log_terms - logsumexp(self.log_terms))
        return weights @ self.points

    def sd(self):
        weights = np.exp(self.log_terms - logsumexp(self.log_terms))
        return np.sqrt(weights @ (self.points - self.mean()) ** 2)

    def log_prob(self, x, sigma):
        """Of the noised distribution at points ``[n, d]``."""
        terms = self._joint(x, sigma)
        dim = x.shape[1]
        constant = np.log(self.cell) - dim / 2 * np.log(2 * np.pi * sigma**2)
        return logsumexp(terms, axis=1) + constant - self.log_mass

    def denoise(self, x, sigma):
        """Posterior mean ``[n, d]``."""
        terms = self._joint(x, sigma)
        weights = np.exp(terms - logsumexp(terms, axis=1, keepdims=True))
        return weights @ self.points

    def _joint(self, x, sigma):
        distance = ((x[:, None] - self.points) ** 2).sum(-1)
        return self.log_terms - distance / (2 * sigma**2)
