"""Inception score: confident and varied predictions of a classifier."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class InceptionScore(NamedTuple):
    """Mean and spread over the parts of the set; higher is better.

    Attributes:
        mean: between 1 and the number of classes.
        std: standard deviation over the parts (divided by their number, as in the
            reference implementation); 0 for one part. No standard error of the mean.
    """

    mean: float
    std: float


def inception_score(probabilities: ArrayLike, num_splits: int = 10) -> InceptionScore:
    """``exp E_x KL(p(y | x) | p(y))`` of a classifier's predictions, part by part.

    The set is cut into ``num_splits`` contiguous parts in the order given, part ``i``
    from ``i n // num_splits`` to ``(i + 1) n // num_splits``, as in the reference
    implementation (openai/improved-gan); ``p(y)`` is the mean prediction in the part.
    **A set sorted by class reads too low**: each part has few classes. Shuffle it, or
    use one part.

    It says nothing of the truth: one perfect image for each class scores best. It falls
    with fewer samples for each part, so compare equal numbers only.

    Args:
        probabilities: class probabilities, one row for each sample, ``[n, classes]``;
            rows sum to one within 1e-3. Zeros are allowed: ``0 log 0 = 0``.
        num_splits: number of parts, an integer from 1 to ``n``.

    Returns:
        ``InceptionScore``.

    Raises:
        ValueError: if the shape is wrong, an entry is negative or not finite, a row
            does not sum to one, or there are more parts than samples.

    References:
        Salimans et al., Improved techniques for training GANs, arXiv:1606.03498,
        section 4.
    """
    p = _check_probabilities(probabilities)
    whole = isinstance(num_splits, (int, np.integer))
    if not whole or isinstance(num_splits, bool) or not 1 <= num_splits <= len(p):
        raise ValueError(
            f"num_splits must be an integer from 1 to the number of samples, {len(p)}, "
            f"got {num_splits}."
        )
    edges = [i * len(p) // num_splits for i in range(num_splits + 1)]
    scores = [
        _score(p[start:stop]) for start, stop in zip(edges[:-1], edges[1:], strict=True)
    ]
    return InceptionScore(mean=float(np.mean(scores)), std=float(np.std(scores)))


def _score(p: np.ndarray) -> float:
    """One part's score, as entropies: no quotient of probabilities can overflow."""
    from scipy.special import entr  # SciPy comes with JAX

    information = entr(p.mean(axis=0)).sum() - entr(p).sum(axis=1).mean()
    return float(np.exp(information))


def _check_probabilities(probabilities: ArrayLike) -> np.ndarray:
    """Probabilities as float64 ``[n, classes]``."""
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or 0 in p.shape:
        raise ValueError(
            f"probabilities must have shape [n, classes] with at least one of each, "
            f"got {p.shape}."
        )
    bad = ~(np.isfinite(p) & (p >= 0)).all(axis=1)
    if bad.any():
        raise ValueError(
            f"probabilities must be finite and not negative; row {int(np.argmax(bad))} "
            f"is not. Pass the softmax of the classifier's logits."
        )
    sums = p.sum(axis=1)
    worst = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[worst] - 1) > 1e-3:
        raise ValueError(
            f"each row of probabilities must sum to one within 1e-3; row {worst} sums "
            f"to {sums[worst]:.6g}. Pass the softmax of the classifier's logits."
        )
    return p
