"""Two classes of one Gaussian each, at -2 and 2, of variance 1: total variance 5.

Its denoisers are written out here, in NumPy; label 2 means no condition.
"""

from __future__ import annotations

import numpy as np

SCALE = np.sqrt(5.0)


def posterior(x, sigma, label):
    """Mean and variance of the clean sample."""
    own = [(x + sigma**2 * m) / (1 + sigma**2) for m in (-2.0, 2.0)]
    spread = sigma**2 / (1 + sigma**2)
    right = 1 / (1 + np.exp(-4.0 * x / (1 + sigma**2)))
    right = np.where(label == 2, right, label)
    mean = (1 - right) * own[0] + right * own[1]
    return mean, spread + right * (1 - right) * (own[1] - own[0]) ** 2


def draws(dropout, count=20_000):
    """Noisy samples, levels and labels as in training, and EDM's weight of the loss."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, count)
    clean = np.where(label == 1, 2.0, -2.0) + rng.normal(size=count)
    sigma = SCALE * np.exp(-0.8 + 1.6 * rng.normal(size=count))
    x = clean + sigma * rng.normal(size=count)
    label = np.where(rng.random(count) < dropout, 2, label)
    return x, sigma, label, (sigma**2 + SCALE**2) / (sigma * SCALE) ** 2
