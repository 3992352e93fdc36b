"""Train a DiT or SiT on images or latents in memory: averaged weights, exact resume."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from full_models.models.dit.config import DiTConfig
from full_models.models.dit.network import DiT
from full_models.models.dit.weights import PLACEMENT
from full_models.models.family import as_stack
from gmm_guidance._runtime.checkpoints import Checkpoints
from gmm_guidance._runtime.checks import check_key
from gmm_guidance._runtime.interruption import Interruption
from gmm_guidance.blocks.process_stack import ProcessStack
from gmm_guidance.diffusion.parameterization import training_target
from gmm_guidance.diffusion.process import DDPM, Process
from gmm_guidance.sharding import num_batch_parts, place, replicate, shard_batch
from gmm_guidance.training.train import TrainingProgress

_CHECKPOINT_SECONDS = 10.0
_STEPS_PER_CALL = 25

Report = Callable[[TrainingProgress], None]


@dataclasses.dataclass(frozen=True)
class DiTTraining:
    """How a ``DiT`` is trained.

    Attributes:
        num_steps: optimisation steps, at least 1.
        batch_size: samples in a step, drawn with replacement.
        learning_rate: peak of AdamW's rate; linear warm-up, then cosine to zero.
        warmup_steps: steps of the warm-up.
        weight_decay: AdamW's.
        ema_decay: of the averaged weights, shortened at the start as ``(1 + i) / (10 +
            i)``.
        label_dropout: share of samples trained without condition, in [0, 1).
        snapshots: steps at which averaged weights are kept, besides the last.

    Raises:
        ValueError: for values out of these ranges.
    """

    num_steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.995
    label_dropout: float = 0.1
    snapshots: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}."
                )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}.")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(
                f"label_dropout must be in [0, 1), got {self.label_dropout}."
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}.")
        bad = [s for s in self.snapshots if not 0 < s <= self.num_steps]
        if bad:
            raise ValueError(
                f"snapshots must be steps in 1..{self.num_steps}, got {bad}."
            )

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """All steps of which weights are kept, ascending, the last included."""
        return tuple(sorted({*self.snapshots, self.num_steps}))

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with warm-up and cosine decay, gradients clipped to unit norm."""
        warmup = min(self.warmup_steps, self.num_steps - 1)
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, warmup, self.num_steps
        )
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(rate, b2=0.99, weight_decay=self.weight_decay),
        )


class _State(NamedTuple):
    network: DiT
    average: DiT
    optimizer: Any


def train_dit(
    key: jax.Array,
    samples: np.ndarray,
    labels: np.ndarray,
    config: DiTConfig,
    training: DiTTraining = DiTTraining(),
    *,
    report: Report | None = None,
    checkpoint: str | os.PathLike | None = None,
    keep: Callable[[int, ProcessStack], Any] | None = None,
    mesh: Mesh | None = None,
) -> ProcessStack:
    """Train a network; returns it with averaged weights, see ``as_stack``.

    The loss is the mean squared error of what the network predicts: noise at uniform
    steps of the chain (DiT; the variance channels are not trained), or velocity at
    times whose logit is standard normal (SiT; Esser et al. 2024, arXiv 2403.03206).

    Args:
        key: a JAX random key; it decides everything, with the data and configurations.
        samples: ``[n, H, W, C]``, of about unit scale.
        labels: ``[n]`` integers.
        config: shape of the network.
        training: how it is trained.
        report: told ``TrainingProgress`` every few steps.
        checkpoint: folder to resume from if it exists, and to keep up to date, also on
            SIGINT and SIGTERM; see ``Checkpoints``. It is removed when training ends.
            Continued training equals uninterrupted training bit for bit.
        keep: called with the step and the averaged network at each of
            ``training.kept_steps``; on resuming, for those from the checkpoint on.
        mesh: devices (``MeshConfig.build``) over which each batch is divided, and the
            network and the optimiser as ``PLACEMENT`` says. Sums over the batch are
            taken in another order than on one device.

    Raises:
        Interrupted: on SIGINT and SIGTERM, once the steps in work are done.
        OSError: if the checkpoint cannot be written.
        ValueError: for data of other shapes, labels out of range, or a checkpoint that
            is a file, damaged as a whole or of another run, or a batch that the mesh
            does not divide.
    """
    check_key(key)
    samples, labels = _check_data(samples, labels, config)
    if mesh is not None and training.batch_size % num_batch_parts(mesh):
        raise ValueError(
            f"batch_size must be a multiple of the {num_batch_parts(mesh)} parts in "
            f"which the mesh divides it, got {training.batch_size}."
        )
    description = _describe(key, samples, labels, config, training)
    with Checkpoints(
        checkpoint, description, seconds_between=_CHECKPOINT_SECONDS
    ) as checkpoints:
        start = _start(config, training, key)
        data = jnp.asarray(samples), jnp.asarray(labels)
        if mesh is not None:
            start = place(start, mesh, PLACEMENT)
            key, data = replicate((key, data), mesh)
        found = checkpoints.restore(lambda step: start)
        step, state = found or (0, start)
        if keep is not None and step in training.kept_steps:
            # What was interrupted may have been this.
            keep(step, as_stack(state.average))
        with Interruption() as interruption:
            try:
                while step < training.num_steps:
                    before, begun = step, time.monotonic()
                    # One assignment: an interruption finds the run before or after.
                    step, state, loss = _advance(
                        step, state, config, training, mesh, key, data
                    )
                    if report is not None:
                        speed = (step - before) / max(time.monotonic() - begun, 1e-9)
                        report(TrainingProgress(step, training.num_steps, loss, speed))
                    if keep is not None and step in training.kept_steps:
                        keep(step, as_stack(state.average))
                    checkpoints.save_if_due(step, state)
                    interruption.leave()
            except KeyboardInterrupt:
                if step > 0:
                    checkpoints.save(step, state)
                    checkpoints.wait()
                raise
        checkpoints.remove()
    return as_stack(state.average)


def _advance(
    step: int,
    state: _State,
    config: DiTConfig,
    training: DiTTraining,
    mesh: Mesh | None,
    key: jax.Array,
    data: tuple[jax.Array, jax.Array],
) -> tuple[int, _State, float]:
    """Train up to the next kept step, or for a bounded number of steps."""
    stop = min(s for s in training.kept_steps if s > step)
    count = min(stop - step, _STEPS_PER_CALL)
    state, loss = _train_steps(
        config, training, mesh, jnp.uint32(count), key, data, state, jnp.uint32(step)
    )
    return step + count, state, float(loss)


def training_loss(
    network: DiT,
    key: jax.Array,
    clean: jax.Array,
    label: jax.Array,
    label_dropout: float,
) -> jax.Array:
    """Mean squared error of the prediction on one batch, a scalar.

    Args:
        network: the network.
        key: for noise levels, noise and dropped labels.
        clean: samples ``[n, H, W, C]``.
        label: ``[n]`` integers.
        label_dropout: probability that a sample loses its label.
    """
    level_key, noise_key, drop_key = jax.random.split(key, 3)
    n = clean.shape[0]
    sigma = _noise_levels(network.config.process, level_key, n)
    noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
    dropped = jax.random.bernoulli(drop_key, label_dropout, (n,))
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
    # logit(t) = -log(sigma): the logit-normal law of t is log-normal in sigma.
    return jnp.exp(jax.random.normal(key, (n,)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(config: DiTConfig, training: DiTTraining, key: jax.Array) -> _State:
    network = DiT(config, rngs=nnx.Rngs(jax.random.fold_in(key, 0)))
    return _State(network, network, training.optimizer().init(network))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _train_steps(
    config: DiTConfig,
    training: DiTTraining,
    mesh: Mesh | None,
    count: jax.Array,
    key: jax.Array,
    data: tuple[jax.Array, jax.Array],
    state: _State,
    first_step: jax.Array,
) -> tuple[_State, jax.Array]:
    """``count`` steps; the state after them, and their mean loss."""
    optimizer = training.optimizer()
    samples, labels = data

    def step(index, loop):
        state, total = loop
        # A function of key and step: resuming needs no stored random state.
        step_key = jax.random.fold_in(jax.random.fold_in(key, 1), index)
        pick_key, loss_key = jax.random.split(step_key)
        chosen = jax.random.randint(
            pick_key, (training.batch_size,), 0, samples.shape[0]
        )
        if mesh is not None:
            chosen = shard_batch(chosen, mesh)
        loss, gradient = jax.value_and_grad(training_loss)(
            state.network,
            loss_key,
            samples[chosen],
            labels[chosen],
            training.label_dropout,
        )
        # Optax mixes integer counts with floats, which a strict caller forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, inner = optimizer.update(gradient, state.optimizer, state.network)
        network = optax.apply_updates(state.network, updates)
        done = index.astype(jnp.float32)
        decay = jnp.minimum(training.ema_decay, (1.0 + done) / (10.0 + done))
        average = jax.tree.map(
            lambda a, b: decay * a + (1.0 - decay) * b, state.average, network
        )
        return _State(network, average, inner), total + loss

    # A traced count: one compilation, however many steps lie between snapshots.
    state, total = jax.lax.fori_loop(
        first_step, first_step + count, step, (state, jnp.zeros(()))
    )
    return state, total / count.astype(jnp.float32)


def _check_data(
    samples: np.ndarray, labels: np.ndarray, config: DiTConfig
) -> tuple[np.ndarray, np.ndarray]:
    samples = np.asarray(samples, np.float32)
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
    return samples, labels.astype(np.int32)


def _describe(key, samples, labels, config, training) -> dict[str, Any]:
    """What a checkpoint must agree with to be continued."""
    digest = hashlib.sha256(samples.tobytes() + labels.tobytes()).hexdigest()[:16]
    return {
        "kind": "full_models.training checkpoint",
        "network": dataclasses.asdict(config),
        "training": dataclasses.asdict(training)
        | {"snapshots": list(training.snapshots)},
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "data": digest,
    }
