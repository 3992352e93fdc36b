"""Growth of time, memory and compilation along every axis of a run.

Slopes are fitted on log-log axes over the upper half of the range, where fixed costs no
longer matter, and judged by ``RULES``. Rules with weak passes are compared with their
expected number of forward passes instead.

``python -m benchmarks.growth SAMPLES BATCH WIDTH STEPS`` prints by how many MiB the
resident set of a sampling process peaks above its size before the run (Linux).
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.special import stdtrit

import gmm_guidance as gg
from benchmarks.harness import alternating
from gmm_guidance.mixture import closed_forms
from gmm_guidance.sampling import run as sampling

#: Slopes that count as each kind of growth; "arithmetic" is against expected passes.
RULES = {
    "linear": (0.8, 1.2),
    "flat": (-0.1, 0.1),
    "at most linear": (-np.inf, 1.2),
    "arithmetic": (0.8, 1.2),
}
_TOLERANCE = 0.1  # largest relative deviation from the arithmetic
_LEAST_POINTS = 3  # two would always lie on a line
_NUM_BLOCKS = 12
S2 = gg.S2Guidance(2.0, window=None)


# -- slopes and verdicts --------------------------------------------------------------


def upper_half(x: Sequence[float]) -> np.ndarray:
    """Which points lie in the upper half of the logarithmic range, at least three."""
    log_x = np.log(np.asarray(x, float))
    chosen = log_x >= 0.5 * (log_x.min() + log_x.max()) - 1e-9
    chosen[np.argsort(log_x)[-_LEAST_POINTS:]] = True
    return chosen


def judge(
    x: Sequence[float],
    y: Sequence[float],
    expected: str,
    passes: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Slope with its 95 % interval, and verdict, of one quantity.

    Args:
        x: what grows. Points at zero, a run without what is counted, enter the
            arithmetic only.
        y: the cost, > 0.
        expected: one of ``RULES``.
        passes: expected passes at each point, for ``"arithmetic"``.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    extra: dict[str, float] = {}
    if expected == "arithmetic":
        x = np.asarray(passes, float)
        # A few similar numbers of passes determine no slope: each must agree as well.
        ratio = (y / y[0]) / (x / x[0])
        extra["largest_deviation"] = float(np.abs(ratio - 1.0).max())
    else:
        x, y = x[x > 0], y[x > 0]
        x, y = x[upper_half(x)], y[upper_half(x)]
    offset, level = (np.log(v) - np.log(v).mean() for v in (x, y))
    slope = float(offset @ level / (offset @ offset))
    residual, freedom = level - slope * offset, len(x) - 2
    error = np.sqrt(residual @ residual / freedom / (offset @ offset))
    half = float(stdtrit(freedom, 0.975) * error)
    low, high = RULES[expected]
    holds = low <= slope <= high and all(d <= _TOLERANCE for d in extra.values())
    return {
        "expected": expected,
        "slope": slope,
        "interval": [slope - half, slope + half],
        "points_fitted": len(x),
        **extra,
        "verdict": "as expected" if holds else "not as expected",
    }


# -- the measured runs ----------------------------------------------------------------


class Size(NamedTuple):
    """Size of a run; each Euler step is one evaluation."""

    width: int
    batch: int
    steps: int


def sampling_call(
    size: Size,
    num_samples: int,
    *,
    num_blocks: int = _NUM_BLOCKS,
    rule: gg.GuidanceRule = S2,
    batch_size: int | None = None,
) -> Callable[[], Any]:
    """A call of ``guided_sample`` with an untrained network."""
    config = gg.NetworkConfig(
        dim=2, num_labels=4, width=size.width, num_blocks=num_blocks
    )
    model = gg.BlockMLP(config, rngs=nnx.Rngs(0)).as_stack()
    return lambda: gg.guided_sample(
        jax.random.key(0),
        model,
        1,
        num_samples=num_samples,
        guidance=rule,
        schedule=gg.Karras(size.steps),
        solver="euler",
        batch_size=batch_size,
    )


def score_call(num_points: int, num_components: int) -> Callable[[], Any]:
    """The score of a mixture at a fixed number of points."""
    x = jax.random.normal(jax.random.key(0), (num_points, 2))
    mixture = gg.presets.random(0, num_components)
    return lambda: mixture.score(x, jnp.float32(0.5))


class Programs(NamedTuple):
    """The compiled programs of one call.

    Attributes:
        temporary_bytes: temporary memory of the largest program; they run in sequence.
        compile_seconds: tracing, lowering and compiling of all programs.
    """

    temporary_bytes: int
    compile_seconds: float


def programs_of(call: Callable[[], Any]) -> Programs:
    """Compile the programs of a call, all but those of its start, and run none.

    Jitting the whole call would unroll its loop over batches into one program.
    """
    temporary: list[int] = []
    took: list[float] = []

    def compiler(run: Any) -> Callable[..., Any]:
        def compiled(*args: Any) -> Any:
            started = time.perf_counter()
            lowered = run.lower(*args)
            program = lowered.compile()
            took.append(time.perf_counter() - started)
            temporary.append(program.memory_analysis().temp_size_in_bytes)
            return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), lowered.out_info)

        return compiled

    programs = ((sampling, "_take_steps"), (closed_forms, "map_samples"))
    patches = [mock.patch.object(m, n, compiler(getattr(m, n))) for m, n in programs]
    with patches[0], patches[1]:
        call()
    return Programs(max(temporary), sum(took))


class Axis(NamedTuple):
    """One axis of growth.

    Attributes:
        title: name of the axis; ``{batch}`` stands for the batch size.
        call: the run at a point.
        values: the points.
        quick: the points of a smoke test.
        memory: expected growth of temporary memory.
        rule: for weak passes, the rule at a point; compared with CFG as point 0.
        compiled: whether compilation is timed too.
    """

    title: str
    call: Callable[..., Callable[[], Any]]
    values: tuple[int, ...]
    quick: tuple[int, ...] = (2, 4, 8)
    memory: str = "flat"
    rule: Callable[[int], gg.GuidanceRule] | None = None
    compiled: bool = False


def _powers(first: int, last: int) -> tuple[int, ...]:
    return tuple(2**k for k in range(first, last + 1))


def _with_rule(size: Size, n: int, rule: gg.GuidanceRule) -> Callable[[], Any]:
    return sampling_call(size, size.batch, rule=rule)


AXES = (
    Axis(
        "samples, in batches of {batch}",
        lambda size, n: sampling_call(size, n, batch_size=size.batch),
        _powers(8, 14),
        (4, 8, 16),
    ),
    Axis(
        "samples, at once",
        sampling_call,
        _powers(8, 14),
        (4, 8, 16),
        memory="linear",
    ),
    Axis(
        "steps",
        lambda size, n: sampling_call(size._replace(steps=n), size.batch),
        _powers(2, 8),
    ),
    # The weights of the blocks are inputs, not temporary memory.
    Axis(
        "blocks",
        lambda size, n: sampling_call(size, size.batch, num_blocks=n),
        _powers(2, 8),
    ),
    Axis(
        "dropped blocks",
        _with_rule,
        (1, 2, 4, 6, 8, 11),
        (1, 2, 11),
        rule=lambda n: dataclasses.replace(S2, num_dropped=n),
    ),
    Axis(
        "masks",
        _with_rule,
        (1, 2, 4, 8, 16),
        (1, 2, 3),
        memory="at most linear",
        rule=lambda n: dataclasses.replace(S2, num_masks=n),
        compiled=True,
    ),
    Axis(
        "components",
        lambda size, n: score_call(16 * size.batch, n),
        _powers(10, 14),
        (4, 8, 16),
    ),
)


def measure(axis: Axis, quick: bool = False) -> dict[str, Any]:
    """Time (the least of several), temporary memory and verdicts along one axis.

    Weak passes take more steps, since the mean over their random masks is compared with
    the expectation, and a wider network, in which blocks dominate the cost.
    """
    values = list(axis.quick if quick else axis.values)
    size = Size(8, 4, 2) if quick else Size(64, 256, 8)
    repeats = 2 if quick else 5
    passes = None
    if axis.rule is None:
        calls = [axis.call(size, n) for n in values]
    else:
        size = Size(8, 4, 4) if quick else Size(256, 256, 32)
        rules = [gg.CFG(S2.scale), *map(axis.rule, values)]
        values = [0, *values]
        calls = [axis.call(size, n, r) for n, r in zip(values, rules, strict=True)]
        passes = [_passes(rule, size.steps) for rule in rules]
    memory = [programs_of(call).temporary_bytes / 2**20 for call in calls]
    times = alternating(dict(zip(map(str, values), calls, strict=True)), repeats)
    seconds = [min(rounds) for rounds in times.values()]
    entry: dict[str, Any] = {
        "axis": axis.title.format(batch=size.batch),
        "values": values,
    }
    if passes:
        entry["expected_passes"] = passes
    kind = "arithmetic" if passes else "linear"
    entry |= _quantity("time", "seconds", values, seconds, kind, passes)
    entry |= _quantity("memory", "mib", values, memory, axis.memory)
    if axis.compiled and passes:
        in_passes = passes[0] * np.array(seconds) / seconds[0]  # CFG comes first
        entry["passes_per_mask"] = float(np.polyfit(values, in_passes, 1)[0])
        entry["expected_passes_per_mask"] = float(np.polyfit(values, passes, 1)[0])
        compiling = [_compile_seconds(call) for call in calls]
        entry |= _quantity("compile", "seconds", values, compiling, "flat")
    return entry


def _passes(rule: gg.GuidanceRule, steps: int) -> float:
    """Expected forward passes of one evaluation."""
    cost = gg.expected_cost(rule, gg.Karras(steps), _NUM_BLOCKS, solver="euler")
    return cost.shared / cost.evaluations


def _compile_seconds(call: Callable[[], Any]) -> float:
    """The least seconds of two compilations from scratch."""
    found = []
    for _ in range(2):
        jax.clear_caches()
        found.append(programs_of(call).compile_seconds)
    return min(found)


def _quantity(name, unit, x, y, expected, passes=None) -> dict[str, Any]:
    """Values and verdict of one quantity, as keys of an entry."""
    found = judge(x, y, expected, passes)
    return {f"{name}_{unit}": y} | {f"{name}_{k}": v for k, v in found.items()}


# -- memory of a whole process --------------------------------------------------------


def process_memory(quick: bool = False) -> dict[str, Any]:
    """Peak of a sampling process over its size before the run, one for each point."""
    values = [8, 16, 32] if quick else list(_powers(12, 16))
    size = Size(8, 8, 1) if quick else Size(64, 4096, 2)
    entry: dict[str, Any] = {
        "axis": "samples, whole process",
        "values": values,
        "batch": size.batch,
    }
    for name, batch, expected in (
        ("process_in_batches", size.batch, "flat"),
        ("process_at_once", 0, "linear"),
    ):
        peaks = [_process_peak(n, batch, size.width, size.steps) for n in values]
        entry |= _quantity(name, "mib", values, peaks, expected)
    return entry


def _process_peak(*numbers: int) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", *map(str, numbers)],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.split()[-1])


def _print_peak(samples: int, batch: int, width: int, steps: int) -> None:
    call = sampling_call(Size(width, batch, steps), samples, batch_size=batch or None)
    programs_of(call)
    try:
        # Reset the peak; without permission it may be that of the compilation.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    before = _status_kib("VmRSS")
    jax.block_until_ready(call())
    print((_status_kib("VmHWM") - before) / 1024)


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# -- everything -----------------------------------------------------------------------


def growth(out: Path) -> dict[str, Any]:
    """Measure every axis and draw the figure."""
    from benchmarks.growth_figure import growth_figure
    from benchmarks.weak_scaling import growth_with_devices, weak_scaling

    first, second, *others = (measure(axis) for axis in AXES)
    entries = [first, second, process_memory(), *others]
    results = {f"growth with {entry['axis']}": entry for entry in entries}
    results |= growth_with_devices(weak_scaling())
    growth_figure(list(results.values()), out)
    return results


if __name__ == "__main__":
    _print_peak(*(int(a) for a in sys.argv[1:]))
