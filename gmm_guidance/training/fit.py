"""The training loop: AdamW, averaged weights, snapshots, exact resume.

Networks differ in their start and in their loss; these are an ``Objective``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gmm_guidance._runtime.checkpoints import Checkpoints
from gmm_guidance._runtime.checks import check_count, check_real, plain_numbers
from gmm_guidance._runtime.interruption import Interruption
from gmm_guidance._runtime.progress import Reporter, is_watched

_CHECKPOINT_SECONDS = 10.0
_STEPS_PER_CALL = 100


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Optimization of a network, whatever its loss.

    Attributes:
        snapshots: numbers of steps at which averaged weights are kept, ascending;
            training ends at the last.
        batch_size: samples in a step, at least 1.
        learning_rate: peak learning rate of AdamW, > 0.
        warmup_steps: steps of linear warm-up, at least 0.
        decay_steps: the learning rate falls as one over the square root of the steps
            from here on, so that every snapshot is that of a run that could as well
            have ended there; ``None`` for a cosine to zero at the last step.
        adam_b2: decay of the average of squared gradients, in [0, 1).
        weight_decay: decoupled weight decay, >= 0.
        clip_norm: gradients are scaled down to this global norm, > 0.
        ema_decay: decay of the average of weights, in [0, 1).
        ema_warmup: shorten the average at the start, to a decay of ``(1 + i) / (10 +
            i)`` at step i, so that it forgets the initial weights; without, they weigh
            ``ema_decay**steps`` in a snapshot.
        label_dropout: fraction of samples trained without their label, in [0, 1).

    Raises:
        ValueError: for values out of these ranges.
    """

    snapshots: tuple[int, ...] = (200, 500, 1000, 3000, 10000)
    batch_size: int = 512
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    decay_steps: int | None = 500
    adam_b2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    ema_warmup: bool = True
    label_dropout: float = 0.15

    def __post_init__(self):
        plain_numbers(self)
        given = np.atleast_1d(np.asarray(self.snapshots, object)).ravel()
        steps = tuple(check_count("snapshots", step) for step in given)
        object.__setattr__(self, "snapshots", steps)
        if not self.snapshots or list(self.snapshots) != sorted(set(self.snapshots)):
            raise ValueError(
                f"snapshots must be ascending numbers of steps, got {self.snapshots}."
            )
        at_least("batch_size", self.batch_size, 1)
        at_least("warmup_steps", self.warmup_steps, 0)
        if self.decay_steps is not None:
            at_least("decay_steps", self.decay_steps, 1)
        positive("learning_rate", self.learning_rate)
        positive("clip_norm", self.clip_norm)
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be >= 0, got {self.weight_decay}.")
        fraction("adam_b2", self.adam_b2)
        fraction("ema_decay", self.ema_decay)
        fraction("label_dropout", self.label_dropout)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.snapshots[-1]

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with the schedule of the learning rate, and clipped gradients."""

        def inverse_sqrt(count):
            step = count.astype(jnp.float32) + 1.0
            warm = step / max(self.warmup_steps, 1)
            decay = jnp.sqrt(self.decay_steps / step)
            return self.learning_rate * jnp.minimum(jnp.minimum(warm, decay), 1.0)

        rate: Any = inverse_sqrt
        if self.decay_steps is None:
            warmup = min(self.warmup_steps, self.num_steps - 1)
            rate = optax.warmup_cosine_decay_schedule(
                0.0, self.learning_rate, warmup, self.num_steps
            )
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(rate, b2=self.adam_b2, weight_decay=self.weight_decay),
        )


def at_least(name: str, value: int, least: int) -> None:
    """Raise unless a field is a whole number of at least ``least``."""
    check_count(name, value, least)


def positive(name: str, value: float) -> None:
    """Raise ``ValueError`` unless a field is finite and > 0."""
    if not check_real(name, value) > 0:
        raise ValueError(f"{name} must be > 0, got {value}.")


def fraction(name: str, value: float) -> None:
    """Raise ``ValueError`` unless a field is in [0, 1)."""
    if not 0 <= check_real(name, value) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}.")


class TrainingProgress(NamedTuple):
    """What a progress callback is told.

    Attributes:
        step: steps done.
        num_steps: steps in all.
        loss: mean loss since the last report, over seeds if there are several.
        steps_per_second: speed since the last report.
    """

    step: int
    num_steps: int
    loss: float
    steps_per_second: float

    @property
    def detail(self) -> str:
        """Loss and speed as text."""
        return f"loss {self.loss:.4f}, {self.steps_per_second:.0f} steps/s"


Progress = Callable[[TrainingProgress], None]


class Objective(Protocol):
    """What is trained. Hashable, as a frozen dataclass is: the loop is compiled for it.

    Batch, noise and all other random choices are functions of the key of a step, so
    that resuming needs no stored random state.
    """

    def init(self, key: jax.Array) -> Any:
        """The network before training, a pytree of arrays."""
        ...

    def loss(self, network: Any, key: jax.Array, data: Any) -> jax.Array:
        """The loss of one step, a scalar."""
        ...


class Fit(NamedTuple):
    """The result of ``fit``, an entry for each of the snapshots.

    Attributes:
        networks: networks with averaged weights.
        losses: mean loss over the last steps before each snapshot.
    """

    networks: tuple[Any, ...]
    losses: tuple[jax.Array, ...]

    @property
    def network(self) -> Any:
        """The network at the end of training."""
        return self.networks[-1]


class _State(NamedTuple):
    network: Any
    average: Any
    optimizer: Any


class _Run(NamedTuple):
    """All that a resumed run needs."""

    step: int
    state: _State
    kept: Fit  # the snapshots so far


def fit(
    objective: Objective,
    key: jax.Array,
    data: Any,
    config: FitConfig,
    *,
    description: dict[str, Any],
    network: Any = None,
    data_axes: Any = None,
    progress: bool | Progress | None = None,
    checkpoint: str | os.PathLike | None = None,
    place: Callable[[Any], Any] = lambda run: run,
    steps_per_call: int | None = None,
) -> Fit:
    """Train a network, or several at once.

    Args:
        objective: start and loss of the network.
        key: a JAX random key; or keys ``[seeds]``, for as many networks, whose arrays
            then have a leading axis of seeds.
        data: arrays of the loss, a pytree.
        config: the optimization.
        description: JSON-like; with ``config`` and ``key``, what a checkpoint must
            agree with to be resumed.
        network: the network before training, in place of ``objective.init``; of one
            key.
        data_axes: with several networks, the axis of networks in ``data`` (a pytree as
            for ``jax.vmap``); ``None`` for data common to all.
        progress: ``True`` for a progress bar, a callable that is told
            ``TrainingProgress`` every few steps, ``False`` for silence; by default a
            bar on terminals and in notebooks.
        checkpoint: folder to resume from if it exists, and to keep up to date, also on
            SIGINT and SIGTERM; see ``Checkpoints``. It is deleted when training ends.
            Resumed training equals uninterrupted training bit for bit.
        place: moves ``(state, key, data)`` to the devices of a mesh.
        steps_per_call: most steps between two looks at the signals.

    Raises:
        Interrupted: on SIGINT and SIGTERM, once the current steps are done.
        OSError: if the checkpoint cannot be written.
        ValueError: if the checkpoint is a file, damaged as a whole, or of another run.
    """
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    description = description | {
        "training": dataclasses.asdict(config),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
    }
    start, key, data = place((_start(objective, config, key, network), key, data))
    most = steps_per_call or _STEPS_PER_CALL
    program = _Program(objective, config, data_axes)
    with Checkpoints(
        checkpoint, description, seconds_between=_CHECKPOINT_SECONDS
    ) as checkpoints:
        run = _resume(checkpoints, config, start, key)
        reporting = _reporting(progress, config.num_steps)
        with reporting as report, Interruption() as interruption:
            begun = time.monotonic()
            try:
                while run.step < config.num_steps:
                    before = run.step
                    # One assignment: an interruption finds the run before or after.
                    run, loss = _advance(program, most, key, data, run)
                    now = time.monotonic()
                    speed = (run.step - before) / max(now - begun, 1e-9)
                    mean = float(loss.mean())
                    report(TrainingProgress(run.step, config.num_steps, mean, speed))
                    begun = now
                    checkpoints.save_if_due(run.step, run[1:])
                    interruption.leave()
            except KeyboardInterrupt:
                if run.step > 0:
                    checkpoints.save(run.step, run[1:])
                    checkpoints.wait()
                raise
        checkpoints.remove()
    return run.kept


@functools.partial(
    jax.jit,
    static_argnums=(0, 1),
    compiler_options={"xla_backend_optimization_level": 0},  # it runs once
)
def _start(
    objective: Objective, config: FitConfig, key: jax.Array, given: Any
) -> _State:
    def one(key):
        network = objective.init(jax.random.fold_in(key, 0)) if given is None else given
        return _State(network, network, config.optimizer().init(network))

    return jax.vmap(one)(key) if key.ndim else one(key)


def _resume(
    checkpoints: Checkpoints, config: FitConfig, start: _State, key: jax.Array
) -> _Run:
    """The run at its last checkpoint, or at its start."""

    def like(step: int) -> tuple[_State, Fit]:
        count = sum(s <= step for s in config.snapshots)
        loss: Any = jax.ShapeDtypeStruct(key.shape, jnp.float32, sharding=key.sharding)
        return start, Fit((start.average,) * count, (loss,) * count)

    found = checkpoints.restore(like)
    return _Run(0, start, Fit((), ())) if found is None else _Run(found[0], *found[1])


class _Program(NamedTuple):
    """What the loop is compiled for."""

    objective: Objective
    config: FitConfig
    data_axes: Any


def _advance(
    program: _Program, most: int, key: jax.Array, data: Any, run: _Run
) -> tuple[_Run, jax.Array]:
    """Train up to the next snapshot, at most ``most`` steps; the run and its loss."""
    stop = next(s for s in program.config.snapshots if s > run.step)
    count = min(stop - run.step, most)
    state, loss = _train_steps(
        program, jnp.uint32(count), key, data, run.state, jnp.uint32(run.step)
    )
    loss.block_until_ready()
    networks, losses = run.kept
    if run.step + count == stop:
        networks, losses = (*networks, state.average), (*losses, loss)
    return _Run(run.step + count, state, Fit(networks, losses)), loss


@functools.partial(jax.jit, static_argnums=0)
def _train_steps(
    program: _Program,
    count: jax.Array,
    key: jax.Array,
    data: Any,
    state: _State,
    first_step: jax.Array,
) -> tuple[_State, jax.Array]:
    """``count`` steps; the state after them and the mean loss, of each network."""
    objective, config, data_axes = program
    optimizer = config.optimizer()

    def one(key, state, data):
        def step(index, loop):
            state, total = loop
            step_key = jax.random.fold_in(jax.random.fold_in(key, 1), index)
            loss, gradient = jax.value_and_grad(objective.loss)(
                state.network, step_key, data
            )
            # Optax mixes integer counts with floats, which a strict caller forbids.
            with jax.numpy_dtype_promotion("standard"):
                updates, inner = optimizer.update(
                    gradient, state.optimizer, state.network
                )
            network = optax.apply_updates(state.network, updates)
            decay = jnp.asarray(config.ema_decay, jnp.float32)
            if config.ema_warmup:
                done = index.astype(jnp.float32)
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

    if not key.ndim:
        return one(key, state, data)
    return jax.vmap(one, in_axes=(0, 0, data_axes))(key, state, data)


@contextlib.contextmanager
def _reporting(progress: bool | Progress | None, num_steps: int) -> Iterator[Progress]:
    """The progress callback: a bar, the caller's, or none."""
    progress = is_watched() if progress is None else progress
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda report: None
    else:
        with Reporter() as reporter, reporter.task("training", num_steps) as task:
            yield lambda report: task.move_to(report.step, report.detail)
