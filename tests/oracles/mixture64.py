"""A Gaussian mixture under noise in NumPy float64, written out from the textbook.

Shares nothing with the library: full covariances and their inverses, no eigenvectors.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import logsumexp, softmax


@dataclasses.dataclass(frozen=True)
class Mixture64:
    """Parameters ``[K, d]``, ``[K, d, d]``, ``[K]``, ``[K]``."""

    means: np.ndarray
    covariances: np.ndarray
    weights: np.ndarray
    labels: np.ndarray

    @classmethod
    def build(cls, means, covariances, weights=None, labels=None) -> Mixture64:
        """From the notations that the library takes."""
        means = np.asarray(means, np.float64)
        count, dim = means.shape
        given = np.asarray(covariances, np.float64)
        full = np.empty((count, dim, dim))
        for k in range(count):
            own = given if given.ndim == 0 else given[k]
            full[k] = own if own.ndim == 2 else np.diag(np.broadcast_to(own, dim))
        weights = np.ones(count) / count if weights is None else np.asarray(weights)
        labels = np.zeros(count, int) if labels is None else np.asarray(labels)
        return cls(means, full, np.asarray(weights, np.float64), labels)

    def part(self, label: int | None) -> Mixture64:
        """Only the components of a label, renormalized."""
        if label is None or label == self.labels.max() + 1:
            return self
        own = self.labels == label
        weights = self.weights[own] / self.weights[own].sum()
        return Mixture64(
            self.means[own], self.covariances[own], weights, np.zeros(own.sum(), int)
        )

    def _noised(self, sigma):
        return self.covariances + sigma**2 * np.eye(self.means.shape[1])

    def log_terms(self, x, sigma):
        """Log of weight times density of each component, ``[n, K]``."""
        noised = self._noised(sigma)
        difference = x[:, None] - self.means
        precision = np.linalg.inv(noised)
        distance = np.einsum("nki,kij,nkj->nk", difference, precision, difference)
        log_det = np.linalg.slogdet(2 * np.pi * noised)[1]
        return np.log(self.weights) - 0.5 * (log_det + distance)

    def log_prob(self, x, sigma, label=None):
        """``[n]``."""
        return logsumexp(self.part(label).log_terms(x, sigma), axis=1)

    def score(self, x, sigma, label=None):
        """``[n, d]``."""
        part = self.part(label)
        r = softmax(part.log_terms(x, sigma), axis=1)
        precision = np.linalg.inv(part._noised(sigma))
        return np.einsum("nk,kij,nkj->ni", r, precision, part.means - x[:, None])

    def denoise(self, x, sigma, label=None):
        """Posterior mean by the Kalman gain of each component, ``[n, d]``."""
        part = self.part(label)
        r = softmax(part.log_terms(x, sigma), axis=1)
        gain = part.covariances @ np.linalg.inv(part._noised(sigma))
        moved = np.einsum("kij,nkj->nki", gain, x[:, None] - part.means)
        return np.einsum("nk,nki->ni", r, part.means + moved)

    def label_posterior(self, x, sigma):
        """Bayes' rule, ``[n, num_labels]``."""
        r = softmax(self.log_terms(x, sigma), axis=1)
        return np.stack(
            [r[:, self.labels == c].sum(axis=1) for c in range(self.labels.max() + 1)],
            axis=1,
        )

    def draw(self, rng, count):
        """Clean samples ``[count, d]`` and their labels."""
        component = rng.choice(len(self.weights), count, p=self.weights)
        x = np.empty((count, self.means.shape[1]))
        for k in range(len(self.weights)):
            own = component == k
            x[own] = rng.multivariate_normal(
                self.means[k], self.covariances[k], own.sum()
            )
        return x, self.labels[component]
