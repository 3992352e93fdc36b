"""Train ``BlockMLP`` denoisers on a mixture: several seeds at once, resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gmm_guidance._runtime.checks import check_key
from gmm_guidance.mixture.draw import sample_batch
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.sharding import num_batch_parts, replicate, shard_batch
from gmm_guidance.training.block_mlp import BlockMLP, NetworkConfig
from gmm_guidance.training.config import TrainingConfig
from gmm_guidance.training.fit import Progress, fit
from gmm_guidance.training.trained import TrainedDenoiser, TrainingRun


def train_denoiser(
    key: jax.Array,
    mixture: GaussianMixture,
    config: TrainingConfig = TrainingConfig(),
    *,
    progress: bool | Progress = False,
    checkpoint: str | os.PathLike | None = None,
    mesh: Mesh | None = None,
) -> TrainedDenoiser:
    """Train one denoiser on a mixture; see ``train_denoisers`` for the arguments."""
    check_key(key)
    run = train_denoisers(
        key[None],
        mixture,
        config,
        progress=progress,
        checkpoint=checkpoint,
        mesh=mesh,
    )
    return run.denoiser()


def train_denoisers(
    keys: jax.Array,
    mixture: GaussianMixture,
    config: TrainingConfig = TrainingConfig(),
    *,
    progress: bool | Progress = False,
    checkpoint: str | os.PathLike | None = None,
    mesh: Mesh | None = None,
) -> TrainingRun:
    """Train denoisers of several seeds together, keeping them at several lengths.

    The loss is EDM's: squared error of the denoised sample, weighted by
    ``(sigma^2 + s^2) / (sigma s)^2`` so that each noise level starts at equal weight
    (Karras et al. 2022, Table 1), with ``ln sigma`` normal around the mixture's scale.

    Args:
        keys: JAX random keys ``[num_seeds]``; a seed's result depends on its key alone
            (up to the rounding of batched matrix products).
        mixture: the data.
        config: see ``TrainingConfig``.
        progress: ``True`` for a progress bar with loss and speed, or a callable that is
            told ``TrainingProgress`` every few steps.
        checkpoint: folder to resume from if it exists, and to keep up to date, also on
            SIGINT and SIGTERM; see ``Checkpoints``. It is deleted when training ends.
            Resumed training equals uninterrupted training bit for bit.
        mesh: devices (``MeshConfig.build``) of this process over which seeds are
            divided, or each batch if they are not a multiple of the devices.

    Returns:
        A ``TrainingRun``.

    Raises:
        Interrupted: on SIGINT and SIGTERM, once the current steps are done.
        OSError: if the checkpoint cannot be written.
        ValueError: if the checkpoint is a file, damaged as a whole or of another run,
            or if the mesh divides neither the seeds nor a batch.
    """
    batch_mesh, place = _on_mesh(mesh, len(keys), config.batch_size)
    parameters = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(mixture)]
    run = fit(
        _Denoising(config, config.network(mixture), batch_mesh),
        keys,
        mixture,
        config,
        description={
            "kind": "gmm_guidance.training.train checkpoint",
            "mixture": _hash([parameters, mixture.labels.tolist()]),
        },
        progress=progress,
        checkpoint=checkpoint,
        place=place,
    )
    return TrainingRun(run.networks, config, len(keys), run.losses)


@dataclasses.dataclass(frozen=True)
class _Denoising:
    """The objective: a ``BlockMLP`` that denoises samples of a mixture."""

    config: TrainingConfig
    shape: NetworkConfig
    batch_mesh: Mesh | None

    def init(self, key: jax.Array) -> BlockMLP:
        return BlockMLP(self.shape, rngs=nnx.Rngs(key))

    def loss(
        self, network: BlockMLP, key: jax.Array, mixture: GaussianMixture
    ) -> jax.Array:
        config, scale = self.config, self.shape.data_scale
        data_key, sigma_key, noise_key, drop_key = jax.random.split(key, 4)
        n = config.batch_size
        clean, label = sample_batch(mixture.parameters, data_key, n)
        if self.batch_mesh is not None:
            clean, label = (shard_batch(a, self.batch_mesh) for a in (clean, label))
        log_sigma = config.log_sigma_offset + config.log_sigma_std * jax.random.normal(
            sigma_key, (n,), clean.dtype
        )
        sigma = scale * jnp.exp(log_sigma)
        noisy = clean + sigma[:, None] * jax.random.normal(
            noise_key, clean.shape, clean.dtype
        )
        dropped = jax.random.bernoulli(drop_key, config.label_dropout, (n,))
        label = jnp.where(dropped, mixture.num_labels, label)
        target = clean
        if config.target == "exact":
            target = mixture.denoise(noisy, sigma, label)
        error = jnp.sum((network(noisy, sigma, label) - target) ** 2, axis=1)
        weight = (sigma**2 + scale**2) / (sigma * scale) ** 2
        return jnp.mean(weight * error) / clean.shape[1]


def _on_mesh(
    mesh: Mesh | None, num_seeds: int, batch_size: int
) -> tuple[Mesh | None, Callable[[Any], Any]]:
    """The mesh if it divides batches, not seeds; and how the run is moved to it."""
    if mesh is None:
        return None, lambda run: run
    parts = num_batch_parts(mesh)
    if num_seeds % parts and batch_size % parts:
        raise ValueError(
            f"the mesh divides seeds or batches in {parts} parts, but {num_seeds} "
            f"seeds and a batch_size of {batch_size} are no multiples of that; "
            f"choose one that is."
        )
    if num_seeds % parts:
        return mesh, lambda run: replicate(run, mesh)

    def divide_seeds(run: Any) -> Any:
        state, keys, mixture = run
        state, keys = jax.tree.map(lambda a: shard_batch(a, mesh), (state, keys))
        return state, keys, replicate(mixture, mesh)

    return None, divide_seeds


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
