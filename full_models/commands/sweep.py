"""``full-models sweep``: a grid of rules and scales from one file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import gmm_guidance as gg
from full_models.commands.describe import model_line
from full_models.commands.drawing import load_decoder
from full_models.commands.generate import Generate, generate_with, plan_of
from full_models.commands.options import DrawOptions, GuidanceOptions, ModelOptions
from full_models.generation.grid import Cell, defaults_of, read_grid
from full_models.generation.plan import check_plan, read_plan
from full_models.generation.processes import ProcessOptions, from_first, is_first
from full_models.generation.run import MANIFEST
from full_models.generation.shards import shard_record
from full_models.models.dit.network import DiT
from gmm_guidance._runtime.reporter import Reporter


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Generate a set for each rule and scale of a grid, passing over complete ones."""

    file: Path
    """The grid (TOML): common options, and tables [[rules]] whose options may be lists:
    cfg_scale = [1.0, 1.5, 2.0]. Options are those of generate, with underscores."""
    out: Path
    """Output directory: a directory of generate for each setting."""
    model: ModelOptions
    vae: Path | None = None
    """Folder or file of the VAE (diffusers). Without it latents stay latents."""
    mesh: str = DrawOptions.mesh
    """Devices that divide the images, the weights of each block and its products."""
    show: bool = False
    """Only show the table of what is done."""
    processes: ProcessOptions = ProcessOptions()


_GUIDANCE = GuidanceOptions(guided_channels=0)
_DRAW = DrawOptions(labels="all", num=50_000, batch_size=32)


def sweep(config: Sweep, reporter: Reporter) -> list[Path]:
    """Run the command; returns the directories.

    Raises:
        ValueError: for a grid or options that cannot be; before anything is computed.
        OSError: as ``generate``.
        Interrupted: after SIGINT or SIGTERM, with all files whole.
    """
    fields = defaults_of(_DRAW, _GUIDANCE)
    fields.pop("mesh")  # of the whole sweep
    fields |= {
        "shard_size": 500,
        "format": "npz",
        "keep_latents": False,
    }
    cells = read_grid(config.file, fields)
    runs = [_command(config, cell) for cell in cells]
    if not config.show:
        mesh = gg.MeshConfig.parse(config.mesh).build()
        network = config.model.load(mesh)
        decoder = load_decoder(config.vae, network)
        if is_first():
            reporter.say(f"{model_line(network)}; {len(runs)} settings")
        for run in runs:  # a mistake in the last setting shows before the first
            rule_of(run, network)
            if run.out.is_dir():
                check_plan(run.out, plan_of(run, network, mesh), resume=True)
        for run in runs:
            if not _complete_for_all(run):
                generate_with(run, network, decoder, mesh, reporter)
    if is_first():
        reporter.console.print(table_of(cells, runs))
    return [run.out for run in runs if _is_complete(run)]


def rule_of(run: Generate, network: DiT) -> gg.GuidanceRule:
    """The rule of a setting, checked against the network."""
    run.draw.chosen_labels(network)
    return run.guidance.rule(network, run.draw.uses_learned_variance(network))


def table_of(cells: list[Cell], runs: list[Generate]) -> Table:
    """What is done, a row for each setting."""
    varied = sorted(
        {
            name
            for cell in cells
            for name, value in cell.options.items()
            if any(other.options.get(name) != value for other in cells)
        }
    )
    table = Table()
    table.add_column("setting", overflow="fold")
    for title in (*varied, "samples", "state"):
        table.add_column(title)
    for cell, run in zip(cells, runs, strict=True):
        done, total = _progress(run)
        state = "complete" if _is_complete(run) else "begun" if done else "to do"
        values = [str(cell.options.get(name, "")) for name in varied]
        table.add_row(cell.name, *values, f"{done:,} / {total:,}", state)
    return table


def _command(config: Sweep, cell: Cell) -> Generate:
    def chosen(like: Any) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(like)}
        return {k: v for k, v in cell.options.items() if k in names}

    others = ("shard_size", "format", "keep_latents")
    return Generate(
        model=config.model,
        out=config.out / cell.name,
        vae=config.vae,
        draw=dataclasses.replace(_DRAW, mesh=config.mesh, **chosen(_DRAW)),
        guidance=dataclasses.replace(GuidanceOptions(), **chosen(_GUIDANCE)),
        resume=True,
        processes=config.processes,
        **{name: cell.options[name] for name in others if name in cell.options},
    )


def _is_complete(run: Generate) -> bool:
    done, total = _progress(run)
    return done == total and (run.out / MANIFEST).exists()


def _complete_for_all(run: Generate) -> bool:
    """Whether all is there; the same answer in each process."""
    return bool(from_first(np.array([is_first() and _is_complete(run)]))[0])


def _progress(run: Generate) -> tuple[int, int]:
    """Samples in complete shards, and in all."""
    plan = read_plan(run.out) if run.out.is_dir() else None
    if plan is None:
        return 0, run.draw.num
    done = [s.count for s in plan.shards() if shard_record(run.out, s) is not None]
    return sum(done), plan.num
