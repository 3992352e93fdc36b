"""The handwritten digits that scikit-learn ships: 1,797 images of 8 x 8 pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

HELD_OUT = 540
_SPLIT_SEED = 0


class Digits(NamedTuple):
    """Images ``[n, 8, 8, 1]`` in [-1, 1], float32, and labels ``[n]``, int32.

    Attributes:
        train_images: 1,257 images.
        train_labels: theirs.
        held_images: 540 images that no network and no classifier is trained on.
        held_labels: theirs.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    held_images: np.ndarray
    held_labels: np.ndarray


def load_digits() -> Digits:
    """The digits, split once and for all with equal shares of each class.

    From the UCI repository's "Optical Recognition of Handwritten Digits" (Alpaydin &
    Kaynak 1998), as distributed with scikit-learn; nothing is downloaded.

    Raises:
        ImportError: without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn; pip install 'gmm-guidance[digits]'."
        ) from error
    found = load()
    images = (found.images.astype(np.float32) / 8.0 - 1.0)[..., None]
    labels = found.target.astype(np.int32)
    train, held = train_test_split(
        np.arange(len(labels)),
        test_size=HELD_OUT,
        random_state=_SPLIT_SEED,
        stratify=labels,
    )
    return Digits(images[train], labels[train], images[held], labels[held])
