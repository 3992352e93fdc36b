"""``full-models pack``: a complete set as one file, or as folders of images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from full_models.generation.pack import PackLayout, complete_plan, pack
from gmm_guidance._runtime.reporter import Reporter


@dataclasses.dataclass(frozen=True)
class Pack:
    """Write a generated set as the one .npz that FID evaluators read, or as images."""

    run: Path
    """Directory of full-models generate, complete."""
    out: Path | None = None
    """Folder for the result; the run's own by default."""
    layout: PackLayout = "npz"
    """npz: samples_<n>x<H>x<W>x3.npz; folder: images/<index>.png; by-label:
    images/<label>/<index>.png."""


def run_pack(config: Pack, reporter: Reporter) -> list[Path]:
    """Run the command; returns the file or folder. Raises as ``pack``."""
    with reporter.task("packing", complete_plan(config.run).num) as task:
        return [pack(config.run, config.out or config.run, config.layout, task.move_to)]
