"""``full-models pack``: a complete set as one file, or folders of images or videos."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from full_models.generation.pack import PackLayout, complete_set, pack
from gmm_guidance._runtime.progress import Reporter


@dataclasses.dataclass(frozen=True)
class Pack:
    """Write a generated set as one .npz that evaluators read, or as single files."""

    set: Path
    """Directory of full-models generate, complete."""
    out: Path | None = None
    """Folder for the result; that of the set by default."""
    layout: PackLayout = "npz"
    """Layout: npz is samples_<n>x<H>x<W>x3.npz, folder is images/<index>.png, by-label
    is images/<label>/<index>.png. Videos are mp4 files in the folder videos."""
    fps: int = 16
    """Frames a second of mp4 files."""

    def run(self, reporter: Reporter) -> list[Path]:
        """Pack the set; returns the file or folder. Raises as ``pack``."""
        with reporter.task("packing", complete_set(self.set).num) as task:
            out = self.out or self.set
            return [pack(self.set, out, self.layout, task.move_to, self.fps)]
