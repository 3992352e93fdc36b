"""Configuration of the training of toy denoisers."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.training.block_mlp import NetworkConfig
from gmm_guidance.training.fit import FitConfig, positive


@dataclasses.dataclass(frozen=True)
class TrainingConfig(FitConfig):
    """Configuration of ``train_denoiser``: further fields are those of ``FitConfig``.

    Attributes:
        width: features of the network.
        num_blocks: residual blocks of the network.
        target: what the network regresses on: ``"samples"``, the clean samples, as in
            practice; or ``"exact"``, the closed-form denoiser, which has no noise.
        log_sigma_offset: mean of ``ln(sigma / data scale)``.
        log_sigma_std: its standard deviation, > 0.

    Raises:
        ValueError: for values out of these ranges.
    """

    width: int = 64
    num_blocks: int = 8
    target: Literal["samples", "exact"] = "samples"
    log_sigma_offset: float = -0.8
    log_sigma_std: float = 1.6

    def __post_init__(self):
        super().__post_init__()
        if self.target not in ("samples", "exact"):
            raise ValueError(
                f"target must be 'samples' or 'exact', got {self.target!r}."
            )
        positive("log_sigma_std", self.log_sigma_std)

    def network(self, mixture: GaussianMixture) -> NetworkConfig:
        """The network for a mixture: its dimension, classes, mean and scale."""
        return NetworkConfig(
            dim=mixture.dim,
            num_labels=mixture.num_labels,
            width=self.width,
            num_blocks=self.num_blocks,
            data_scale=float(mixture.scale),
            data_mean=tuple(float(v) for v in np.asarray(mixture.mean())),
        )
