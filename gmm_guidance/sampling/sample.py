"""``guided_sample``: samples of any denoiser under any guidance rule."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import (
    as_concrete,
    as_labels,
    as_samples,
    check_count,
    check_key,
)
from gmm_guidance._runtime.hooks import explaining_branches
from gmm_guidance._runtime.progress import Reporter, listening
from gmm_guidance._runtime.pytree import split
from gmm_guidance.blocks.evaluate import check_denoiser
from gmm_guidance.blocks.stack import is_block_stack
from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.diffusion.schedule import (
    Schedule,
    default_schedule,
    levels_of,
    warn_of_scale,
)
from gmm_guidance.guidance.rule import GuidanceRule, Unguided, check_rule
from gmm_guidance.sampling.guided_denoise import (
    check_blocks,
    check_label,
    num_blocks_of,
)
from gmm_guidance.sampling.record import (
    Masks,
    Recordable,
    Recorder,
    Sampled,
    as_recordables,
)
from gmm_guidance.sampling.run import Batch, Program, run_program
from gmm_guidance.sampling.segments import find_loops, plan_segments
from gmm_guidance.sampling.solvers import Solver, as_solver
from gmm_guidance.sharding.batches import run_divided
from gmm_guidance.sharding.mesh import as_mesh, divides_parameters
from gmm_guidance.sharding.pinned import Pinned
from gmm_guidance.sharding.placement import replicate


@overload
def guided_sample(
    key: jax.Array,
    denoiser: Denoiser,
    label: ArrayLike | None = None,
    *,
    num_samples: int,
    guidance: GuidanceRule = ...,
    schedule: Schedule | None = ...,
    solver: str | Solver = ...,
    trajectory: Literal[False] = ...,
    progress: bool = ...,
    initial: jax.Array | None = ...,
    sample_shape: tuple[int, ...] | None = ...,
    first_index: int = ...,
    indices: ArrayLike | None = ...,
    batch_size: int | None = ...,
    mesh: Mesh | None = ...,
) -> jax.Array: ...


@overload
def guided_sample(
    key: jax.Array,
    denoiser: Denoiser,
    label: ArrayLike | None = None,
    *,
    num_samples: int,
    guidance: GuidanceRule = ...,
    schedule: Schedule | None = ...,
    solver: str | Solver = ...,
    trajectory: Literal[True],
    progress: bool = ...,
    initial: jax.Array | None = ...,
    sample_shape: tuple[int, ...] | None = ...,
    first_index: int = ...,
    indices: ArrayLike | None = ...,
    batch_size: int | None = ...,
    mesh: Mesh | None = ...,
) -> tuple[jax.Array, jax.Array]: ...


@overload
def guided_sample(
    key: jax.Array,
    denoiser: Denoiser,
    label: ArrayLike | None = None,
    *,
    num_samples: int,
    guidance: GuidanceRule = ...,
    schedule: Schedule | None = ...,
    solver: str | Solver = ...,
    trajectory: bool = ...,
    record: Sequence[Recordable],
    progress: bool = ...,
    initial: jax.Array | None = ...,
    sample_shape: tuple[int, ...] | None = ...,
    first_index: int = ...,
    indices: ArrayLike | None = ...,
    batch_size: int | None = ...,
    mesh: Mesh | None = ...,
) -> Sampled: ...


def guided_sample(
    key: jax.Array,
    denoiser: Denoiser,
    label: ArrayLike | None = None,
    *,
    num_samples: int,
    guidance: GuidanceRule = Unguided(),
    schedule: Schedule | None = None,
    solver: str | Solver = "heun",
    trajectory: bool = False,
    record: Sequence[Recordable] | None = None,
    progress: bool = False,
    initial: jax.Array | None = None,
    sample_shape: tuple[int, ...] | None = None,
    first_index: int = 0,
    indices: ArrayLike | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array] | Sampled:
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
        schedule: noise levels; by default ``default_schedule(denoiser)``, which fits
            the data where the denoiser knows them.
        solver: ``"euler"`` (DDIM), ``"heun"``, ``"dpmpp_2m"``, ``"unipc"``,
            ``"edm_stochastic"``, or a ``Solver``.
        trajectory: also return the state at each noise level.
        record: what is recorded at each step, any of ``"denoised"``,
            ``"update_norm"`` and ``"masks"``; see ``Sampled``, which is then returned.
            The program is another one, so that samples may differ in their last digits.
        progress: show the steps on a terminal or in a notebook, which compiles a
            program of its own. Not inside ``jax.jit`` or another transformation.
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
        trajectory ``[steps + 1, num_samples, ...]``, from noise to samples; with
        ``record`` a ``Sampled``.

    Raises:
        ValueError: for counts below 1, labels out of range, a rule that needs a label
            without one, a window of the rule that holds no evaluation of the run, an
            unknown solver, an unknown sample shape, a batch that several processes
            cannot divide evenly, something to record that the rule does not have, or
            progress inside of a transformation.
        TypeError: for arguments of another kind (a number for a rule), if the rule
            drops blocks of a denoiser without blocks, or if the solver does not support
            the rule.
    """
    check_key(key)
    check_denoiser(denoiser)
    check_rule(guidance)
    solver = as_solver(solver)
    is_own = schedule is not None
    schedule = default_schedule(denoiser) if schedule is None else schedule
    levels = levels_of(schedule)
    if is_own:
        warn_of_scale(levels, denoiser, has_initial=initial is not None)
    if initial is not None:
        initial = as_samples(initial, name="initial").astype(jnp.result_type(float))
    shape = _sample_shape(denoiser, sample_shape, initial)
    num_samples = check_count("num_samples", num_samples)
    first_index = check_count("first_index", first_index, 0)
    if batch_size is not None:
        batch_size = check_count("batch_size", batch_size)
    mesh = None if mesh is None else as_mesh(mesh)
    num_labels = getattr(denoiser, "num_labels", None)
    has_null = getattr(denoiser, "null_label", True)
    label = as_labels(label, (num_samples,), num_labels, null_allowed=has_null)
    if initial is not None and jnp.shape(initial) != (num_samples, *shape):
        raise ValueError(
            f"initial must have shape {(num_samples, *shape)}, got "
            f"{jnp.shape(initial)}."
        )
    segments = plan_segments(guidance, schedule, solver)
    acting = sum((s.rules for s in segments), ())
    check_label(label, denoiser, acting, guidance)
    check_blocks(denoiser, acting)
    recorder = None
    if record is not None:
        names = as_recordables(record)
        depth = num_blocks_of(denoiser)
        masks = Masks.of_rules(acting, depth, label) if "masks" in names else None
        recorder = Recorder(names, masks)
    loops = find_loops(segments)
    rules = tuple(tuple(s.rules for s in loop.body) for loop in loops)
    if mesh is not None and divides_parameters(mesh) and is_block_stack(denoiser):
        denoiser = Pinned(denoiser, mesh)
    arrays, static = split((denoiser, rules))
    sigmas = jnp.asarray(levels, jnp.result_type(float))
    if mesh is not None:
        arrays, key, sigmas = replicate((arrays, key, sigmas), mesh)
    program = Program.of(loops, static, solver, shape, trajectory, recorder, progress)
    run = functools.partial(run_program, program, arrays, key, sigmas)
    batch = Batch(_as_indices(indices, num_samples, first_index), label, initial)
    size = min(batch_size or num_samples, num_samples)
    starts = range(0, num_samples, size)
    parts = []
    showing = _showing(progress, (arrays, batch, key), len(levels) - 1, len(starts))
    with showing as show, explaining_branches():
        for start in starts:
            part = batch
            if size < num_samples:
                part = jax.tree.map(lambda a, s=start: a[s : s + size], batch)
            if mesh is None:
                parts.append(run(part))
            else:
                parts.append(run_divided(run, part, mesh, sample_axes=(0, 1, None)))
            show()
    samples, along, shared = parts[0]
    if len(parts) > 1:
        samples = jnp.concatenate([part[0] for part in parts])
        paths = [part[1] for part in parts]
        along = jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *paths)
    path = along.pop("trajectory", None)
    if recorder is not None:
        return Sampled(samples, path, sigmas, along | shared)
    return samples if path is None else (samples, path)


@contextlib.contextmanager
def _showing(
    progress: bool, arguments: Any, num_steps: int, num_parts: int
) -> Iterator[Callable[[], None]]:
    """Show the steps of a run; what is yielded counts a part of the samples as done."""
    if not progress:
        yield lambda: None
        return
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
        raise ValueError(
            "progress=True must not be inside of jax.jit or another transformation, "
            "whose program shows nothing; leave it out there."
        )
    done = 0
    total = num_steps * num_parts
    with Reporter() as reporter, reporter.task("sampling", total) as task:

        def count_part() -> None:
            nonlocal done
            jax.effects_barrier()
            done += num_steps
            task.move_to(done)

        with listening(lambda step: task.move_to(done + step)):
            task.move_to(0, "compiling")
            yield count_part


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
    sizes = (sample_shape,) if isinstance(sample_shape, int) else sample_shape
    return tuple(check_count("each size in sample_shape", s) for s in sizes)


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
