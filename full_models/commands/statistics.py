"""``full-models features`` and ``statistics``: numbers of images by their features."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from rich.table import Table

import gmm_guidance as gg
from full_models.statistics import (
    extract_features,
    load_callable,
    load_features,
    measure,
    open_images,
    save_features,
)
from full_models.statistics.measure import STATISTICS
from gmm_guidance._runtime.files import jsonable, sha256, write_text
from gmm_guidance._runtime.progress import Reporter

_TITLES = {name: name.replace("_", " ") for name in STATISTICS} | {
    "frechet_distance": "Fréchet distance"
}
_CALCULATIONS = 4  # of ``measure``, of which some give two numbers


@dataclasses.dataclass(frozen=True)
class Features:
    """Extract features of images with a custom function, for "statistics"."""

    images: Path
    """Images: an .npz file with "arr_0", uint8 [n, H, W, 3], as "sample" writes it; or
    a folder of PNG and JPEG files."""
    using: str
    """Function, as package.module:function, of uint8 images [n, H, W, 3]; it returns
    features [n, d], or a pair of these and logits [n, classes]. The module must be
    installed or on PYTHONPATH."""
    out: Path
    """Output file (.npz) of the features; replaced if it exists."""
    batch_size: int = 64
    """Number of images in a batch."""

    def run(self, reporter: Reporter) -> list[Path]:
        """Extract the features; returns the file."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        if self.out.suffix != ".npz":
            raise ValueError(f"out must be a file ending in .npz, got {self.out}.")
        _check_writable(self.out)
        images = open_images(self.images)
        function = load_callable(self.using)
        with reporter.task("features", images.count) as task:
            found = extract_features(
                function, images.batches(self.batch_size), progress=task.move_to
            )
        also = "" if found.logits is None else f", logits of {found.logits.shape[1]}"
        reporter.say(f"{found.count} images, features of {found.dim} dimensions{also}")
        return [save_features(self.out, found)]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Compute Fréchet distance, precision, recall, coverage and the like."""

    features: Path
    """Features (.npz) of the generated images: "features" [n, d], perhaps "logits"
    or "probabilities" [n, classes]."""
    reference: Path
    """Features (.npz) of real images; or their moments "mu" and "sigma" alone, enough
    for the Fréchet distance."""
    out: Path | None = None
    """Output file (JSON) of the statistics; replaced if it exists."""
    nearest: int = 5
    """Number of nearest neighbors for precision, recall, density and coverage."""
    splits: int = 10
    """Number of parts over which the inception score is averaged."""

    def run(self, reporter: Reporter) -> list[Path]:
        """Compute the statistics; returns the file, if one was asked for."""
        if self.out is not None:
            _check_writable(self.out)
        samples = load_features(self.features)
        reference = load_features(self.reference)
        with reporter.task("statistics", _CALCULATIONS) as task:
            found = measure(
                samples,
                reference,
                nearest=self.nearest,
                splits=self.splits,
                progress=lambda name: task.advance(detail=name),
            )
        reporter.console.print(_table(found))
        for warning in found["warnings"]:
            reporter.say(f"warning: {warning}")
        if self.out is None:
            return []
        return [write_text(self.out, _record(self, found))]


def _check_writable(path: Path) -> None:
    """Refuse a path before anything is computed for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"the folder of {path} cannot be made ({error.strerror}); choose another "
            f"with --out."
        ) from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise OSError(
            f"{path} must be a file in a folder that can be written; choose another "
            f"with --out."
        )


def _table(found: dict[str, Any]) -> Table:
    samples, reference = found["num_samples"], found["num_reference"]
    table = Table(
        title=f"{_amount(samples)} against {_amount(reference)}, "
        f"{found['dim']} dimensions"
    )
    table.add_column("statistic")
    table.add_column("value", justify="right")
    for name, title in _TITLES.items():
        if name in found:
            spread = found.get(f"{name}_std")
            value = f"{found[name]:.6g}"
            table.add_row(title, value if spread is None else f"{value} ± {spread:.2g}")
    return table


def _amount(count: int | None) -> str:
    return "moments" if count is None else f"{count} samples"


def _record(options: Statistics, found: dict[str, Any]) -> str:
    files = {
        name: {"path": str(path), "sha256": sha256(path)}
        for name, path in (
            ("features", options.features),
            ("reference", options.reference),
        )
    }
    record = {"files": files, "statistics": found, "gmm_guidance": gg.__version__}
    return json.dumps(jsonable(record), indent=1) + "\n"
