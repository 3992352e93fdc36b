"""``guided_sample``: samples of any denoiser under any guidance rule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import (
    as_concrete,
    as_labels,
    as_samples,
    check_count,
    check_key,
)
from gmm_guidance._runtime.pytree import Static, join, split
from gmm_guidance.blocks.evaluate import check_denoiser
from gmm_guidance.blocks.stack import is_block_stack
from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.diffusion.schedule import Schedule, default_schedule, levels_of
from gmm_guidance.guidance.draws import RandomDraws
from gmm_guidance.guidance.rule import GuidanceRule, Unguided, check_rule
from gmm_guidance.guidance.weak import TermState
from gmm_guidance.sampling.guided_denoise import apply_rule, check_label, num_blocks_of
from gmm_guidance.sampling.segments import (
    find_loops,
    plan_segments,
    same_structure,
)
from gmm_guidance.sampling.solvers import Solver, Step, as_solver
from gmm_guidance.sharding.batches import run_divided
from gmm_guidance.sharding.mesh import as_mesh, divides_parameters
from gmm_guidance.sharding.pinned import Pinned
from gmm_guidance.sharding.placement import replicate


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
        schedule: noise levels; by default ``default_schedule(denoiser)``, which fits
            the data where the denoiser knows them.
        solver: ``"euler"`` (DDIM), ``"heun"``, ``"dpmpp_2m"``, ``"unipc"``,
            ``"edm_stochastic"``, or a ``Solver``.
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
        TypeError: for arguments of another kind (a number for a rule), if the rule
            drops blocks of a denoiser without blocks, or if the solver does not support
            the rule.
    """
    check_key(key)
    check_denoiser(denoiser)
    check_rule(guidance)
    solver = as_solver(solver)
    schedule = default_schedule(denoiser) if schedule is None else schedule
    levels = levels_of(schedule)
    if initial is not None:
        initial = as_samples(initial, name="initial").astype(jnp.result_type(float))
    shape = _sample_shape(denoiser, sample_shape, initial)
    num_samples = check_count("num_samples", num_samples)
    first_index = check_count("first_index", first_index, 0)
    if batch_size is not None:
        batch_size = check_count("batch_size", batch_size)
    mesh = None if mesh is None else as_mesh(mesh)
    num_labels = getattr(denoiser, "num_labels", None)
    label = as_labels(label, (num_samples,), num_labels)
    if initial is not None and jnp.shape(initial) != (num_samples, *shape):
        raise ValueError(
            f"initial must have shape {(num_samples, *shape)}, got "
            f"{jnp.shape(initial)}."
        )
    segments = plan_segments(guidance, schedule, solver)
    check_label(label, denoiser, sum((s.rules for s in segments), ()), guidance)
    loops = find_loops(segments)
    rules = tuple(tuple(s.rules for s in loop.body) for loop in loops)
    if mesh is not None and divides_parameters(mesh) and is_block_stack(denoiser):
        denoiser = Pinned(denoiser, mesh)
    arrays, static = split((denoiser, rules))
    sigmas = jnp.asarray(levels, jnp.result_type(float))
    if mesh is not None:
        arrays, key, sigmas = replicate((arrays, key, sigmas), mesh)
    program = _Program(
        tuple(
            _Loop(
                tuple((s.start, s.stop - s.start, s.is_final) for s in loop.body),
                loop.repeats,
            )
            for loop in loops
        ),
        static,
        solver,
        shape,
        trajectory,
    )
    run = functools.partial(_run, program, arrays, key, sigmas)
    batch = _Batch(_as_indices(indices, num_samples, first_index), label, initial)
    size = min(batch_size or num_samples, num_samples)
    parts = []
    for start in range(0, num_samples, size):
        part = batch
        if size < num_samples:
            part = jax.tree.map(lambda a, s=start: a[s : s + size], batch)
        if mesh is None:
            parts.append(run(part))
        else:
            parts.append(run_divided(run, part, mesh, sample_axes=(0, 1)))
    if len(parts) == 1:
        samples, path = parts[0]
    else:
        all_samples, paths = zip(*parts, strict=True)
        samples = jnp.concatenate(all_samples)
        path = jnp.concatenate(paths, axis=1) if trajectory else None
    return (samples, path) if trajectory else samples


class _Loop(NamedTuple):
    """A ``Loop`` without its rules.

    Attributes:
        parts: of each segment of the body, its first step, its number of steps, and
            whether it is the final step of the run.
        repeats: how often the body is run.
    """

    parts: tuple[tuple[int, int, bool], ...]
    repeats: int


class _Program(NamedTuple):
    """What a run compiles to: everything static.

    Attributes:
        loops: the segments of each loop, and how often they follow each other.
        static: the static part of the denoiser and of the rules of each segment.
        solver: the solver.
        sample_shape: shape of one sample.
        trajectory: whether the state at each noise level is returned.
    """

    loops: tuple[_Loop, ...]
    static: Static
    solver: Solver
    sample_shape: tuple[int, ...]
    trajectory: bool


class _Batch(NamedTuple):
    """Samples of one call: global indices, labels and initial noise, ``[n, ...]``."""

    indices: jax.Array
    label: jax.Array | None
    initial: jax.Array | None


@functools.partial(jax.jit, static_argnums=0)
def _run(
    program: _Program,
    arrays: list[Any],
    key: jax.Array,
    sigmas: jax.Array,
    batch: _Batch,
) -> tuple[jax.Array, jax.Array | None]:
    """Samples, and their trajectory ``[steps + 1, n, ...]`` if asked for."""
    denoiser, loop_rules = join(arrays, program.static)
    solver = program.solver
    start_key, mask_key, churn_key = jax.random.split(key, 3)

    def noise_of(noise_key):
        return jax.vmap(
            lambda i: jax.random.normal(
                jax.random.fold_in(noise_key, i), program.sample_shape, sigmas.dtype
            )
        )(batch.indices)

    def inputs_of(first, count, rules, is_final):
        """What ``count`` steps of a segment need."""
        steps = first + jnp.arange(count, dtype=jnp.uint32)
        # All random masks of the segment at once, as data: the loop stays pure.
        draws = _draw(
            rules,
            solver.num_evaluations(is_final),
            lambda i, e: RandomDraws(
                mask_key, i, e, num_blocks_of(denoiser), batch.indices
            ),
            steps,
        )
        return steps, sigmas[steps], sigmas[steps + 1], draws

    def run_segment(run, inputs, rules, is_final):
        def advance(run, inputs):
            x, carry, state = run
            i, sigma, sigma_next, draws = inputs
            denoise = _GuidedDenoiser(denoiser, batch.label, rules, draws)
            step = Step(
                sigma,
                sigma_next,
                is_final,
                num_steps=len(sigmas) - 1,
                noise=lambda: noise_of(jax.random.fold_in(churn_key, i)),
            )
            x, carry, state = solver.step(denoise, x, step, carry, state)
            return (x, carry, state), (x if program.trajectory else None)

        x, carry, state = run
        state = _carry_over(state, _first_state(rules, x))
        return jax.lax.scan(advance, (x, carry, state), inputs)

    x = sigmas[0] * noise_of(start_key) if batch.initial is None else batch.initial
    run: Any = (x, solver.init(x), ())
    paths = [x[None]]
    for (parts, repeats), body_rules in zip(program.loops, loop_rules, strict=True):
        body = list(zip(parts, body_rules, strict=True))
        period = sum(count for _, count, _ in parts)

        def run_body(run, inputs, body=body):
            found = []
            for ((_, _, is_final), rules), own in zip(body, inputs, strict=True):
                run, path = run_segment(run, own, rules, is_final)
                found.append(path)
            return run, (jnp.concatenate(found) if program.trajectory else None)

        def inputs_from(first, body=body):
            return [
                inputs_of(first + (start - body[0][0][0]), count, rules, is_final)
                for (start, count, is_final), rules in body
            ]

        firsts = np.uint32(parts[0][0]) + period * np.arange(repeats, dtype=np.uint32)
        states = [_first_state(rules, x) for rules in body_rules]
        if repeats > 1 and all(same_structure(states[0], s) for s in states):
            run = (*run[:2], _carry_over(run[2], states[0]))
            inputs = jax.vmap(inputs_from)(firsts)
            run, path = jax.lax.scan(run_body, run, inputs)
            paths.append(path if path is None else path.reshape(-1, *x.shape))
        else:
            for first in firsts:
                run, path = run_body(run, inputs_from(first))
                paths.append(path)
    return run[0], (jnp.concatenate(paths) if program.trajectory else None)


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
        return apply_rule(rule, self.denoiser, x, sigma, self.label, draws, state)


def _draw(
    rules: tuple[GuidanceRule, ...],
    num_evaluations: int,
    random: Callable[[jax.Array, jax.Array], RandomDraws],
    steps: jax.Array,
) -> tuple[Any, ...]:
    """Each rule's draws over the steps of a segment (and its evaluations, if one)."""
    evaluations = jnp.arange(num_evaluations, dtype=jnp.uint32)

    def at_step(step):
        if len(rules) == 1:
            return (jax.vmap(lambda e: rules[0].draw(random(step, e)))(evaluations),)
        return tuple(
            rule.draw(random(step, e))
            for rule, e in zip(rules, evaluations, strict=True)
        )

    return jax.vmap(at_step)(steps)


def _first_state(rules: tuple[GuidanceRule, ...], x: jax.Array) -> Any:
    """The state of the evaluations of a step: rules without state pass it on."""
    states = [rule.init(x) for rule in rules]
    kept = [state for state in states if jax.tree.leaves(state)]
    if not all(same_structure(kept[0], state) for state in kept):
        raise ValueError(
            "the rules of the two evaluations of one step carry different states; "
            "separate them by a StepWindow, which never divides a step."
        )
    return kept[0] if kept else states[0]


def _carry_over(state: Any, fresh: Any) -> Any:
    """A rule's state across segments: kept where the next rule has the same.

    The state of a rule is kept as well where a held term is added to it or ends.
    """
    if same_structure(state, fresh):
        return state
    if isinstance(fresh, TermState):
        base = state.base if isinstance(state, TermState) else state
        return fresh._replace(base=_carry_over(base, fresh.base))
    return _carry_over(state.base, fresh) if isinstance(state, TermState) else fresh


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
