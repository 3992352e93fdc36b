"""What is measured on images of the digits, and what real images read."""

from __future__ import annotations

import numpy as np

import gmm_guidance as gg
from full_models.digits.data import Digits
from full_models.digits.features import DigitsClassifier

MEASURES = (
    "frechet",
    "accuracy",
    "precision",
    "recall",
    "density",
    "coverage",
    "nearest",
)
TITLES = {
    "frechet": "Fréchet distance",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "nearest": "nearest training image",
}


class Measure:
    """Measures sets of images against the real ones.

    The Fréchet distance is to the training images: there are more of them, and a
    reference that all share needs no particular size. Precision, recall, density and
    coverage depend on the sizes of both sets, so they compare with equally many
    held-out images. The nearest training image, in pixels, tells copies: below what
    held-out images read, samples are closer to the training images than new digits are.

    Args:
        digits: the real images.
        classifier: gives classes and features.
        count: size of the sets, at most that of the held-out set.
    """

    def __init__(self, digits: Digits, classifier: DigitsClassifier, count: int):
        self.count = count
        self.labels = digits.held_labels[:count]
        self._digits = digits
        self._classifier = classifier
        train = classifier.features(digits.train_images)
        self._train_moments = gg.metrics.feature_moments(train)
        self._held = classifier.features(digits.held_images[:count])
        self._pixels = digits.train_images.reshape(len(digits.train_images), -1)

    def __call__(
        self, images: np.ndarray, labels: np.ndarray | None = None
    ) -> dict[str, float]:
        """The values of ``MEASURES``.

        Args:
            images: ``[count, 8, 8, 1]``.
            labels: intended classes; those of the held-out images by default.
        """
        if len(images) != self.count:
            raise ValueError(f"expected {self.count} images, got {len(images)}.")
        features = self._classifier.features(images)
        precision, recall = gg.metrics.precision_recall(self._held, features)
        density, coverage = gg.metrics.density_coverage(self._held, features)
        labels = self.labels if labels is None else labels
        return {
            "frechet": gg.metrics.frechet_distance(features, self._train_moments),
            "accuracy": self._classifier.accuracy(images, labels),
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
            "nearest": self._nearest(images),
        }

    def floors(self) -> dict[str, float]:
        """What real images read in place of generated ones.

        Held-out images, except where these are the reference themselves: precision to
        coverage are those of training images of the same classes.
        """
        held = self(self._digits.held_images[: self.count])
        train = self(self._matching_training_images())
        against_held = ("precision", "recall", "density", "coverage")
        return {name: (train if name in against_held else held)[name] for name in held}

    def _matching_training_images(self) -> np.ndarray:
        """Training images, one of the class of each held-out one."""
        places = np.empty(self.count, int)
        for label in np.unique(self.labels):
            wanted = np.flatnonzero(self.labels == label)
            found = np.flatnonzero(self._digits.train_labels == label)
            places[wanted] = found[: len(wanted)]
        return self._digits.train_images[places]

    def _nearest(self, images: np.ndarray) -> float:
        """Mean Euclidean distance to the nearest training image, pixels in [-1, 1]."""
        flat = images.reshape(len(images), -1).astype(np.float64)
        nearest = [
            np.sqrt(np.square(self._pixels - image).sum(axis=1).min()) for image in flat
        ]
        return float(np.mean(nearest))
