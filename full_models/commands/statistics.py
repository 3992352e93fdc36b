"""``full-models features`` and ``statistics``: numbers of images by their features."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from rich.table import Table

import gmm_guidance as gg
from full_models.generation.fingerprint import fingerprint
from full_models.statistics import (
    extract_features,
    load_callable,
    load_features,
    measure,
    open_images,
    save_features,
)
from full_models.statistics.measure import STATISTICS
from gmm_guidance._runtime.files import jsonable, write_text
from gmm_guidance._runtime.reporter import Reporter

_TITLES = {name: name.replace("_", " ") for name in STATISTICS} | {
    "frechet_distance": "Fréchet distance"
}
_CALCULATIONS = 4  # of ``measure``, of which some give two numbers


@dataclasses.dataclass(frozen=True)
class Features:
    """Extract features of images with a function of your own, for "statistics"."""

    images: Path
    """.npz with "arr_0", uint8 [n, H, W, 3], as "sample" writes it; or a folder of PNG
    and JPEG files."""
    using: str
    """package.module:function; takes uint8 images [n, H, W, 3] and returns features
    [n, d], or a pair of these and logits [n, classes]. The module must be installed or
    on PYTHONPATH."""
    out: Path
    """The .npz file of features; replaced if it is there."""
    batch_size: int = 64
    """Images at once."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Fréchet distance, precision, recall, density, coverage and inception score."""

    features: Path
    """.npz of the generated images' features: "features" [n, d], perhaps "logits" or
    "probabilities" [n, classes]."""
    reference: Path
    """.npz of real images' features; or of their moments "mu" and "sigma" alone, which
    do for the Fréchet distance."""
    out: Path | None = None
    """JSON file of the numbers; replaced if it is there."""
    nearest: int = 5
    """Nearest neighbours of precision, recall, density and coverage."""
    splits: int = 10
    """Parts of the inception score."""


def extract(config: Features, reporter: Reporter) -> list[Path]:
    """Run ``features``; returns the file.

    Raises:
        ValueError: for images, a function or an output path that will not do.
        ImportError: if the function cannot be found.
        OSError: if a file cannot be read or written.
    """
    if config.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {config.batch_size}.")
    if config.out.suffix != ".npz":
        raise ValueError(f"out must be a file ending in .npz, got {config.out}.")
    _check_writable(config.out)
    images = open_images(config.images)
    function = load_callable(config.using)
    with reporter.task("features", images.count) as task:
        found = extract_features(
            function, images.batches(config.batch_size), progress=task.move_to
        )
    also = "" if found.logits is None else f", logits of {found.logits.shape[1]}"
    reporter.say(f"{found.count} images, features of {found.dim} dimensions{also}")
    return [save_features(config.out, found)]


def statistics(config: Statistics, reporter: Reporter) -> list[Path]:
    """Run ``statistics``; returns the file, if one was asked for.

    Raises:
        ValueError: for files that are damaged, incomplete or do not fit each other.
        OSError: if a file cannot be read or written.
    """
    if config.out is not None:
        _check_writable(config.out)
    samples = load_features(config.features)
    reference = load_features(config.reference)
    with reporter.task("statistics", _CALCULATIONS) as task:
        found = measure(
            samples,
            reference,
            nearest=config.nearest,
            splits=config.splits,
            progress=lambda name: task.advance(detail=name),
        )
    reporter.console.print(_table(found))
    for warning in found["warnings"]:
        reporter.say(f"warning: {warning}")
    if config.out is None:
        return []
    return [write_text(config.out, _record(config, found))]


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


def _record(config: Statistics, found: dict[str, Any]) -> str:
    files = {
        name: {"path": str(path), "sha256": fingerprint(path)}
        for name, path in (
            ("features", config.features),
            ("reference", config.reference),
        )
    }
    record = {"files": files, "statistics": found, "gmm_guidance": gg.__version__}
    return json.dumps(jsonable(record), indent=1) + "\n"
