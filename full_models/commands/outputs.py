"""What ``sample`` writes: images, a grid, arrays and the record's results."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from full_models.commands.drawing import machine
from full_models.generation.images import grid_columns, make_grid, save_png
from full_models.models.dit.labels import label_name
from full_models.models.dit.network import DiT


def write_samples(
    folder: Path, samples: np.ndarray, images: np.ndarray | None, labels: np.ndarray
) -> None:
    """``samples.npz``; with images also a grid and single files."""
    arrays = {"samples": samples, "labels": labels.astype(np.int32)}
    if images is not None:
        # The key that evaluators of the field read.
        arrays = {"arr_0": images, **arrays}
        columns = grid_columns(len(labels), len(set(labels.tolist())))
        save_png(folder / "grid.png", make_grid(images, columns))
        (folder / "images").mkdir()
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            save_png(folder / "images" / f"{index:06d}-{label}.png", image)
    np.savez(folder / "samples.npz", allow_pickle=False, **arrays)


def results(network: DiT, labels: np.ndarray) -> dict[str, Any]:
    """What ``run.json`` says besides the options."""
    return {
        "network": dataclasses.asdict(network.config),
        "labels": labels.tolist(),
        "label_names": [label_name(i, network.num_labels) for i in labels],
        "machine": machine(),
    }
