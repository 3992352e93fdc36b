"""The mixtures of the analysis, their training and their noise levels."""

from __future__ import annotations

import dataclasses
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

import gmm_guidance as gg
from toy_experiments.common.laboratory import train_on
from toy_experiments.common.workspace import Workspace

ToyName = Literal["two_modes", "four_corners", "tree", "overlap"]
TOYS: tuple[ToyName, ...] = ("two_modes", "four_corners", "tree")
TOY_TITLES = {
    "two_modes": "two modes (1-D)",
    "four_corners": "four corners (2-D)",
    "tree": "tree (2-D)",
    "overlap": "overlapping modes (1-D)",
}


def make_toy(name: ToyName) -> gg.GaussianMixture:
    """The mixture of a name; ``overlap`` has modes one standard deviation off zero."""
    if name == "overlap":
        return gg.presets.two_modes(std=4.0)
    if name == "tree":
        return gg.presets.tree()
    return gg.presets.two_modes() if name == "two_modes" else gg.presets.four_corners()


def toy_schedule(name: ToyName, num_steps: int) -> gg.Karras:
    """Noise levels in proportion to the data: 0.0005 to 20 standard deviations."""
    scale = float(make_toy(name).scale)
    return gg.Karras(num_steps, 0.0005 * scale, 20.0 * scale)


def train_toy(
    workspace: Workspace, name: ToyName, config: gg.TrainingConfig, num_seeds: int
) -> gg.TrainingRun:
    """All snapshots and seeds of a toy, from one training run."""
    return train_on(
        workspace,
        make_toy(name),
        config,
        num_seeds,
        identity={"toy": name},
        title=TOY_TITLES[name],
    )


@dataclasses.dataclass(frozen=True)
class Budgets:
    """Training lengths and the network that all toys share.

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


def toy_start(
    name: ToyName, schedule: gg.Karras, num_samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels in turn and noise at the highest level, ``[n]`` and ``[n, d]``.

    On a line the noise is the quantiles of its law, so that the samples have no Monte
    Carlo error (the flow is monotone for every mask).
    """
    mixture = make_toy(name)
    count = mixture.num_labels
    per_label = num_samples // count
    labels = np.tile(np.arange(count, dtype=np.int32), per_label)
    if mixture.dim == 1:
        levels = (np.arange(per_label) + 0.5) / per_label
        normal = np.repeat(_normal_quantiles(levels), count)[:, None]
    else:
        normal = np.random.default_rng(seed).standard_normal((len(labels), mixture.dim))
    return labels, (schedule.sigma_max * normal).astype(np.float32)


def _normal_quantiles(levels: np.ndarray) -> np.ndarray:
    return np.array([NormalDist().inv_cdf(float(u)) for u in levels])
