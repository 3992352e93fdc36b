"""``full-models sample``: images of a DiT or SiT under S²-Guidance."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from full_models.commands.drawing import (
    Drawn,
    draw,
    load_decoder,
    machine,
)
from full_models.commands.options import DrawOptions, GuidanceOptions, ModelOptions
from full_models.dit import DiT
from full_models.fingerprint import fingerprint
from full_models.images import grid_columns, make_grid, save_png
from full_models.labels import label_name
from full_models.processes import ProcessOptions
from full_models.run_folder import RunFolder
from gmm_guidance.reporter import Reporter


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw images of a DiT or SiT: a grid, single PNGs, samples.npz and run.json."""

    model: ModelOptions
    out: Path
    """Output directory; absent or empty."""
    vae: Path | None = None
    """Folder or file of the VAE (diffusers). Without it latents stay latents."""
    draw: DrawOptions = DrawOptions()
    guidance: GuidanceOptions = GuidanceOptions()
    processes: ProcessOptions = ProcessOptions()


def sample(config: Sample, reporter: Reporter) -> list[Path]:
    """Run the command; returns the files.

    Raises:
        ValueError: for weights, labels or options that do not fit the model.
        OSError: if the output cannot be written, or the directory is occupied.
        MemoryError: if the batch does not fit.
        LostProcess: if another process of the run has ended.
    """
    description = describe(config)
    if jax.process_count() > 1:
        from full_models.commands.sample_together import sample_together

        return sample_together(config, description, reporter)
    with RunFolder(config.out, description) as folder:
        mesh = config.draw.build_mesh()
        network = config.model.load(mesh)
        learned = config.draw.uses_learned_variance(network)
        rule = config.guidance.rule(network, learned)
        labels = config.draw.chosen_labels(network)
        decoder = load_decoder(config.vae, network)
        reporter.say(
            f"{model_line(network)}; {len(labels)} images, "
            f"{config.draw.steps} steps of {config.draw.solver}"
        )
        drawn = draw("sampling", network, decoder, rule, config.draw, mesh, reporter)
        write_samples(folder.path, drawn.samples, drawn.images, labels)
        reporter.say(speed_line(drawn))
        return folder.finish(
            {
                **results(network, labels),
                "seconds": drawn.seconds,
                "images_per_second": drawn.images_per_second,
                "passes_per_image": drawn.passes_per_image,
            }
        )


def results(network: DiT, labels: np.ndarray) -> dict[str, Any]:
    """What ``run.json`` says besides the options."""
    return {
        "network": dataclasses.asdict(network.config),
        "labels": labels.tolist(),
        "label_names": [label_name(i, network.num_labels) for i in labels],
        "machine": machine(),
    }


def describe(config: Any) -> dict[str, Any]:
    """Everything that the images depend on, files by their content."""
    fields = dataclasses.asdict(config)
    fields.pop("out")
    fields.pop("processes", None)
    for name in ("batch_size", "mesh"):  # nothing but last bits depends on them
        fields["draw"].pop(name)
    fields["model"] = config.model.describe()
    fields["vae"] = None
    if config.vae is not None:
        fields["vae"] = {"name": config.vae.name, "sha256": fingerprint(config.vae)}
    return {"command": type(config).__name__.lower(), **fields}


def speed_line(drawn: Drawn) -> str:
    """How fast a rule was, in words."""
    return (
        f"{len(drawn.samples)} images in {drawn.seconds:.1f} s with compilation, "
        f"{drawn.images_per_second:.3g} images/s without, "
        f"{drawn.passes_per_image:.1f} passes each"
    )


def model_line(network: DiT) -> str:
    """The network in words."""
    c = network.config
    family = "SiT" if c.process == "flow" else "DiT"
    return (
        f"{family}: {c.depth} blocks of width {c.width}, samples {c.input_size} x "
        f"{c.input_size} x {c.in_channels}, {c.compute_dtype}"
    )


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
