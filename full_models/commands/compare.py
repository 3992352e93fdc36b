"""``full-models compare``: the same seeds under several guidance rules."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from full_models.commands.options import (
    DrawOptions,
    GuidanceOptions,
    ModelOptions,
    Run,
)
from full_models.commands.sample import draw, results
from full_models.generation.run_folder import RunFolder
from full_models.generation.videos import (
    WRITER,
    contact_sheet,
    has_writer,
    save_mp4,
    side_by_side,
)
from gmm_guidance._runtime.progress import Reporter

_INCHES = 1.1  # of one image


@dataclasses.dataclass(frozen=True)
class Compare:
    """Draw the same seeds under several rules, side by side."""

    model: ModelOptions
    out: Path
    """Output directory; absent or empty."""
    draw: DrawOptions = DrawOptions(num=6)
    guidance: GuidanceOptions = GuidanceOptions()
    rules: str = "unguided,cfg,s2"
    """Names of the rules, with their defaults: cfg and s2 of the guidance options, pag,
    seg, slg, stg, tpg, apg, adg and more. Blocks are the middle one."""
    fps: int = 16
    """Frames a second of compare.mp4, the rules side by side, for models of videos."""

    def run(self, reporter: Reporter) -> list[Path]:
        """Draw all rules; returns the files. Raises as ``sample``."""
        run = Run.of(self.model, self.draw, self.guidance)
        cfg = dataclasses.replace(run.guidance, s2_scale=0.0)
        described = {"command": "compare", "rules": self.rules, **run.describe()}
        with RunFolder(self.out, described) as folder:
            loaded = run.load()
            labels = loaded.labels()
            without_s2 = dataclasses.replace(
                loaded, run=dataclasses.replace(run, guidance=cfg)
            )
            reporter.say(run.checkpoint.title)
            known = {
                "unguided": ("no guidance", gg.Unguided),
                "cfg": (f"CFG {cfg.cfg_scale:g}", without_s2.rule),
                "s2": (f"S² {run.guidance.s2_scale:g}", loaded.rule),
            }
            rules = {}
            for name in self.rules.split(","):
                named = functools.partial(loaded.named_rule, (name,))
                title, make = known.get(name, (name.upper(), named))
                rules[name, title] = make()
            arrays, images, passes, numbers = {"labels": labels}, {}, {}, {}
            writer: dict[str, Any] = {}
            for (key, title), rule in rules.items():
                drawn = draw(title, loaded, rule, reporter)
                reporter.say(f"{title}: {drawn.speed()}")
                arrays[key], numbers[title] = drawn.samples, drawn.numbers()
                passes[title] = drawn.passes_per_image
                if drawn.images is not None:
                    arrays[f"{key}_images"] = images[title] = drawn.images
            np.savez(folder.path / "samples.npz", allow_pickle=False, **arrays)
            if images:
                names = [run.pipeline.label_name(int(label)) for label in labels]
                figure = comparison_figure(images, passes, names)
                figure.savefig(folder.path / "compare.png", dpi=200)
                plt.close(figure)
            is_video = any(shown.ndim == 5 for shown in images.values())
            if is_video and has_writer():
                video = side_by_side(images)
                save_mp4(folder.path / "compare.mp4", video, self.fps)
                writer = {"video": {**WRITER, "fps": self.fps}}
            folder.record({**results(run, labels), "rules": numbers, **writer})
        return folder.files()


def comparison_figure(
    images: dict[str, np.ndarray], passes: dict[str, float], label_names: list[str]
) -> Figure:
    """A row for each rule, a column for each seed; of videos a sheet for each rule.

    Args:
        images: of each rule, by its name, uint8 ``[n, (F,) H, W, 3 or 1]``.
        passes: passes per image of each of these rules.
        label_names: of the columns, ``n`` of them.
    """
    height = width = _INCHES
    if next(iter(images.values())).ndim == 5:
        images = {name: contact_sheet(videos)[None] for name, videos in images.items()}
        sheet = next(iter(images.values()))[0]
        height = _INCHES * len(label_names)
        width = height * sheet.shape[1] / sheet.shape[0]
        label_names = [", ".join(label_names)]
    rows, columns = len(images), len(label_names)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width * columns + 1.2, height * rows + 0.5),
        squeeze=False,
        layout="constrained",
    )
    for row, (name, pictures) in zip(axes, images.items(), strict=True):
        for axis, image in zip(row, pictures, strict=True):
            # Gray images have one channel, which the color map shows.
            axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, **_GRAY)
            axis.set(xticks=[], yticks=[])
        text = f"{name}\n{passes[name]:.0f} passes"
        row[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
    for axis, name in zip(axes[0], label_names, strict=True):
        axis.set_title(name if len(name) < 15 else name[:13] + "…", fontsize=7)
    return figure


_GRAY = {"cmap": "gray", "vmin": 0, "vmax": 255}
