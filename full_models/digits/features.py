"""A small classifier of the digits: what class an image shows, and features of it.

Fréchet distances between real and generated images are taken in these features, as
those of ImageNet are in the features of an Inception network.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from full_models.digits.data import load_digits


@dataclasses.dataclass(frozen=True)
class DigitsClassifier:
    """A perceptron with one hidden layer of 64 ReLU units, in float64.

    Attributes:
        hidden_weights: ``[64, 64]``, from pixels to units.
        hidden_bias: ``[64]``.
        output_weights: ``[64, 10]``.
        output_bias: ``[10]``.
    """

    hidden_weights: np.ndarray
    hidden_bias: np.ndarray
    output_weights: np.ndarray
    output_bias: np.ndarray

    def features(self, images: np.ndarray) -> np.ndarray:
        """The hidden layer's values, ``[n, 64]`` float64, of ``[n, 8, 8, 1]``."""
        flat = _as_pixels(images)
        return np.maximum(flat @ self.hidden_weights + self.hidden_bias, 0.0)

    def class_probabilities(self, images: np.ndarray) -> np.ndarray:
        """Probability of each class, ``[n, 10]``, of images ``[n, 8, 8, 1]``."""
        logits = self.features(images) @ self.output_weights + self.output_bias
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of images whose most probable class is the intended one."""
        return float(np.mean(self.class_probabilities(images).argmax(1) == labels))


@functools.cache
def digits_classifier() -> DigitsClassifier:
    """The classifier, trained on the training images in a few seconds; always the same.

    Raises:
        ImportError: without scikit-learn.
    """
    digits = load_digits()
    from sklearn.neural_network import MLPClassifier

    fitted = MLPClassifier((64,), max_iter=400, alpha=1e-3, random_state=0).fit(
        _as_pixels(digits.train_images), digits.train_labels
    )
    hidden, output = (w.astype(np.float64) for w in fitted.coefs_)
    hidden_bias, output_bias = (b.astype(np.float64) for b in fitted.intercepts_)
    return DigitsClassifier(hidden, hidden_bias, output, output_bias)


def _as_pixels(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images, np.float64)
    if images.ndim != 4 or images.shape[1:] != (8, 8, 1):
        raise ValueError(f"images must have shape [n, 8, 8, 1], got {images.shape}.")
    if not np.isfinite(images).all():
        raise ValueError("images must be finite, got NaN or infinite pixels.")
    return images.reshape(len(images), 64)
