"""How a toy denoiser is trained: its configuration, and noise set from the mixture."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
import optax

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.training.block_mlp import NetworkConfig


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Configuration of ``train_denoiser``.

    Attributes:
        snapshots: numbers of steps at which the denoiser is kept, ascending; training
            ends at the last.
        batch_size: samples in a step, at least 1.
        width: features of the network.
        num_blocks: residual blocks of the network.
        target: what the network regresses on: ``"samples"``, the clean samples, as in
            practice; or ``"exact"``, the closed-form denoiser, which has no noise.
        learning_rate: peak rate of AdamW, > 0.
        warmup_steps: steps of linear warm-up.
        decay_steps: from here on the rate falls as one over the square root of steps,
            so that every snapshot is of a run that could as well have ended there.
        weight_decay: decoupled weight decay, >= 0.
        clip_norm: gradients are scaled down to this global norm, > 0.
        ema_decay: decay of the average of weights in [0, 1).
        ema_warmup: shorten the average at the start, so that it forgets the initial
            weights; without, they weigh ``ema_decay**steps`` in a snapshot.
        label_dropout: share of samples trained without their label, in [0, 1).
        log_sigma_offset: mean of ``ln(sigma / data scale)``.
        log_sigma_std: its standard deviation, > 0.
    """

    snapshots: tuple[int, ...] = (200, 500, 1000, 3000, 10000)
    batch_size: int = 512
    width: int = 64
    num_blocks: int = 8
    target: Literal["samples", "exact"] = "samples"
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    decay_steps: int = 500
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    ema_warmup: bool = True
    label_dropout: float = 0.15
    log_sigma_offset: float = -0.8
    log_sigma_std: float = 1.6

    def __post_init__(self):
        if not self.snapshots or list(self.snapshots) != sorted(set(self.snapshots)):
            raise ValueError(
                f"snapshots must be ascending numbers of steps, got {self.snapshots}."
            )
        _at_least("snapshots", self.snapshots[0], 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("warmup_steps", self.warmup_steps, 0)
        _at_least("decay_steps", self.decay_steps, 1)
        if self.target not in ("samples", "exact"):
            raise ValueError(
                f"target must be 'samples' or 'exact', got {self.target!r}."
            )
        for name in ("learning_rate", "clip_norm", "log_sigma_std"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be > 0, got {value}.")
        for name in ("ema_decay", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be in [0, 1), got {getattr(self, name)}."
                )

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.snapshots[-1]

    def network(self, mixture: GaussianMixture) -> NetworkConfig:
        """The network for a mixture: its dimension, classes, centre and scale."""
        return NetworkConfig(
            dim=mixture.dim,
            num_labels=mixture.num_labels,
            width=self.width,
            num_blocks=self.num_blocks,
            data_scale=float(mixture.scale),
            data_mean=tuple(float(v) for v in np.asarray(mixture.mean())),
        )

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with warm-up and inverse-square-root decay."""

        def rate(count):
            step = count.astype(jnp.float32) + 1.0
            warm = step / max(self.warmup_steps, 1)
            decay = jnp.sqrt(self.decay_steps / step)
            return self.learning_rate * jnp.minimum(jnp.minimum(warm, decay), 1.0)

        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(rate, b2=0.99, weight_decay=self.weight_decay),
        )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
