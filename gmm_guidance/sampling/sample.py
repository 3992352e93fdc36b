"""``guided_sample``: draw samples of any denoiser under any guidance rule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_concrete, check_key
from gmm_guidance._runtime.pytree import Static, join, split
from gmm_guidance.blocks.evaluate import evaluate_passes, is_block_stack
from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.diffusion.schedule import Karras, Schedule
from gmm_guidance.guidance.rule import GuidanceRule, Unguided, full_precision
from gmm_guidance.sampling.segments import plan_segments, same_structure
from gmm_guidance.sampling.solvers import Solver, as_solver
from gmm_guidance.sharding.batches import shard_batch
from gmm_guidance.sharding.mesh import divides_parameters, num_batch_parts
from gmm_guidance.sharding.pinned import Pinned
from gmm_guidance.sharding.placement import replicate


def guided_sample(
    key: jax.Array,
    denoiser: Denoiser,
    label: ArrayLike | None = None,
    *,
    num_samples: int,
    guidance: GuidanceRule = Unguided(),
    schedule: Schedule = Karras(),
    solver: str | Solver = "heun",
    trajectory: bool = False,
    initial: jax.Array | None = None,
    sample_shape: tuple[int, ...] | None = None,
    first_index: int = 0,
    indices: ArrayLike | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Sample a denoiser under guidance.

    The noise of a sample depends on the key and its global index alone, and random
    masks on the key and the step, so results do not depend on ``batch_size`` beyond the
    rounding of matrix products. Scales of the rule are traced: a sweep compiles once,
    and ``jax.vmap`` over keys and scales works. (Under ``vmap`` over keys each run has
    masks of its own, so that the passes of all runs are computed in full.)

    Args:
        key: a JAX random key.
        denoiser: any callable ``f(x, sigma, label) -> D``, with x ``[n, ...]``, sigma a
            scalar, label ``[n]`` integers or ``None`` for no condition. Blocks can be
            dropped only of a ``BlockStack``.
        label: the condition: ``None``, an integer, or ``[num_samples]`` integers.
        num_samples: how many samples, at least 1.
        guidance: the rule. Python scales that are off cost no pass.
        schedule: noise levels.
        solver: ``"euler"`` (DDIM), ``"heun"``, ``"dpmpp_2m"``, ``"edm_stochastic"``, or
            a ``Solver``.
        trajectory: also return the state at each noise level.
        initial: noisy samples at the highest noise level, ``[num_samples, ...]``, in
            place of Gaussian noise.
        sample_shape: shape of one sample; by default the denoiser's own
            ``sample_shape``, or that of ``initial``.
        first_index: global index of the first sample, to draw a large set in parts.
        indices: the global index of each sample, ``[num_samples]``, in place of those
            from ``first_index`` on.
        batch_size: evaluate at most so many samples at once.
        mesh: devices (``MeshConfig.build``) over which samples are divided. Arrays of
            the denoiser that are not placed on it are copied to each device. The
            samples stay there; what one device computes does not depend on how many
            there are, given the number of samples on each.

    Returns:
        Samples ``[num_samples, ...]``; with ``trajectory`` a pair of them and the
        trajectory ``[steps + 1, num_samples, ...]``, from noise to samples.

    Raises:
        ValueError: for counts below 1, labels out of range, a rule that needs a label
            without one, a window of the rule that holds no evaluation of the run, an
            unknown solver, an unknown sample shape, or a batch that several processes
            cannot divide evenly.
        TypeError: if the rule drops blocks of a denoiser without blocks, or if the
            solver does not support the rule.
    """
    check_key(key)
    solver = as_solver(solver)
    if initial is not None:
        initial = jnp.asarray(initial, jnp.result_type(float))
    shape = _sample_shape(denoiser, sample_shape, initial)
    _check_counts(num_samples, batch_size, first_index)
    label = _as_labels(label, num_samples, getattr(denoiser, "num_labels", None))
    if label is None and guidance.needs_label:
        raise ValueError(
            f"{type(guidance).__name__} guides towards a label, got label=None. Give a "
            f"label, or use Unguided() for unconditional samples."
        )
    if initial is not None and jnp.shape(initial) != (num_samples, *shape):
        raise ValueError(
            f"initial must have shape {(num_samples, *shape)}, got "
            f"{jnp.shape(initial)}."
        )
    if mesh is not None and divides_parameters(mesh) and is_block_stack(denoiser):
        denoiser = Pinned(denoiser, mesh)
    segments = plan_segments(guidance, schedule, solver)
    arrays, static = split((denoiser, tuple(s.rules for s in segments)))
    sigmas = jnp.asarray(schedule.sigmas(), jnp.result_type(float))
    if mesh is not None:
        arrays, key, sigmas = replicate((arrays, key, sigmas), mesh)
    run = functools.partial(
        _run,
        tuple((s.start, s.stop, s.is_final) for s in segments),
        static,
        solver,
        shape,
        trajectory,
        arrays,
        key,
        sigmas,
    )
    index = _as_indices(indices, num_samples, first_index)
    size = batch_size or num_samples
    parts = []
    for start in range(0, num_samples, size):
        count = min(size, num_samples - start)
        inputs: tuple[Any, ...] = (index, label, initial)
        if count < num_samples:
            inputs = jax.tree.map(lambda a, s=start, n=count: a[s : s + n], inputs)
        parts.append(_run_on(mesh, run, inputs, count))
    if len(parts) == 1:
        return parts[0]
    if not trajectory:
        return jnp.concatenate(parts)
    samples, paths = zip(*parts, strict=True)
    return jnp.concatenate(samples), jnp.concatenate(paths, axis=1)


def _run_on(
    mesh: Mesh | None, run: Callable[..., Any], inputs: tuple[Any, ...], count: int
) -> Any:
    """Run one batch, divided over the mesh if there is one."""
    if mesh is None:
        return run(*inputs)
    filling = -count % num_batch_parts(mesh)
    if filling and jax.process_count() > 1:
        raise ValueError(
            f"with several processes each batch must be a multiple of the "
            f"{num_batch_parts(mesh)} parts of the mesh, got {count} samples; choose "
            f"num_samples and batch_size so."
        )

    def fill(values: jax.Array) -> jax.Array:
        last = jnp.broadcast_to(values[-1:], (filling, *values.shape[1:]))
        return jnp.concatenate([values, last])

    if filling:
        inputs = jax.tree.map(fill, inputs)
    found = run(*jax.tree.map(lambda a: shard_batch(a, mesh), inputs))
    if not filling:
        return found
    if isinstance(found, tuple):
        return found[0][:count], found[1][:, :count]
    return found[:count]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _run(
    bounds: tuple[tuple[int, int, bool], ...],
    static: Static,
    solver: Solver,
    shape: tuple[int, ...],
    trajectory: bool,
    arrays: list[Any],
    key: jax.Array,
    sigmas: jax.Array,
    index: jax.Array,
    label: jax.Array | None,
    initial: jax.Array | None,
) -> Any:
    denoiser, segment_rules = join(arrays, static)
    num_blocks = denoiser.num_blocks if is_block_stack(denoiser) else None
    start_key, mask_key, churn_key = jax.random.split(key, 3)

    def noise_of(noise_key):
        return jax.vmap(
            lambda i: jax.random.normal(
                jax.random.fold_in(noise_key, i), shape, sigmas.dtype
            )
        )(index)

    x = sigmas[0] * noise_of(start_key) if initial is None else initial
    carry = solver.init(x)
    state: Any = ()
    paths = [x[None]]
    for (start, stop, is_final), rules in zip(bounds, segment_rules, strict=True):
        state = _carry_over(state, _first_state(rules, x))
        steps = jnp.arange(start, stop, dtype=jnp.uint32)
        # All random masks of the segment at once, as data: the loop stays pure.
        count = solver.num_evaluations(is_final)
        draws = _draw(rules, count, mask_key, steps, num_blocks, index)

        def step(loop, inputs, rules=rules, is_final=is_final):
            x, carry, state = loop
            i, sigma, sigma_next, draws = inputs

            denoise = _GuidedDenoiser(denoiser, label, rules, draws)
            x, carry, state = solver.step(
                denoise,
                x,
                sigma,
                sigma_next,
                carry,
                state,
                lambda: noise_of(jax.random.fold_in(churn_key, i)),
                len(sigmas) - 1,
                is_final,
            )
            return (x, carry, state), (x if trajectory else None)

        inputs = (steps, sigmas[start:stop], sigmas[start + 1 : stop + 1], draws)
        (x, carry, state), path = jax.lax.scan(step, (x, carry, state), inputs)
        paths.append(path)
    return (x, jnp.concatenate(paths)) if trajectory else x


class _GuidedDenoiser(NamedTuple):
    """The denoiser under the rules of one step: what a solver is given.

    ``rules`` has one rule for each evaluation, or a single one for all of them; draws
    of a single rule have a leading axis of evaluations.
    """

    denoiser: Any
    label: Any
    rules: tuple[GuidanceRule, ...]
    draws: tuple[Any, ...]

    @property
    def is_uniform(self) -> bool:
        return len(self.rules) == 1

    def __call__(self, x, sigma, state, evaluation):
        which = 0 if self.is_uniform else evaluation
        rule, draws = self.rules[which], self.draws[which]
        if self.is_uniform:
            draws = jax.tree.map(lambda a: a[evaluation], draws)
        passes = rule.passes(self.label, draws)
        if passes:
            outputs = evaluate_passes(self.denoiser, x, sigma, passes)
        else:  # the rule knows the answer without the network
            outputs = jnp.zeros((0, *x.shape), x.dtype)
        return rule.combine(full_precision(outputs), x, sigma, state)


def _draw(rules, num_evaluations, key, steps, num_blocks, index) -> tuple[Any, ...]:
    """Each rule's draws over the steps of a segment (and its evaluations, if one)."""

    def over_steps(draw):
        return jax.vmap(draw)(steps)

    if len(rules) == 1:
        evaluations = jnp.arange(num_evaluations, dtype=jnp.uint32)
        rule = rules[0]
        return (
            over_steps(
                lambda i: jax.vmap(lambda e: rule.draw(key, i, e, num_blocks, index))(
                    evaluations
                )
            ),
        )
    return tuple(
        over_steps(
            lambda i, e=e, rule=rule: rule.draw(
                key, i, jnp.asarray(e, jnp.uint32), num_blocks, index
            )
        )
        for e, rule in enumerate(rules)
    )


def _first_state(rules: tuple[GuidanceRule, ...], x: jax.Array) -> Any:
    """The state of the evaluations of a step: rules without state hand it on."""
    states = [rule.init(x) for rule in rules]
    kept = [state for state in states if jax.tree.leaves(state)]
    if not all(same_structure(kept[0], state) for state in kept):
        raise ValueError(
            "the rules of the two evaluations of one step carry different states; "
            "separate them by a StepWindow, which never divides a step."
        )
    return kept[0] if kept else states[0]


def _carry_over(state: Any, fresh: Any) -> Any:
    """A rule's state across segments: kept where the next rule has the same."""
    return state if same_structure(state, fresh) else fresh


def _sample_shape(denoiser, sample_shape, initial) -> tuple[int, ...]:
    if sample_shape is None:
        sample_shape = getattr(denoiser, "sample_shape", None)
    if sample_shape is None and initial is not None:
        sample_shape = jnp.shape(initial)[1:]
    if sample_shape is None:
        raise ValueError(
            f"the shape of a sample is unknown: {type(denoiser).__name__} has no "
            f"sample_shape; pass sample_shape=(2,), say, or initial noise."
        )
    return tuple(int(s) for s in sample_shape)


def _check_counts(num_samples, batch_size, first_index) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if first_index < 0:
        raise ValueError(f"first_index must be at least 0, got {first_index}.")


def _as_indices(indices: Any, num_samples: int, first_index: int) -> jax.Array:
    if indices is None:
        return jnp.arange(num_samples, dtype=jnp.uint32) + jnp.uint32(first_index)
    if first_index:
        raise ValueError(
            f"give first_index or indices, got {first_index} and both; drop one."
        )
    indices = jnp.asarray(indices)
    values = as_concrete(indices)
    if (
        indices.shape != (num_samples,)
        or not jnp.issubdtype(indices.dtype, jnp.integer)
        or (values is not None and (values < 0).any())
    ):
        raise ValueError(
            f"indices must be {num_samples} integers of at least 0, got "
            f"{indices.dtype} {indices.shape}."
        )
    return indices.astype(jnp.uint32)


def _as_labels(label, num_samples: int, num_labels: int | None) -> jax.Array | None:
    if label is None:
        return None
    label = jnp.asarray(label)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"label must be an integer, got dtype {label.dtype}.")
    if label.shape not in ((), (num_samples,)):
        raise ValueError(
            f"label must be an integer or [{num_samples}] integers, one for each "
            f"sample, got shape {label.shape}."
        )
    values = as_concrete(label)
    if values is not None and num_labels is not None:
        bad = values[(values < 0) | (values > num_labels)]
        if np.size(bad):
            raise ValueError(
                f"label must be in 0..{num_labels - 1} (or {num_labels} for no "
                f"condition), got {np.unique(bad)[:5].tolist()}."
            )
    return jnp.broadcast_to(label.astype(jnp.int32), (num_samples,))
