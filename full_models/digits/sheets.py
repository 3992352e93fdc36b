"""Sheets of digits: a column for each class, a block of rows for each kind."""

from __future__ import annotations

from pathlib import Path

import jax
import matplotlib
import numpy as np

from full_models.digits.data import Digits
from full_models.models.dit.network import DiT
from gmm_guidance._runtime.files import atomic
from gmm_guidance._runtime.palette import FIGURE_SETTINGS
from gmm_guidance.diffusion.schedule import FlowSteps
from gmm_guidance.sampling.sample import guided_sample

matplotlib.use("Agg")  # figures go to files; no display is needed

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

NUM_CLASSES = 10


def draw_sheet(blocks: dict[str, np.ndarray], title: str | None = None) -> Figure:
    """A sheet with one block of rows for each entry.

    Args:
        blocks: images ``[rows * 10, 8, 8, 1]`` by name, the class changing fastest.
        title: above the sheet.
    """
    with plt.rc_context(FIGURE_SETTINGS):  # type: ignore[arg-type]
        heights = [len(images) // NUM_CLASSES for images in blocks.values()]
        figure, axes = plt.subplots(
            len(blocks),
            1,
            figsize=(3.6, 0.3 * sum(heights) + 0.08 * len(blocks) + 0.1),
            height_ratios=heights,
            squeeze=False,
        )
        for ax, (name, images) in zip(axes[:, 0], blocks.items(), strict=True):
            ax.imshow(_tile(images), cmap="gray_r", vmin=-1.0, vmax=1.0, aspect="equal")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            ax.set_ylabel(name, rotation=0, ha="right", va="center")
        if title:
            figure.suptitle(title, fontsize=8)
        return figure


def training_sheet(path: Path, network: DiT, digits: Digits) -> Path:
    """Real images beside what a network draws without guidance."""
    rows = 3
    labels = np.tile(np.arange(NUM_CLASSES, dtype=np.int32), rows)
    drawn = guided_sample(
        jax.random.key(0),
        network,
        labels,
        num_samples=len(labels),
        schedule=FlowSteps(20),
        solver="dpmpp_2m",
    )
    blocks = {
        "training\nimages": first_of_each_class(
            digits.train_images, digits.train_labels, rows
        ),
        "generated,\nno guidance": np.asarray(drawn),
    }
    figure = draw_sheet(blocks)
    try:
        with atomic(path) as temporary:
            figure.savefig(temporary)
    finally:
        plt.close(figure)
    return path


def first_of_each_class(
    images: np.ndarray, labels: np.ndarray, rows: int
) -> np.ndarray:
    """The first images of each class, the class changing fastest."""
    chosen = np.stack(
        [np.flatnonzero(labels == c)[:rows] for c in range(NUM_CLASSES)], axis=1
    )
    return images[chosen.reshape(-1)]


def _tile(images: np.ndarray) -> np.ndarray:
    """One picture, images apart by a light line."""
    rows = len(images) // NUM_CLASSES
    grid = np.asarray(images)[..., 0].reshape(rows, NUM_CLASSES, 8, 8)
    grid = np.pad(grid, [(0, 0), (0, 0), (0, 1), (0, 1)], constant_values=-1.0)
    return grid.transpose(0, 2, 1, 3).reshape(rows * 9, NUM_CLASSES * 9)[:-1, :-1]
