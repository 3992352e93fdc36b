"""Train ``BlockMLP`` denoisers on a mixture: several seeds at once, resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from gmm_guidance._runtime.checkpoints import Checkpoints
from gmm_guidance._runtime.checks import check_key
from gmm_guidance._runtime.interruption import Interruption
from gmm_guidance._runtime.progress import Reporter
from gmm_guidance.mixture.draw import sample_batch
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.sharding import num_batch_parts, replicate, shard_batch
from gmm_guidance.training.block_mlp import BlockMLP, NetworkConfig
from gmm_guidance.training.config import TrainingConfig
from gmm_guidance.training.trained import TrainedDenoiser, TrainingRun

_CHECKPOINT_SECONDS = 5.0
_MAX_STEPS_PER_CALL = 100

Progress = Callable[["TrainingProgress"], None]


class TrainingProgress(NamedTuple):
    """What a progress callback is told.

    Attributes:
        step: steps done.
        num_steps: steps in all.
        loss: mean loss over seeds since the last report.
        steps_per_second: speed since the last report.
    """

    step: int
    num_steps: int
    loss: float
    steps_per_second: float


class _State(NamedTuple):
    network: BlockMLP
    average: BlockMLP
    optimizer: Any


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
            told ``TrainingProgress`` now and then.
        checkpoint: folder to resume from if it exists, and to keep up to date, also on
            SIGINT and SIGTERM; see ``Checkpoints``. It is removed when training ends.
            Continued training equals uninterrupted training bit for bit.
        mesh: devices (``MeshConfig.build``) of this process over which seeds are
            divided, or each batch if they are not a multiple of the devices.

    Returns:
        A ``TrainingRun``.

    Raises:
        Interrupted: on SIGINT and SIGTERM, once the steps in work are done.
        OSError: if the checkpoint cannot be written.
        ValueError: if the checkpoint is a file, damaged as a whole or of another run,
            or if the mesh divides neither the seeds nor a batch.
    """
    description = _describe(keys, mixture, config)
    start = _start(config, config.network(mixture), keys)
    batch_mesh = None
    if mesh is not None:
        start, keys, mixture, batch_mesh = _on_mesh(start, keys, mixture, config, mesh)
    with Checkpoints(
        checkpoint, description, seconds_between=_CHECKPOINT_SECONDS
    ) as checkpoints:
        run = _resume(checkpoints, config, start)
        reporting = _reporting(progress, config.num_steps)
        with reporting as report, Interruption() as interruption:
            begun = time.monotonic()
            try:
                while run.step < config.num_steps:
                    # One assignment: an interruption finds the run before or after.
                    before, run = (
                        run.step,
                        _advance(run, config, batch_mesh, keys, mixture),
                    )
                    now = time.monotonic()
                    speed = (run.step - before) / max(now - begun, 1e-9)
                    loss = float(run.loss.mean())
                    report(TrainingProgress(run.step, config.num_steps, loss, speed))
                    begun = now
                    checkpoints.save_if_due(run.step, run.arrays)
                    interruption.leave()
            except KeyboardInterrupt:
                if run.step > 0:
                    checkpoints.save(run.step, run.arrays)
                    checkpoints.wait()
                raise
        checkpoints.remove()
    return TrainingRun(run.kept, config, len(keys), run.losses)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(config: TrainingConfig, shape: NetworkConfig, keys: jax.Array) -> _State:
    """Networks and optimisers before the first step."""

    def one_seed(key):
        network = BlockMLP(shape, rngs=nnx.Rngs(jax.random.fold_in(key, 0)))
        return _State(network, network, config.optimizer().init(network))

    return jax.vmap(one_seed)(keys)


def _on_mesh(
    start: _State,
    keys: jax.Array,
    mixture: GaussianMixture,
    config: TrainingConfig,
    mesh: Mesh,
) -> tuple[_State, jax.Array, GaussianMixture, Mesh | None]:
    """The run's arrays on a mesh, and the mesh if it divides batches, not seeds."""
    parts = num_batch_parts(mesh)
    mixture = replicate(mixture, mesh)
    if len(keys) % parts == 0:
        start, keys = jax.tree.map(lambda a: shard_batch(a, mesh), (start, keys))
        return start, keys, mixture, None
    if config.batch_size % parts:
        raise ValueError(
            f"the mesh divides seeds or batches in {parts} parts, but {len(keys)} "
            f"seeds and a batch_size of {config.batch_size} are no multiples of that; "
            f"choose one so."
        )
    start, keys = replicate((start, keys), mesh)
    return start, keys, mixture, mesh


class _Run(NamedTuple):
    """Everything that a continued run needs."""

    step: int
    state: _State
    kept: tuple[BlockMLP, ...]  # averaged networks at the snapshots so far
    losses: tuple[jax.Array, ...]
    loss: Any = None

    @property
    def arrays(self) -> Any:
        """What a checkpoint holds beside the step."""
        return self.state, self.kept, self.losses


def _advance(
    run: _Run,
    config: TrainingConfig,
    batch_mesh: Mesh | None,
    keys: jax.Array,
    mixture: GaussianMixture,
) -> _Run:
    """Train up to the next snapshot, or for a bounded number of steps."""
    stop = next(s for s in config.snapshots if s > run.step)
    count = min(stop - run.step, _MAX_STEPS_PER_CALL)
    state, loss = _train_steps(
        config,
        batch_mesh,
        jnp.uint32(count),
        keys,
        mixture,
        run.state,
        jnp.uint32(run.step),
    )
    loss.block_until_ready()
    step = run.step + count
    if step < stop:
        return _Run(step, state, run.kept, run.losses, loss)
    return _Run(step, state, (*run.kept, state.average), (*run.losses, loss), loss)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train_steps(
    config: TrainingConfig,
    batch_mesh: Mesh | None,
    count: jax.Array,
    keys: jax.Array,
    mixture: GaussianMixture,
    state: _State,
    first_step: jax.Array,
) -> tuple[_State, jax.Array]:
    """``count`` optimisation steps of all seeds; returns the mean loss of each seed."""
    optimizer = config.optimizer()

    def one_seed(key, state):
        def step(index, loop):
            state, total = loop
            # A function of key and step: resuming needs no stored random state.
            step_key = jax.random.fold_in(jax.random.fold_in(key, 1), index)
            loss, gradient = jax.value_and_grad(_loss)(
                state.network, config, mixture, step_key, batch_mesh
            )
            # Optax mixes integer counts with floats, which a strict caller forbids.
            with jax.numpy_dtype_promotion("standard"):
                updates, inner = optimizer.update(
                    gradient, state.optimizer, state.network
                )
            network = optax.apply_updates(state.network, updates)
            done = index.astype(jnp.float32)
            decay = jnp.asarray(config.ema_decay, jnp.float32)
            if config.ema_warmup:
                decay = jnp.minimum(decay, (1.0 + done) / (10.0 + done))
            average = jax.tree.map(
                lambda a, b: decay * a + (1.0 - decay) * b, state.average, network
            )
            return _State(network, average, inner), total + loss

        # A traced count: one compilation, however many steps lie between snapshots.
        state, total = jax.lax.fori_loop(
            first_step, first_step + count, step, (state, jnp.zeros(()))
        )
        return state, total / count.astype(jnp.float32)

    return jax.vmap(one_seed, in_axes=(0, 0))(keys, state)


def _loss(
    network: BlockMLP,
    config: TrainingConfig,
    mixture: GaussianMixture,
    key: jax.Array,
    batch_mesh: Mesh | None = None,
) -> jax.Array:
    data_key, sigma_key, noise_key, drop_key = jax.random.split(key, 4)
    n = config.batch_size
    clean, label = sample_batch(mixture.parameters, data_key, n)
    if batch_mesh is not None:
        clean, label = shard_batch(clean, batch_mesh), shard_batch(label, batch_mesh)
    scale = network.config.data_scale
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


def _describe(keys, mixture, config) -> dict[str, Any]:
    """What a checkpoint must agree with to be continued."""
    parameters = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(mixture)]
    return {
        "kind": "gmm_guidance.training.train checkpoint",
        "training": dataclasses.asdict(config) | {"snapshots": list(config.snapshots)},
        "keys": np.asarray(jax.random.key_data(keys)).tolist(),
        "mixture": hash_of([parameters, mixture.labels.tolist()]),
    }


def hash_of(value: Any) -> str:
    """A short fingerprint of a JSON-like value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _resume(checkpoints: Checkpoints, config: TrainingConfig, start: _State) -> _Run:
    """The run at its last checkpoint, or at its start."""

    def like(step: int) -> Any:
        count = sum(s <= step for s in config.snapshots)
        num_seeds = jax.tree.leaves(start)[0].shape[0]
        loss = jax.ShapeDtypeStruct((num_seeds,), jnp.float32)
        return start, (start.average,) * count, (loss,) * count

    found = checkpoints.restore(like)
    return _Run(0, start, (), ()) if found is None else _Run(found[0], *found[1])


@contextlib.contextmanager
def _reporting(progress: bool | Progress, num_steps: int) -> Iterator[Progress]:
    """The progress callback: a bar, the caller's, or none."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda report: None
    else:
        with Reporter() as reporter, reporter.task("training", num_steps) as task:
            yield lambda report: task.move_to(
                report.step,
                f"loss {report.loss:.4f}, {report.steps_per_second:.0f} steps/s",
            )
