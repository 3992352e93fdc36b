"""``full-models generate``: a large set of samples, in shards, resumable."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

from full_models.commands.options import (
    DrawOptions,
    GuidanceOptions,
    LoadedRun,
    ModelOptions,
    Run,
)
from full_models.generation.processes import ProcessOptions, is_first
from full_models.generation.run import fill
from full_models.generation.run_folder import machine
from full_models.generation.shard_set import ShardFormat, ShardSet
from gmm_guidance._runtime.progress import Reporter


@dataclasses.dataclass(frozen=True)
class ShardOptions:
    """The files of a large set."""

    shard_size: int = 500
    """Number of samples in a shard."""
    format: ShardFormat = "npz"
    """Format of a shard: one .npz file, or a folder of PNG files."""
    keep_latents: bool = False
    """Keep the samples of the model along with the images (.npz)."""

    def __post_init__(self):
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {self.shard_size}.")
        if self.format not in get_args(ShardFormat):
            raise ValueError(f"format must be npz or png, got {self.format!r}.")
        if self.keep_latents and self.format == "png":
            raise ValueError("PNG files hold no latents; use --format npz.")


@dataclasses.dataclass(frozen=True)
class Generate:
    """Draw a large set of samples in shards; an interrupted run can be resumed."""

    model: ModelOptions
    out: Path
    """Output directory: the plan, shards with their checksums, and a manifest."""
    draw: DrawOptions = DrawOptions(labels="all", num=50_000, batch_size=32)
    guidance: GuidanceOptions = GuidanceOptions()
    shards: ShardOptions = ShardOptions()
    resume: bool = False
    """Resume the run that the directory holds; damaged shards are made again."""
    processes: ProcessOptions = ProcessOptions()

    def run(self, reporter: Reporter) -> list[Path]:
        """Fill the directory; returns its plan and manifest."""
        loaded = Run.of(self.model, self.draw, self.guidance).load()
        if is_first():
            reporter.say(f"{loaded.run.checkpoint.title}; {loaded.mesh.size} devices")
        return self.fill(loaded, reporter, self.resume)

    def fill(self, loaded: LoadedRun, reporter: Reporter, resume: bool) -> list[Path]:
        """As ``run``, with a model that is loaded already."""
        rule = loaded.rule()
        shape = loaded.run.pipeline.sample_shape
        has_images = loaded.decoder or shape[-1] in (1, 3)
        if self.shards.format == "png" and len(shape) > 3:
            raise ValueError(
                "PNG shards hold images, but this model draws videos; use --format "
                "npz. (pack writes mp4 files.)"
            )
        if self.shards.format == "png" and not has_images:
            raise ValueError(
                "PNG shards need images, but these are latents; name an autoencoder "
                "with --vae, or use --format npz."
            )
        if is_first():
            reporter.say(f"{loaded.passes(rule):.1f} passes for each sample")
        return fill(
            self.shard_set(loaded),
            lambda: loaded.sampler(rule, self._batch_size(loaded)),
            reporter,
            resume=resume,
            keep_latents=self.shards.keep_latents,
        )

    def _batch_size(self, loaded: LoadedRun) -> int:
        """No larger than a shard. The number of devices does not decide last bits."""
        draw = loaded.run.draw
        return min(draw.batch_size, self.shards.shard_size, draw.num)

    def shard_set(self, loaded: LoadedRun) -> ShardSet:
        """The set of a run, with what decides the last bits of its samples."""
        description = {"command": "generate", **loaded.run.describe()}
        del description["draw"]["num"]
        description["keep_latents"] = self.shards.keep_latents
        description["execution"] = {
            "batch_size": self._batch_size(loaded),
            "fsdp": loaded.mesh.shape["fsdp"],
            "tensor": loaded.mesh.shape["tensor"],
            **machine(),
        }
        size, format = self.shards.shard_size, self.shards.format
        return ShardSet(self.out, description, loaded.labels(), size, format)
