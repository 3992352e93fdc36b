"""``full-models sample``: some images of a model under S²-Guidance."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gmm_guidance as gg
from full_models.commands.options import (
    DrawOptions,
    GuidanceOptions,
    LoadedRun,
    ModelOptions,
    Run,
)
from full_models.generation.images import grid_columns, make_grid, save_png
from full_models.generation.run_folder import RunFolder, machine
from full_models.generation.sampler import Batch, unused_places
from full_models.generation.videos import (
    WRITER,
    contact_sheet,
    has_writer,
    save_mp4,
)
from gmm_guidance._runtime.progress import Reporter


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw images: a grid, single PNG files, samples.npz and run.json; or videos."""

    model: ModelOptions
    out: Path
    """Output directory; absent or empty."""
    draw: DrawOptions = DrawOptions()
    guidance: GuidanceOptions = GuidanceOptions()
    fps: int = 16
    """Frames a second of video files."""

    def run(self, reporter: Reporter) -> list[Path]:
        """Draw and write the images; returns the files."""
        run = Run.of(self.model, self.draw, self.guidance)
        with RunFolder(self.out, {"command": "sample", **run.describe()}) as folder:
            loaded = run.load()
            labels = loaded.labels()
            reporter.say(
                f"{run.checkpoint.title}; {len(labels)} samples, {run.draw.steps} "
                f"steps of {run.draw.solver}{loaded.label_names()}"
            )
            drawn = draw("sampling", loaded, loaded.rule(), reporter)
            reporter.say(drawn.speed())
            writer = _write(folder.path, drawn, labels, self.fps)
            folder.record({**results(run, labels), **drawn.numbers(), **writer})
        return folder.files()


class Drawn(NamedTuple):
    """Samples of one rule.

    Attributes:
        samples: as the model has them, float32 ``[n, (T,) H, W, C]``.
        images: bytes ``[n, (F,) H', W', 3 or 1]``; ``None`` for latents without a
            decoder.
        seconds: wall time of sampling, with compilation.
        images_per_second: without compilation.
        passes_per_image: expected forward passes of the network.
    """

    samples: np.ndarray
    images: np.ndarray | None
    seconds: float
    images_per_second: float
    passes_per_image: float

    def numbers(self) -> dict[str, float]:
        """Times and passes, for the record."""
        names = ("seconds", "images_per_second", "passes_per_image")
        return {name: getattr(self, name) for name in names}

    def speed(self) -> str:
        """Times and passes, for the terminal."""
        return (
            f"{len(self.samples)} samples in {self.seconds:.1f} s with compilation, "
            f"{self.images_per_second:.3g} samples/s without, "
            f"{self.passes_per_image:.1f} passes each"
        )


def draw(
    name: str, loaded: LoadedRun, rule: gg.GuidanceRule, reporter: Reporter
) -> Drawn:
    """Draw the samples of a run under a rule, with progress."""
    labels, num = loaded.labels(), loaded.run.draw.num
    batches: list[Batch] = []
    begun = time.monotonic()
    with reporter.task(name, num) as task:
        task.detail("compiling")
        # Not by the number of devices: what one computes together decides last bits.
        sampler = loaded.sampler(rule, min(loaded.run.draw.batch_size, num))
        if note := unused_places((num,), sampler.samples_at_once):
            reporter.say(f"{name}: {note}")
        compiled = time.monotonic()
        task.begin()
        for start in range(0, num, sampler.samples_at_once):
            stop = min(start + sampler.samples_at_once, num)
            batches.append(sampler.draw(np.arange(start, stop), labels[start:stop]))
            speed = stop / max(time.monotonic() - compiled, 1e-9)
            task.move_to(stop, f"{speed:.3g} samples/s")
    images = [b.images for b in batches if b.images is not None]
    return Drawn(
        np.concatenate([b.samples for b in batches]),
        np.concatenate(images) if images else None,
        time.monotonic() - begun,
        speed,
        loaded.passes(rule),
    )


def results(run: Run, labels: np.ndarray) -> dict[str, Any]:
    """What ``run.json`` says of any drawing besides its description."""
    return {
        "labels": labels.tolist(),
        "label_names": [run.pipeline.label_name(int(label)) for label in labels],
        "machine": machine(),
    }


def _write(folder: Path, drawn: Drawn, labels: np.ndarray, fps: int) -> dict[str, Any]:
    """``samples.npz``; with images also a grid and single files.

    Videos have a row of frames each in the grid, and mp4 files where PyAV is there.
    Returns what the record says of these.
    """
    arrays, images = {"samples": drawn.samples, "labels": labels}, drawn.images
    record: dict[str, Any] = {}
    if images is not None:
        # The key that the evaluators of the field read.
        arrays = {"arr_0": images, **arrays}
        names = [f"{index:06d}-{label}" for index, label in enumerate(labels)]
        if images.ndim == 5:
            save_png(folder / "grid.png", contact_sheet(images))
            if has_writer():
                (folder / "videos").mkdir()
                for name, frames in zip(names, images, strict=True):
                    save_mp4(folder / "videos" / f"{name}.mp4", frames, fps)
                record = {"video": {**WRITER, "fps": fps}}
        else:
            columns = grid_columns(len(labels), len(set(labels.tolist())))
            save_png(folder / "grid.png", make_grid(images, columns))
            (folder / "images").mkdir()
            for name, image in zip(names, images, strict=True):
                save_png(folder / "images" / f"{name}.png", image)
    np.savez(folder / "samples.npz", allow_pickle=False, **arrays)
    return record
