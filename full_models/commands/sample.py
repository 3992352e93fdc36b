"""``full-models sample``: images of a DiT or SiT under S²-Guidance."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from full_models.commands.describe import describe, model_line, speed_line
from full_models.commands.drawing import draw, load_decoder
from full_models.commands.generate import Generate
from full_models.commands.options import DrawOptions, GuidanceOptions, ModelOptions
from full_models.commands.outputs import results, write_samples
from full_models.commands.sample_together import sample_together
from full_models.generation.processes import ProcessOptions
from full_models.generation.run_folder import RunFolder
from gmm_guidance._runtime.reporter import Reporter


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
        size = min(config.draw.batch_size, config.draw.num)
        command = Generate(
            model=config.model,
            out=config.out.with_name(f"{config.out.name}.shards"),
            vae=config.vae,
            # As alone: no larger than the images are many.
            draw=dataclasses.replace(config.draw, batch_size=size),
            guidance=config.guidance,
            keep_latents=True,
            resume=True,
            processes=config.processes,
        )
        return sample_together(command, config.out, description, reporter)
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
