"""The trained denoisers: all snapshots and seeds of a mixture from one training run."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import jax
import numpy as np

import gmm_guidance as gg
from toy_experiments.common.store import Context, Format, Store

RUN = Format(
    ".safetensors",
    save=lambda path, run: run.save(path),
    load=lambda path: gg.TrainingRun.load(path),
)


@dataclasses.dataclass(frozen=True)
class Budgets:
    """Training lengths and the network, common to several mixtures.

    Attributes:
        steps: training lengths compared, ascending.
        width: features of the network.
        num_blocks: residual blocks.
        batch_size: samples in a training step.
    """

    steps: tuple[int, ...] = (50, 100, 300, 1000, 3000)
    width: int = 32
    num_blocks: int = 8
    batch_size: int = 512

    def training(self, **changes: Any) -> gg.TrainingConfig:
        """The one run that contains all of them, with some fields changed."""
        config = gg.TrainingConfig(
            snapshots=self.steps,
            width=self.width,
            num_blocks=self.num_blocks,
            batch_size=self.batch_size,
        )
        return dataclasses.replace(config, **changes)


def trained(
    store: Store, mixture: gg.GaussianMixture, config: gg.TrainingConfig, num_seeds: int
) -> gg.TrainingRun:
    """All snapshots of seeds 0, 1, ... from one run: loaded, resumed or started."""
    return store.cell(train_networks, mixture, config, num_seeds, format=RUN)


def train_networks(
    context: Context,
    mixture: gg.GaussianMixture,
    config: gg.TrainingConfig,
    num_seeds: int,
) -> gg.TrainingRun:
    """Train; resumes from the context's checkpoint."""
    keys = jax.vmap(jax.random.key)(np.arange(num_seeds))
    title = (
        f"training {num_seeds} networks on {mixture.num_components} components in "
        f"{mixture.dim}-D"
    )
    with context.reporter.task(title, config.num_steps) as task:

        def train() -> gg.TrainingRun:
            return gg.train_denoisers(
                keys,
                mixture,
                config,
                progress=lambda report: task.move_to(report.step, report.detail),
                checkpoint=context.checkpoint,
                mesh=context.mesh,
            )

        try:
            return train()
        except ValueError as error:
            if str(context.checkpoint) not in str(error):
                raise
            context.reporter.say(f"{error} Training starts again.")
            if context.checkpoint.is_dir():
                shutil.rmtree(context.checkpoint)
            else:
                context.checkpoint.unlink()
            return train()
