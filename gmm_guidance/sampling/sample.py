"""``guided_sample``: samples of any denoiser under any guidance rule."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, overload

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
from gmm_guidance._runtime.progress import Reporter, listening, report_step
from gmm_guidance._runtime.pytree import Static, join, split
from gmm_guidance.blocks.evaluate import check_denoiser
from gmm_guidance.blocks.stack import is_block_stack
from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.diffusion.schedule import Schedule, default_schedule, levels_of
from gmm_guidance.guidance.draws import RandomDraws
from gmm_guidance.guidance.rule import GuidanceRule, Unguided, check_rule
from gmm_guidance.guidance.weak import TermState
from gmm_guidance.sampling.guided_denoise import (
    check_label,
    num_blocks_of,
    rule_outputs,
)
from gmm_guidance.sampling.record import (
    Masks,
    Recordable,
    Recorder,
    Sampled,
    as_recordables,
)
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
        recorder,
        progress,
    )
    run = functools.partial(_run, program, arrays, key, sigmas)
    batch = _Batch(_as_indices(indices, num_samples, first_index), label, initial)
    size = min(batch_size or num_samples, num_samples)
    starts = range(0, num_samples, size)
    parts = []
    with _showing(progress, (arrays, batch, key), len(levels) - 1, len(starts)) as show:
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
        recorder: what is recorded besides, ``None`` for nothing.
        progress: whether the program reports its steps.
    """

    loops: tuple[_Loop, ...]
    static: Static
    solver: Solver
    sample_shape: tuple[int, ...]
    trajectory: bool
    recorder: Recorder | None
    progress: bool


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
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """Samples; by name what is kept of each along the run, ``[steps, n, ...]``.

    And what is kept of all samples together, ``[steps, ...]``.
    """
    denoiser, loop_rules = join(arrays, program.static)
    solver, recorder = program.solver, program.recorder
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
            denoise = _GuidedDenoiser(denoiser, batch.label, rules, draws, recorder)
            step = Step(
                sigma,
                sigma_next,
                is_final,
                num_steps=len(sigmas) - 1,
                noise=lambda: noise_of(jax.random.fold_in(churn_key, i)),
            )
            kept: dict[str, jax.Array] = {}
            if recorder is None:
                x, carry, state = solver.step(denoise, x, step, carry, state)
            else:  # solvers hand the record on, as they do the state of the rule
                state = _Recorded(state, recorder.blank(x))
                x, carry, state = solver.step(denoise, x, step, carry, state)
                state, kept = state
            if program.trajectory:
                kept["trajectory"] = x
            if program.progress:
                done, _ = jax.lax.optimization_barrier((i + 1, x))
                jax.debug.callback(report_step, done)
            return (x, carry, state), kept

        x, carry, state = run
        state = _carry_over(state, _first_state(rules, x))
        return jax.lax.scan(advance, (x, carry, state), inputs)

    x = sigmas[0] * noise_of(start_key) if batch.initial is None else batch.initial
    run: Any = (x, solver.init(x), ())
    paths = []
    for (parts, repeats), body_rules in zip(program.loops, loop_rules, strict=True):
        body = list(zip(parts, body_rules, strict=True))
        period = sum(count for _, count, _ in parts)

        def run_body(run, inputs, body=body):
            found = []
            for ((_, _, is_final), rules), own in zip(body, inputs, strict=True):
                run, path = run_segment(run, own, rules, is_final)
                found.append(path)
            return run, _concatenate(found)

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
            paths.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), path))
        else:
            for first in firsts:
                run, path = run_body(run, inputs_from(first))
                paths.append(path)
    along = _concatenate(paths)
    if program.trajectory:
        along["trajectory"] = jnp.concatenate([x[None], along["trajectory"]])
    names = recorder.shared_names if recorder else ()
    return run[0], along, {name: along.pop(name) for name in names}


def _concatenate(parts: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


class _Recorded(NamedTuple):
    """The state of a rule, and the record of the step."""

    state: Any
    record: dict[str, jax.Array]


class _GuidedDenoiser(NamedTuple):
    """The denoiser under the rules of one step: what a solver is given.

    ``rules`` has one rule for each evaluation, or a single one for all of them; draws
    of a single rule have a leading axis of evaluations.
    """

    denoiser: Any
    label: Any
    rules: tuple[GuidanceRule, ...]
    draws: tuple[Any, ...]
    recorder: Recorder | None

    @property
    def is_uniform(self) -> bool:
        return len(self.rules) == 1

    def __call__(self, x, sigma, state, evaluation):
        which = 0 if self.is_uniform else evaluation
        rule, draws = self.rules[which], self.draws[which]
        if self.is_uniform:
            draws = jax.tree.map(lambda a: a[evaluation], draws)
        passes, outputs = rule_outputs(rule, self.denoiser, x, sigma, self.label, draws)
        if self.recorder is None:
            return rule.combine(outputs, x, sigma, state)
        guided, inner = rule.combine(outputs, x, sigma, state.state)
        found = self.recorder(x, self.label, passes, outputs, guided)
        record = jax.tree.map(
            lambda new, old: jnp.where(jnp.asarray(evaluation) == 0, new, old),
            found,
            state.record,
        )
        return guided, _Recorded(inner, record)


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
