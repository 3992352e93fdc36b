"""Train a DiT or SiT on images or latents in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from full_models.models.dit.config import DiTConfig
from full_models.models.dit.network import DiT
from full_models.models.dit.weights import PLACEMENT
from full_models.models.family import as_stack
from gmm_guidance._runtime.checks import check_finite, check_key
from gmm_guidance.blocks.process_stack import ProcessStack
from gmm_guidance.diffusion.parameterization import training_target
from gmm_guidance.diffusion.process import DDPM, Process
from gmm_guidance.sharding import num_batch_parts, place, replicate, shard_batch
from gmm_guidance.training.fit import FitConfig, Progress, fit

_STEPS_PER_CALL = 25


@dataclasses.dataclass(frozen=True)
class DiTTraining(FitConfig):
    """Optimization of a ``DiT``: the fields of ``FitConfig`` with other defaults.

    The learning rate ends with a cosine to zero.
    """

    snapshots: tuple[int, ...] = (2000,)
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    decay_steps: int | None = None
    weight_decay: float = 0.01
    ema_decay: float = 0.995
    label_dropout: float = 0.1


def train_dit(
    key: jax.Array,
    samples: np.ndarray,
    labels: np.ndarray,
    config: DiTConfig,
    training: DiTTraining = DiTTraining(),
    *,
    progress: bool | Progress | None = None,
    checkpoint: str | os.PathLike | None = None,
    mesh: Mesh | None = None,
) -> dict[int, ProcessStack]:
    """Train a network; returns it with averaged weights, by the steps of snapshots.

    The loss is the mean squared error of what the network predicts: noise at uniform
    steps of the chain (DiT; the variance channels are not trained), or velocity at
    times whose logit is standard normal (SiT; Esser et al. 2024, arXiv 2403.03206).

    Args:
        key: a JAX random key; it decides everything, with the data and configurations.
        samples: ``[n, H, W, C]``, of about unit scale.
        labels: ``[n]`` integers.
        config: shape of the network.
        training: the optimization; batches are drawn with replacement.
        progress: ``True`` for a progress bar, a callable that is told
            ``TrainingProgress`` every few steps, ``False`` for silence; by default a
            bar on terminals and in notebooks.
        checkpoint: folder to resume from if it exists, and to keep up to date, also on
            SIGINT and SIGTERM; see ``Checkpoints``. It is deleted when training ends.
            Resumed training equals uninterrupted training bit for bit.
        mesh: devices (``MeshConfig.build``) over which each batch is divided, and the
            network and the optimizer as ``PLACEMENT`` says. Sums over the batch are
            taken in another order than on one device.

    Raises:
        Interrupted: on SIGINT and SIGTERM, once the current steps are done.
        OSError: if the checkpoint cannot be written.
        ValueError: for data of other shapes, labels out of range, or a checkpoint that
            is a file, damaged as a whole or of another run, or a batch that the mesh
            does not divide.
    """
    check_key(key)
    samples, labels = _check_data(samples, labels, config)
    if training.label_dropout and not config.null_label:
        raise ValueError(
            f"label_dropout must be 0 for a network without a null class "
            f"(null_label=False), got {training.label_dropout}."
        )
    if mesh is not None and training.batch_size % num_batch_parts(mesh):
        raise ValueError(
            f"batch_size must be a multiple of the {num_batch_parts(mesh)} parts in "
            f"which the mesh divides it, got {training.batch_size}."
        )

    def to_mesh(run: Any) -> Any:
        if mesh is None:
            return run
        state, key, data = run
        return place(state, mesh, PLACEMENT), *replicate((key, data), mesh)

    digest = hashlib.sha256(samples.tobytes() + labels.tobytes()).hexdigest()[:16]
    run = fit(
        _Prediction(config, training.batch_size, training.label_dropout, mesh),
        key,
        (jnp.asarray(samples), jnp.asarray(labels)),
        training,
        description={
            "kind": "full_models.training checkpoint",
            "network": dataclasses.asdict(config),
            "data": digest,
        },
        progress=progress,
        checkpoint=checkpoint,
        place=to_mesh,
        steps_per_call=_STEPS_PER_CALL,
    )
    stacks = (as_stack(network) for network in run.networks)
    return dict(zip(training.snapshots, stacks, strict=True))


@dataclasses.dataclass(frozen=True)
class _Prediction:
    """The objective: mean squared error of a network's own prediction."""

    config: DiTConfig
    batch_size: int
    label_dropout: float
    mesh: Mesh | None

    def init(self, key: jax.Array) -> DiT:
        return DiT(self.config, rngs=nnx.Rngs(key))

    def loss(
        self, network: DiT, key: jax.Array, data: tuple[jax.Array, jax.Array]
    ) -> jax.Array:
        samples, labels = data
        n = self.batch_size
        pick_key, loss_key = jax.random.split(key)
        chosen = jax.random.randint(pick_key, (n,), 0, samples.shape[0])
        if self.mesh is not None:
            chosen = shard_batch(chosen, self.mesh)
        clean, label = samples[chosen], labels[chosen]
        level_key, noise_key, drop_key = jax.random.split(loss_key, 3)
        sigma = _noise_levels(self.config.process, level_key, n)
        noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
        dropped = jax.random.bernoulli(drop_key, self.label_dropout, (n,))
        label = jnp.where(dropped, network.num_labels, label)
        noisy = clean + sigma[:, None, None, None] * noise
        stack = as_stack(network)
        prediction = stack.predict(noisy, sigma, label)[..., : clean.shape[-1]]
        target = training_target(stack.process, clean, noise, sigma, stack.prediction)
        return jnp.mean((prediction - target) ** 2)


def _noise_levels(process: Process, key: jax.Array, n: int) -> jax.Array:
    if isinstance(process, DDPM):
        steps = jax.random.randint(key, (n,), 0, process.num_steps)
        return jnp.asarray(process.sigmas(), jnp.float32)[steps]
    # logit(t) = -log(sigma): the logit-normal distribution of t is log-normal in sigma.
    return jnp.exp(jax.random.normal(key, (n,)))


def _check_data(
    samples: np.ndarray, labels: np.ndarray, config: DiTConfig
) -> tuple[np.ndarray, np.ndarray]:
    samples = np.asarray(samples)
    if samples.dtype.kind != "f":
        raise ValueError(
            f"samples must be floats of about unit scale, got {samples.dtype}; scale "
            f"pixels to -1..1 by x / 127.5 - 1."
        )
    samples = samples.astype(np.float32)
    labels = np.asarray(labels)
    size = config.input_size
    expected = (size, size, config.in_channels)
    if samples.ndim != 4 or samples.shape[1:] != expected or not len(samples):
        raise ValueError(
            f"samples must have shape [n, {size}, {size}, {config.in_channels}], "
            f"channels last, got {samples.shape}."
        )
    if labels.shape != (len(samples),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be {len(samples)} integers, got {labels.dtype} "
            f"{labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= config.num_labels:
        raise ValueError(
            f"labels must be in 0..{config.num_labels - 1}, got {labels.min()} to "
            f"{labels.max()}."
        )
    check_finite(samples, "samples", "Leave them out or mend them.")
    scale = float(samples.std())
    if not 0.05 <= scale <= 20.0:
        raise ValueError(
            f"samples must be of about unit scale, got a standard deviation of "
            f"{scale:.3g}; divide them by it."
        )
    return samples, labels.astype(np.int32)
