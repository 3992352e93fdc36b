"""``full-models compare``: the same seeds without guidance, under CFG and under S²."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from full_models.commands.describe import describe, model_line, speed_line
from full_models.commands.drawing import (
    draw,
    load_decoder,
    machine,
)
from full_models.commands.options import DrawOptions, GuidanceOptions, ModelOptions
from full_models.generation.run_folder import RunFolder
from full_models.models.dit.labels import label_name
from gmm_guidance._runtime.reporter import Reporter

_INCHES = 1.1  # of one image


@dataclasses.dataclass(frozen=True)
class Compare:
    """Draw the same seeds without guidance, under CFG and under S², side by side."""

    model: ModelOptions
    out: Path
    """Output directory; absent or empty."""
    vae: Path | None = None
    """Folder or file of the VAE (diffusers). Without it latents stay latents."""
    draw: DrawOptions = DrawOptions(num=6)
    guidance: GuidanceOptions = GuidanceOptions()


def compare(config: Compare, reporter: Reporter) -> list[Path]:
    """Run the command; returns the files. Raises as ``sample`` does."""
    with RunFolder(config.out, describe(config)) as folder:
        mesh = config.draw.build_mesh()
        network = config.model.load(mesh)
        learned = config.draw.uses_learned_variance(network)
        labels = config.draw.chosen_labels(network)
        decoder = load_decoder(config.vae, network)
        reporter.say(model_line(network))
        without_s2 = dataclasses.replace(config.guidance, s2_scale=0.0)
        rules = {
            "no guidance": gg.Unguided(),
            f"CFG {config.guidance.cfg_scale:g}": without_s2.rule(network, learned),
            f"S² {config.guidance.s2_scale:g}": config.guidance.rule(network, learned),
        }
        drawn = {
            name: draw(name, network, decoder, rule, config.draw, mesh, reporter)
            for name, rule in rules.items()
        }
        for name, d in drawn.items():
            reporter.say(f"{name}: {speed_line(d)}")
        images = {n: d.images for n, d in drawn.items() if d.images is not None}
        arrays = {_key(name): d.samples for name, d in drawn.items()}
        arrays |= {f"{_key(name)}_images": array for name, array in images.items()}
        np.savez(
            folder.path / "samples.npz", allow_pickle=False, labels=labels, **arrays
        )
        if images:
            passes = {name: d.passes_per_image for name, d in drawn.items()}
            names = [label_name(int(i), network.num_labels) for i in labels]
            figure = comparison_figure(images, passes, names)
            figure.savefig(folder.path / "compare.png", dpi=200)
            plt.close(figure)
        return folder.finish(
            {
                "network": dataclasses.asdict(network.config),
                "labels": labels.tolist(),
                "rules": {
                    name: {
                        "seconds": d.seconds,
                        "images_per_second": d.images_per_second,
                        "passes_per_image": d.passes_per_image,
                    }
                    for name, d in drawn.items()
                },
                "machine": machine(),
            }
        )


def comparison_figure(
    images: dict[str, np.ndarray], passes: dict[str, float], label_names: list[str]
) -> Figure:
    """A row for each rule, a column for each seed.

    Args:
        images: of each rule, by its name, uint8 ``[n, H, W, 3 or 1]``.
        passes: passes per image of each of these rules.
        label_names: of the columns, ``n`` of them.
    """
    rows, columns = len(images), len(label_names)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(_INCHES * columns + 1.2, _INCHES * rows + 0.5),
        squeeze=False,
        layout="constrained",
    )
    for row, (name, pictures) in zip(axes, images.items(), strict=True):
        for axis, image in zip(row, pictures, strict=True):
            grey = image.shape[-1] == 1
            axis.imshow(
                image[..., 0] if grey else image,
                cmap="gray" if grey else None,
                vmin=0,
                vmax=255,
            )
            axis.set(xticks=[], yticks=[])
        text = f"{name}\n{passes[name]:.0f} passes"
        row[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
    for axis, name in zip(axes[0], label_names, strict=True):
        axis.set_title(name if len(name) < 15 else name[:13] + "…", fontsize=7)
    return figure


def _key(name: str) -> str:
    """A rule's name as the name of an array."""
    return name.split(" ")[0].replace("S²", "s2").lower().replace("no", "unguided")
