"""A run of the sampler: compiled steps, one after another.

Where everything is known, a program is compiled for each kind of step, however many
follow each other, and rules share what they have in common: the steps of S² outside its
window are those of CFG. Inside a traced program, which may be differentiated or mapped,
the run is part of that program, with loops of fixed lengths.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance._runtime.progress import report_step
from gmm_guidance._runtime.pytree import Static, join, split
from gmm_guidance.guidance.draws import RandomDraws
from gmm_guidance.guidance.rule import GuidanceRule, run_combine
from gmm_guidance.guidance.weak import TermState
from gmm_guidance.sampling.guided_denoise import num_blocks_of, rule_outputs
from gmm_guidance.sampling.record import Recorder
from gmm_guidance.sampling.segments import Loop, same_structure
from gmm_guidance.sampling.solvers import Euler, Solver, Step, run_step


class _Loop(NamedTuple):
    """A ``Loop`` without its rules.

    Attributes:
        parts: of each segment of the body, its first step, its number of steps, and
            whether it is the final step of the run.
        repeats: how often the body is run.
    """

    parts: tuple[tuple[int, int, bool], ...]
    repeats: int


class Program(NamedTuple):
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

    @classmethod
    def of(cls, loops: Sequence[Loop], static: Static, *rest: Any) -> Program:
        """The program of loops, whose rules are in the static part."""
        parts = [
            _Loop(
                tuple((s.start, s.stop - s.start, s.is_final) for s in loop.body),
                loop.repeats,
            )
            for loop in loops
        ]
        return cls(tuple(parts), static, *rest)


class Batch(NamedTuple):
    """Samples of one call: global indices, labels and initial noise, ``[n, ...]``."""

    indices: jax.Array
    label: jax.Array | None
    initial: jax.Array | None


def run_program(
    program: Program, arrays: list[Any], key: jax.Array, sigmas: jax.Array, batch: Batch
) -> Results:
    """Run a program; its results, see ``Results``.

    Args:
        program: everything static.
        arrays: the arrays of the denoiser and of the rules.
        key: the key of the run.
        sigmas: noise levels ``[steps + 1]``.
        batch: the samples.
    """
    leaves = jax.tree.leaves((arrays, key, sigmas, batch, jnp.zeros(())))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return _run_traced(program, arrays, key, sigmas, batch)
    denoiser, loop_rules = join(arrays, program.static)
    x, mask_key, churn_key = _begin(program.sample_shape, key, sigmas, batch)
    run: Any = (x, program.solver.init(x), ())
    path, records = [x], []
    one_by_one = program.trajectory or program.recorder is not None
    for (parts, repeats), body_rules in zip(program.loops, loop_rules, strict=True):
        period = sum(count for _, count, _ in parts)
        body = []
        for (start, count, is_final), rules in zip(parts, body_rules, strict=True):
            own, static = split((denoiser, rules))
            kind = _Kind.of(program, static, is_final)
            # All random masks at once, as data: a program draws them, another steps.
            evaluations = program.solver.num_evaluations(is_final)
            rule_arrays, rule_static = split(rules)
            drawn = (rule_static, num_blocks_of(denoiser), evaluations)
            draws = _draw_steps(drawn, rule_arrays, mask_key, sigmas, batch.indices)
            body.append((kind, own, draws, start, count, rules))
        for repeat in range(repeats):
            for kind, own, draws, start, count, rules in body:
                run = (*run[:2], _carry_over(run[2], _first_state(rules, x)))
                first = start + repeat * period
                stops = range(first + 1, first + count + 1)
                for stop in stops if one_by_one else (first + count,):
                    bounds = np.array([first, stop], np.uint32)
                    given = (own, churn_key, sigmas, batch, draws)
                    run, record = _take_steps(kind, given, bounds, run)
                    if one_by_one:  # else the states of held terms would all stay
                        path.append(run[0])
                        records.append(record)
                    first = stop
    along: dict[str, jax.Array] = {}
    if program.recorder is not None:
        along = jax.tree.map(lambda *parts: jnp.stack(parts), *records)
    if program.trajectory:
        along["trajectory"] = jnp.stack(path)
    return _results(program, run[0], along)


#: Samples ``[n, ...]``; by name what is kept of each along the run, ``[steps, n, ...]``
#: (the trajectory has one more); and what is kept of all together, ``[steps, ...]``.
Results = tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]


def _results(program: Program, x: jax.Array, along: dict[str, jax.Array]) -> Results:
    names = program.recorder.shared_names if program.recorder else ()
    return x, along, {name: along.pop(name) for name in names}


class _Kind(NamedTuple):
    """What steps compile to.

    Attributes:
        static: the static part of the denoiser and of the rules.
        solver: the solver.
        is_final: whether it is the step to noise level 0.
        recorder: what is recorded, ``None`` for nothing.
        progress: whether each step is reported.
    """

    static: Static
    solver: Solver
    is_final: bool
    recorder: Recorder | None
    progress: bool

    @classmethod
    def of(cls, program: Program, static: Static, is_final: bool) -> _Kind:
        """Steps of a program."""
        solver = program.solver
        is_final = is_final and solver != Euler()  # whose last step is like all others
        return cls(static, solver, is_final, program.recorder, program.progress)


@functools.partial(jax.jit, static_argnums=0)
def _begin(
    shape: tuple[int, ...], key: jax.Array, sigmas: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The samples at the highest noise level; the keys of masks and of added noise."""
    start_key, mask_key, churn_key = jax.random.split(key, 3)
    if batch.initial is not None:
        return batch.initial, mask_key, churn_key
    noise = _noise(start_key, batch.indices, shape, sigmas.dtype)
    return sigmas[0] * noise, mask_key, churn_key


@functools.partial(
    jax.jit,
    static_argnums=0,
    compiler_options={"xla_backend_optimization_level": 0},  # it runs once
)
def _draw_steps(
    kind: tuple[Static, int | None, int],
    arrays: list[Any],
    mask_key: jax.Array,
    sigmas: jax.Array,
    indices: jax.Array,
) -> tuple[Any, ...]:
    """Each rule's draws at every step of a run."""
    static, depth, num_evaluations = kind
    rules = join(arrays, static)
    steps = jnp.arange(len(sigmas) - 1, dtype=jnp.uint32)
    return _draw(rules, depth, num_evaluations, mask_key, steps, indices)


@functools.partial(jax.jit, static_argnums=0)
def _take_steps(
    kind: _Kind, given: Any, bounds: jax.Array, run: Any
) -> tuple[Any, dict[str, jax.Array]]:
    """Steps ``bounds[0] .. bounds[1] - 1``, however many; the record of the last."""
    arrays, churn_key, sigmas, batch, draws = given
    denoiser, rules = join(arrays, kind.static)

    def step(i, loop):
        own = jax.tree.map(lambda a: a[i], draws)
        inputs = i, sigmas[i], sigmas[i + 1], own
        levels = len(sigmas)
        return _step(kind, denoiser, rules, batch, churn_key, levels, loop[0], inputs)

    blank = kind.recorder.blank(run[0]) if kind.recorder else {}
    return jax.lax.fori_loop(bounds[0], bounds[1], step, (run, blank))


@functools.partial(jax.jit, static_argnums=0)
def _run_traced(
    program: Program,
    arrays: list[Any],
    key: jax.Array,
    sigmas: jax.Array,
    batch: Batch,
) -> Results:
    """The whole run in one program."""
    denoiser, loop_rules = join(arrays, program.static)
    x, mask_key, churn_key = _begin(program.sample_shape, key, sigmas, batch)

    def inputs_of(first, count, kind, rules):
        """What ``count`` steps of a segment need."""
        steps = first + jnp.arange(count, dtype=jnp.uint32)
        # All random masks of the segment at once, as data: the loop stays pure.
        evaluations = kind.solver.num_evaluations(kind.is_final)
        depth = num_blocks_of(denoiser)
        draws = _draw(rules, depth, evaluations, mask_key, steps, batch.indices)
        return steps, sigmas[steps], sigmas[steps + 1], draws

    def run_segment(run, inputs, kind, rules):
        def advance(run, inputs):
            levels = len(sigmas)
            run, kept = _step(
                kind, denoiser, rules, batch, churn_key, levels, run, inputs
            )
            return run, kept | ({"trajectory": run[0]} if program.trajectory else {})

        x, carry, state = run
        state = _carry_over(state, _first_state(rules, x))
        return jax.lax.scan(advance, (x, carry, state), inputs)

    run: Any = (x, program.solver.init(x), ())
    paths = []
    for (parts, repeats), body_rules in zip(program.loops, loop_rules, strict=True):
        body = [
            (start, count, _Kind.of(program, program.static, is_final), rules)
            for (start, count, is_final), rules in zip(parts, body_rules, strict=True)
        ]
        period = sum(count for _, count, _ in parts)

        def run_body(run, inputs, body=body):
            found = []
            for (_, _, kind, rules), own in zip(body, inputs, strict=True):
                run, path = run_segment(run, own, kind, rules)
                found.append(path)
            return run, _concatenate(found)

        def inputs_from(first, body=body):
            return [
                inputs_of(first + (start - body[0][0]), count, kind, rules)
                for start, count, kind, rules in body
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
    return _results(program, run[0], along)


def _concatenate(parts: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def _step(
    kind: _Kind,
    denoiser: Any,
    rules: tuple[GuidanceRule, ...],
    batch: Batch,
    churn_key: jax.Array,
    num_levels: int,
    run: Any,
    inputs: Any,
) -> tuple[Any, dict[str, jax.Array]]:
    """One step: samples, what the solver carries, state of the rules; the record."""
    x, carry, state = run
    i, sigma, sigma_next, draws = inputs
    step = Step(
        sigma,
        sigma_next,
        kind.is_final,
        num_steps=num_levels - 1,
        noise=lambda: _noise(
            jax.random.fold_in(churn_key, i), batch.indices, x.shape[1:], sigma.dtype
        ),
    )
    recorder, solver = kind.recorder, kind.solver
    denoise = _GuidedDenoiser(denoiser, batch.label, rules, draws, recorder)
    kept: dict[str, jax.Array] = {}
    if recorder is None:
        run = run_step(solver, denoise, x, step, carry, state)
    else:  # solvers hand the record on, as they do the state of the rule
        state = _Recorded(state, recorder.blank(x))
        x, carry, (state, kept) = run_step(solver, denoise, x, step, carry, state)
        run = x, carry, state
    if kind.progress:
        done, _ = jax.lax.optimization_barrier((i + 1, run[0]))
        jax.debug.callback(report_step, done)
    return run, kept


def _noise(
    key: jax.Array, indices: jax.Array, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Noise ``[n, ...]``, that of a sample by its global index."""
    return jax.vmap(
        lambda i: jax.random.normal(jax.random.fold_in(key, i), shape, dtype)
    )(indices)


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
            return run_combine(rule, outputs, x, sigma, state)
        guided, inner = run_combine(rule, outputs, x, sigma, state.state)
        found = self.recorder(x, self.label, passes, outputs, guided)
        record = jax.tree.map(
            lambda new, old: jnp.where(jnp.asarray(evaluation) == 0, new, old),
            found,
            state.record,
        )
        return guided, _Recorded(inner, record)


def _draw(
    rules: tuple[GuidanceRule, ...],
    depth: int | None,
    num_evaluations: int,
    mask_key: jax.Array,
    steps: jax.Array,
    indices: jax.Array,
) -> tuple[Any, ...]:
    """Each rule's draws over steps (and over the evaluations of a step, if one)."""
    evaluations = jnp.arange(num_evaluations, dtype=jnp.uint32)

    def draw(rule, step, evaluation):
        return rule.draw(RandomDraws(mask_key, step, evaluation, depth, indices))

    def at_step(step):
        if len(rules) == 1:
            return (jax.vmap(lambda e: draw(rules[0], step, e))(evaluations),)
        return tuple(
            draw(rule, step, e) for rule, e in zip(rules, evaluations, strict=True)
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
