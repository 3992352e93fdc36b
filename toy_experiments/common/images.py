"""Small image data: transformers trained on them, samples and measures.

Samples are compared with real images in the features of a small classifier, as those of
ImageNet are in the features of an Inception network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from scipy.spatial.distance import cdist

import gmm_guidance as gg
from full_models import DiT, DiTConfig, as_stack
from full_models.training import DiTTraining, train_dit
from toy_experiments.common.records import Record
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.sweep import draw_samples_of

MEASURES = {
    "frechet": "Fréchet distance",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "nearest": "nearest training image",
}


class ImageData(NamedTuple):
    """Images ``[n, H, W, C]`` in [-1, 1], float32, and labels ``[n]``, int32.

    Attributes:
        train_images: images for training.
        train_labels: their labels.
        held_images: images that no network and no classifier is trained on.
        held_labels: their labels.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    held_images: np.ndarray
    held_labels: np.ndarray


# -- training --------------------------------------------------------------------------


def trained_transformers(
    store: Store, data: ImageData, config: DiTConfig, training: DiTTraining, seed: int
) -> dict[int, gg.ProcessStack]:
    """The averaged network at each snapshot of one training run."""
    arrays = store.cell(
        train_transformer, data.train_images, data.train_labels, config, training, seed
    )
    abstract = jax.eval_shape(lambda: as_stack(DiT(config, rngs=nnx.Rngs(0))))
    leaves, structure = jax.tree.flatten(abstract)
    return {
        step: jax.tree.unflatten(
            structure, [arrays[f"{step}/{i}"] for i in range(len(leaves))]
        )
        for step in training.snapshots
    }


def train_transformer(
    context: Context,
    images: np.ndarray,
    labels: np.ndarray,
    config: DiTConfig,
    training: DiTTraining,
    seed: int,
) -> Arrays:
    """Train; the arrays of the network at each snapshot. Resumes bit for bit."""
    title = f"training a transformer on images, seed {seed}"
    with context.reporter.task(title, training.num_steps) as task:
        networks = train_dit(
            jax.random.key(seed),
            images,
            labels,
            config,
            training,
            progress=lambda report: task.move_to(report.step, report.detail),
            checkpoint=context.checkpoint,
            mesh=context.mesh,
        )
    return {
        f"{step}/{i}": np.asarray(leaf)
        for step, network in networks.items()
        for i, leaf in enumerate(jax.tree.leaves(network))
    }


# -- measuring -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A perceptron with one hidden layer of ReLU units, in float64.

    Attributes:
        weights: matrices from pixels to hidden units and on to classes.
        biases: their biases.
    """

    weights: tuple[np.ndarray, np.ndarray]
    biases: tuple[np.ndarray, np.ndarray]

    @classmethod
    def fit(cls, images: np.ndarray, labels: np.ndarray, units: int) -> Classifier:
        """Train by scikit-learn; the same for the same images."""
        from sklearn.neural_network import MLPClassifier

        fitted = MLPClassifier((units,), max_iter=400, alpha=1e-3, random_state=0)
        fitted.fit(_flat(images), labels)
        weights, biases = (
            tuple(np.asarray(a, np.float64) for a in arrays)
            for arrays in (fitted.coefs_, fitted.intercepts_)
        )
        return cls(weights, biases)  # type: ignore[arg-type]

    def features(self, images: np.ndarray) -> np.ndarray:
        """Values of the hidden layer, ``[n, units]``."""
        return np.maximum(_flat(images) @ self.weights[0] + self.biases[0], 0.0)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The most probable class of each image, ``[n]``."""
        logits = self.features(images) @ self.weights[1] + self.biases[1]
        return logits.argmax(1)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Fraction of images whose most probable class is the intended one."""
        return float(np.mean(self.predict(images) == labels))


def _flat(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images, np.float64)
    if not np.isfinite(images).all():
        raise ValueError(
            "images must be finite, got NaN or infinite pixels; sample with more steps "
            "or smaller scales."
        )
    return images.reshape(len(images), -1)


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real images that sets of ``count`` samples are measured against.

    The Fréchet distance is to the training images: there are more of them, and a
    reference common to all sets needs no particular size. Precision, recall, density
    and coverage depend on the sizes of both sets, so they compare with equally many
    held-out images. The nearest training image, in pixels, tells copies: below its
    value for held-out images, samples are closer to the training images than new
    images are.

    Attributes:
        data: the real images.
        classifier: gives classes and features.
        count: size of the sets, at most that of the held-out set.
    """

    data: ImageData
    classifier: Classifier
    count: int

    @property
    def labels(self) -> np.ndarray:
        """Intended classes of samples: those of the held-out images."""
        return self.data.held_labels[: self.count]

    def measure(
        self, images: np.ndarray, labels: np.ndarray | None = None
    ) -> dict[str, float]:
        """The values of ``MEASURES``, for the classes of the held-out images."""
        if len(images) != self.count:
            raise ValueError(f"expected {self.count} images, got {len(images)}.")
        train = self.data.train_images
        features = self.classifier.features(images)
        held = self.classifier.features(self.data.held_images[: self.count])
        moments = gg.metrics.feature_moments(self.classifier.features(train))
        precision, recall = gg.metrics.precision_recall(held, features)
        density, coverage = gg.metrics.density_coverage(held, features)
        labels = self.labels if labels is None else labels
        return {
            "frechet": gg.metrics.frechet_distance(features, moments),
            "accuracy": self.classifier.accuracy(images, labels),
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
            "nearest": float(cdist(_flat(images), _flat(train)).min(1).mean()),
        }

    def floors(self) -> dict[str, float]:
        """The measures of real images in place of generated ones.

        Held-out images, except where these are the reference themselves: precision to
        coverage are those of training images of the same classes.
        """
        held = self.measure(self.data.held_images[: self.count])
        places = np.empty(self.count, int)
        for label in np.unique(self.labels):
            wanted = np.flatnonzero(self.labels == label)
            found = np.flatnonzero(self.data.train_labels == label)
            places[wanted] = found[: len(wanted)]
        train = self.measure(self.data.train_images[places])
        against_held = ("precision", "recall", "density", "coverage")
        return {name: (train if name in against_held else held)[name] for name in held}


def measured_samples(
    context: Context,
    network: Any,
    rule: gg.GuidanceRule,
    reference: Reference,
    schedule: Any,
    solver: str,
    key: int,
) -> dict[str, Any]:
    """Images under a rule and their measures.

    The starting noise depends on key and index alone: sample ``i`` starts alike under
    every rule and with every network.
    """
    images = draw_samples_of(
        network,
        rule,
        schedule,
        jax.random.key(key),
        reference.labels,
        mesh=context.mesh,
        solver=solver,
    )
    return {"images": images} | reference.measure(images)


def measures(cell: dict[str, Any]) -> Record:
    """The measures in a cell of ``measured_samples``."""
    return {name: float(cell[name]) for name in MEASURES}


# -- sheets ----------------------------------------------------------------------------


def places_by_class(labels: np.ndarray, rows: int) -> np.ndarray:
    """Indices of the first images of each class, the class changing fastest."""
    count = labels.max() + 1
    rows = min(rows, int(np.bincount(labels, minlength=count).min()))
    return np.stack(
        [np.flatnonzero(labels == c)[:rows] for c in range(count)], axis=1
    ).reshape(-1)


def draw_sheet(
    names: Sequence[str], blocks: np.ndarray, columns: int, title: str
) -> Figure:
    """A sheet with a block of rows for each name and a column for each class.

    Args:
        names: titles of the blocks.
        blocks: images ``[blocks, rows * columns, H, W, 1]``.
        columns: number of classes.
        title: above the sheet.
    """
    rows = blocks.shape[1] // columns
    figure, axes = plt.subplots(
        len(names),
        1,
        figsize=(3.6, (0.3 * rows + 0.08) * len(names) + 0.1),
        squeeze=False,
    )
    for ax, name, images in zip(axes[:, 0], names, blocks, strict=True):
        tiles = images[..., 0].reshape(rows, columns, *images.shape[1:3])
        tiles = np.pad(tiles, [(0, 0), (0, 0), (0, 1), (0, 1)], constant_values=-1.0)
        height, width = tiles.shape[2:]
        picture = tiles.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
        ax.imshow(picture[:-1, :-1], cmap="gray_r", vmin=-1, vmax=1, aspect="equal")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=8)
    return figure
