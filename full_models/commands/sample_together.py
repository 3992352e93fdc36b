"""``full-models sample`` by several processes: shards of each, bound by a manifest."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from full_models.commands.describe import model_line
from full_models.commands.drawing import load_decoder
from full_models.commands.generate import Generate, generate_with
from full_models.commands.outputs import results, write_samples
from full_models.generation.plan import Plan, read_plan
from full_models.generation.processes import LostProcess, gather, is_first
from full_models.generation.run_folder import RunFolder
from full_models.generation.shards import read_shard
from gmm_guidance._runtime.reporter import Reporter
from gmm_guidance.sharding import batch_parts


def sample_together(
    command: Generate, out: Path, description: dict[str, Any], reporter: Reporter
) -> list[Path]:
    """As ``sample``; shards gather where ``command`` puts them, and a restart goes on.

    When all are there, the first process makes the output directory, which has them and
    their manifest in its folder ``shards``.
    """
    _check_vacant_together(out, description)
    mesh = command.draw.build_mesh()
    network = command.model.load(mesh)
    decoder = load_decoder(command.vae, network)
    if is_first():
        reporter.say(f"{model_line(network)}; {mesh.size} devices")
    size = command.draw.batch_size * len(batch_parts(mesh))
    command = dataclasses.replace(command, shard_size=size)
    files = generate_with(command, network, decoder, mesh, reporter)
    if not is_first():
        return files
    with RunFolder(out, description) as folder:
        plan = read_plan(command.out)
        if plan is None:
            raise FileNotFoundError(f"{command.out} vanished; run the command again.")
        samples, images = _joined(command.out, plan)
        write_samples(folder.path, samples, images, plan.labels)
        shutil.copytree(command.out, folder.path / "shards")
        (folder.path / "shards" / ".lock").unlink(missing_ok=True)
        written = folder.finish(results(network, plan.labels))
    shutil.rmtree(command.out)
    return written


def _joined(work: Path, plan: Plan) -> tuple[np.ndarray, np.ndarray | None]:
    shards = [read_shard(work, plan, shard) for shard in plan.shards()]
    images = [s.images for s in shards if s.images is not None]
    return (
        np.concatenate([s.samples for s in shards if s.samples is not None]),
        np.concatenate(images) if images else None,
    )


def _check_vacant_together(out: Path, description: dict[str, Any]) -> None:
    """Refuse an occupied directory in all processes at once."""
    failure: Exception | None = None
    if is_first():
        try:
            with RunFolder(out, description):
                pass
        except OSError as error:
            failure = error
    refused = any(gather(int(failure is not None)))
    if failure is not None:
        raise failure
    if refused:
        raise LostProcess(f"the first process cannot write {out}; see its message.")
