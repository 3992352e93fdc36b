"""Train ``BlockMLP`` denoisers on a mixture or on points: several seeds at once."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gmm_guidance._runtime.checks import check_key
from gmm_guidance.diffusion.process import DDPM
from gmm_guidance.mixture.draw import sample_batch
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.mixture.parameters import MixtureParameters
from gmm_guidance.sharding import num_batch_parts, replicate, shard_batch
from gmm_guidance.sharding.mesh import as_mesh
from gmm_guidance.training.block_mlp import BlockMLP, NetworkConfig
from gmm_guidance.training.config import Points, TrainingConfig, as_points
from gmm_guidance.training.fit import Progress, fit
from gmm_guidance.training.loss import edm_weight, log_normal_levels
from gmm_guidance.training.trained import TrainedDenoiser, TrainingRun


def train_denoiser(
    key: jax.Array,
    data: GaussianMixture | Points,
    config: TrainingConfig = TrainingConfig(),
    *,
    progress: bool | Progress | None = None,
    checkpoint: str | os.PathLike | None = None,
    mesh: Mesh | None = None,
) -> TrainedDenoiser:
    """Train one denoiser; see ``train_denoisers`` for the arguments."""
    check_key(key)
    run = train_denoisers(
        key[None],
        data,
        config,
        progress=progress,
        checkpoint=checkpoint,
        mesh=mesh,
    )
    return run.denoiser()


def train_denoisers(
    keys: jax.Array,
    data: GaussianMixture | Points,
    config: TrainingConfig = TrainingConfig(),
    *,
    progress: bool | Progress | None = None,
    checkpoint: str | os.PathLike | None = None,
    mesh: Mesh | None = None,
) -> TrainingRun:
    """Train denoisers of several seeds together, keeping them at several lengths.

    The loss is the mean squared error of what the network predicts, with weight one,
    and ``ln sigma`` is by default normal around that of the data's scale. For ``"edm"``
    this is EDM's loss: the squared error of the denoised sample with the weight
    ``(sigma^2 + s^2) / (sigma s)^2`` (Karras et al. 2022, arXiv 2206.00364, Table 1).

    Args:
        keys: JAX random keys ``[num_seeds]``; a seed's result depends on its key alone
            (up to the rounding of batched matrix products).
        data: a mixture, from which batches are drawn; or a pair of samples ``[n, d]``
            and labels ``[n]``, integers from 0 on, a finite set from which they are
            drawn with replacement.
        config: see ``TrainingConfig``.
        progress: ``True`` for a progress bar with loss and speed, a callable that is
            told ``TrainingProgress`` every few steps, ``False`` for silence; by default
            a bar on terminals and in notebooks.
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
        ValueError: for points of other shapes, or not finite, or options that need a
            mixture; if the checkpoint is a file, damaged as a whole or of another run;
            or if the mesh divides neither the seeds nor a batch.
    """
    mesh = None if mesh is None else as_mesh(mesh)
    batch_mesh, place = on_mesh(mesh, len(keys), config.batch_size)
    mixture = points = None
    if isinstance(data, GaussianMixture):
        mixture = data
        if config.num_points is not None:
            points = _draw_points(keys, data.parameters, config.num_points)
    else:
        data = as_points(data)
        points = jax.tree.map(jnp.asarray, data)
        if config.num_points is not None or config.target == "exact":
            raise ValueError(
                f"num_points and target='exact' need a mixture, but the data are "
                f"points; got num_points={config.num_points} and "
                f"target={config.target!r}."
            )
    own_points = mixture is not None and points is not None
    run = fit(
        _Denoising(config, config.network(data), batch_mesh),
        keys,
        _Data(mixture, points),
        config,
        description={
            "kind": "gmm_guidance.training.train checkpoint",
            "data": digest(data),
        },
        data_axes=_Data(None, 0 if own_points else None),
        progress=progress,
        checkpoint=checkpoint,
        place=place,
    )
    networks = tuple(network.as_stack() for network in run.networks)
    return TrainingRun(networks, config, len(keys), run.losses)


class _Data(NamedTuple):
    """What batches are drawn from: the points, if there are any, else the mixture."""

    mixture: GaussianMixture | None
    points: Any


@dataclasses.dataclass(frozen=True)
class _Denoising:
    """The objective: a ``BlockMLP`` that denoises samples."""

    config: TrainingConfig
    shape: NetworkConfig
    batch_mesh: Mesh | None

    def init(self, key: jax.Array) -> BlockMLP:
        return BlockMLP(self.shape, rngs=nnx.Rngs(key))

    def loss(self, network: BlockMLP, key: jax.Array, data: _Data) -> jax.Array:
        config, scale = self.config, self.shape.data_scale
        data_key, sigma_key, noise_key, drop_key = jax.random.split(key, 4)
        n = config.batch_size
        clean, label = self._batch(data_key, data)
        sigma = self._levels(sigma_key, clean.dtype)
        noisy = clean + sigma[:, None] * jax.random.normal(
            noise_key, clean.shape, clean.dtype
        )
        dropped = jax.random.bernoulli(drop_key, config.label_dropout, (n,))
        label = jnp.where(dropped, self.shape.num_labels, label)
        target = clean
        if config.target == "exact" and data.mixture is not None:
            target = data.mixture.denoise(noisy, sigma, label)
        keep = None
        if config.block_dropout:
            shape = (self.shape.num_blocks, n)
            skip_key = jax.random.fold_in(drop_key, 1)
            keep = ~jax.random.bernoulli(skip_key, config.block_dropout, shape)
            keep = keep.at[0].set(True)
        output = network.predict(noisy, sigma, label, keep)
        kind, level = self.shape.scaled_prediction(), sigma[:, None]
        if config.prediction == "edm":
            error = jnp.sum((kind.denoised(output, noisy, level) - target) ** 2, axis=1)
            return jnp.mean(edm_weight(sigma, scale) * error) / clean.shape[1]
        return jnp.mean((output - kind.output(target, noisy, level)) ** 2)

    def _levels(self, key: jax.Array, dtype: Any) -> jax.Array:
        """Noise levels of a batch, ``[n]``."""
        config, n = self.config, self.config.batch_size
        if config.noise == "ddpm":
            levels = jnp.asarray(DDPM().sigmas(), dtype)
            return levels[jax.random.randint(key, (n,), 0, len(levels))]
        offset, std = config.log_sigma_offset, config.log_sigma_std
        return log_normal_levels(key, n, self.shape.data_scale, offset, std, dtype)

    def _batch(self, key: jax.Array, data: _Data) -> tuple[jax.Array, jax.Array]:
        n = self.config.batch_size
        if data.points is not None:
            samples, labels = data.points
            chosen = jax.random.randint(key, (n,), 0, len(samples))
            batch = samples[chosen], labels[chosen]
        elif data.mixture is not None:
            batch = sample_batch(data.mixture.parameters, key, n)
        if self.batch_mesh is None:
            return batch
        clean, label = (shard_batch(a, self.batch_mesh) for a in batch)
        return clean, label


@functools.partial(jax.jit, static_argnums=2)
def _draw_points(
    keys: jax.Array, mixture: MixtureParameters, num_points: int
) -> tuple[jax.Array, jax.Array]:
    """A set for each seed: ``[seeds, num_points, d]`` and labels."""
    return jax.vmap(
        lambda key: sample_batch(mixture, jax.random.fold_in(key, 2), num_points)
    )(keys)


def on_mesh(
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
        state, keys, data = run
        state, keys = jax.tree.map(lambda a: shard_batch(a, mesh), (state, keys))
        return state, keys, replicate(data, mesh)

    return None, divide_seeds


def digest(data: Any) -> str:
    """A hash of the arrays of a pytree, and of the labels of a mixture."""
    digest = hashlib.sha256()
    labels = (data.labels,) if isinstance(data, GaussianMixture) else ()
    for leaf in (*jax.tree.leaves(data), *labels):
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:16]
