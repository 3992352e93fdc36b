"""``full-models generate``: a large set of samples, in shards, resumable."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import gmm_guidance as gg
from full_models.commands.describe import describe, model_line
from full_models.commands.drawing import load_decoder, machine
from full_models.commands.options import (
    DrawOptions,
    GuidanceOptions,
    ModelOptions,
    num_rows,
)
from full_models.generation.plan import Plan, ShardFormat, make_plan
from full_models.generation.processes import ProcessOptions, is_first
from full_models.generation.run import finish, make_shards, prepared
from full_models.generation.sampler import MeshSampler
from full_models.memory import check_memory
from full_models.models.autoencoder import KLDecoder
from full_models.models.dit.network import DiT
from gmm_guidance._runtime.interruption import Interrupted
from gmm_guidance._runtime.reporter import Reporter


@dataclasses.dataclass(frozen=True)
class Generate:
    """Draw a large set of samples in shards; an interrupted run goes on."""

    model: ModelOptions
    out: Path
    """Output directory: the plan, shards with their checksums, and a manifest."""
    vae: Path | None = None
    """Folder or file of the VAE (diffusers). Without it latents stay latents."""
    draw: DrawOptions = DrawOptions(labels="all", num=50_000, batch_size=32)
    guidance: GuidanceOptions = GuidanceOptions()
    shard_size: int = 500
    """Samples in a shard."""
    format: ShardFormat = "npz"
    """Of a shard: one .npz file, or a folder of PNG files."""
    keep_latents: bool = False
    """Keep the model's own samples beside images (.npz)."""
    resume: bool = False
    """Go on in a directory that holds this run; damaged shards are made again."""
    processes: ProcessOptions = ProcessOptions()

    def __post_init__(self):
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {self.shard_size}.")
        if self.keep_latents and self.format == "png":
            raise ValueError("PNG files hold no latents; use --format npz.")


def generate(config: Generate, reporter: Reporter) -> list[Path]:
    """Run the command; returns the directory's plan and manifest.

    Raises:
        ValueError: for weights, labels or options that do not fit the model.
        OSError: if the directory cannot be written, is in use, or holds another run.
        MemoryError: if the batch does not fit.
        Interrupted: after SIGINT or SIGTERM, with all files whole.
    """
    mesh = config.draw.build_mesh()
    network = config.model.load(mesh)
    decoder = load_decoder(config.vae, network)
    if is_first():
        reporter.say(f"{model_line(network)}; {mesh.size} devices")
    return generate_with(config, network, decoder, mesh, reporter)


def generate_with(
    config: Generate,
    network: DiT,
    decoder: KLDecoder | None,
    mesh: Mesh,
    reporter: Reporter,
) -> list[Path]:
    """As ``generate``, with a network that is loaded already."""
    plan = plan_of(config, network, mesh)
    learned = config.draw.uses_learned_variance(network)
    rule = config.guidance.rule(network, learned)
    check_memory(network.config, num_rows(rule, network), config.draw.batch_size, 0)
    if config.format == "png" and not _has_images(network, decoder):
        raise ValueError(
            "PNG shards need images, but these are latents; name a VAE with --vae, or "
            "use --format npz."
        )
    with prepared(config.out, plan, config.resume, reporter) as missing:
        if is_first():
            cost = gg.expected_cost(
                rule,
                config.draw.schedule(network),
                network.num_blocks,
                solver=config.draw.solver_for(network),
            )
            reporter.say(
                f"{config.out}: {plan.num} samples in {len(plan.shards())} shards, "
                f"{len(missing)} to make; {cost.shared:.1f} passes each"
            )
        sampler = MeshSampler(
            config.draw.drawn_model(network),
            mesh,
            key=jax.random.key(config.draw.seed),
            guidance=rule,
            schedule=config.draw.schedule(network),
            solver=config.draw.solver_for(network),
            batch_size=config.draw.batch_size,
            decoder=decoder,
        )
        try:
            make_shards(
                config.out, plan, missing, sampler, reporter, config.keep_latents
            )
        except Interrupted as error:
            error.add_note("run the same command with --resume to resume")
            raise
        manifest = finish(config.out, plan)
        if manifest is None:
            raise ValueError(
                f"shards of {config.out} vanished while it was filled; go on with "
                f"--resume."
            )
    return [config.out / "plan.json", manifest]


def plan_of(config: Generate, network: DiT, mesh: Mesh) -> Plan:
    """The plan of a command."""
    run = describe(config)
    for name in ("shard_size", "format", "resume"):
        run.pop(name)
    run["draw"].pop("num")
    run["execution"] = execution(config.draw, mesh)
    return make_plan(
        run, config.draw.chosen_labels(network), config.shard_size, config.format
    )


def execution(options: DrawOptions, mesh: Mesh) -> dict[str, Any]:
    """What decides the last bits of a sample, besides what it is."""
    found = machine()
    return {
        "batch_size": options.batch_size,
        "fsdp": mesh.shape["fsdp"],
        "tensor": mesh.shape["tensor"],
        **{k: found[k] for k in ("platform", "device", "jax", "gmm_guidance")},
    }


def _has_images(network: DiT, decoder: KLDecoder | None) -> bool:
    return decoder is not None or network.config.in_channels in (1, 3)
