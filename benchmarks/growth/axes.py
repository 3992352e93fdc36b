"""One function for each axis: what grows, its cost at each point, what is expected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gmm_guidance as gg
from benchmarks.growth.calls import (
    S2,
    network,
    passes_per_evaluation,
    sampling_call,
)
from benchmarks.growth.process_peak import process_peak
from benchmarks.growth.programs import compile_seconds, programs_of
from benchmarks.growth.slopes import judge
from benchmarks.harness import alternating

_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Where each axis is measured.

    Steps are Euler's, so that each is one evaluation. The axes of weak passes take
    many, since the mean over their random masks is compared with the expectation, and
    a wider network: in a narrow one the bookkeeping of rows costs as much as blocks.
    """

    width: int = 64
    batch: int = 256
    steps: int = 8
    weak_steps: int = 32
    weak_width: int = 256
    repeats: int = 5
    samples: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192, 16384)
    schedule: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    blocks: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    dropped: tuple[int, ...] = (1, 2, 4, 6, 8, 11)
    masks: tuple[int, ...] = (1, 2, 4, 8, 16)
    components: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    points: int = 4096
    process_batch: int = 4096
    process_steps: int = 2
    process_samples: tuple[int, ...] = (4096, 8192, 16384, 32768, 65536)


FULL = Sizes()
#: Every axis in seconds, to try the program; the numbers mean nothing.
QUICK = Sizes(
    width=8,
    batch=4,
    steps=2,
    weak_steps=4,
    weak_width=8,
    repeats=2,
    samples=(4, 8, 16),
    schedule=(2, 4, 8),
    blocks=(2, 4, 8),
    dropped=(1, 2, 11),
    masks=(1, 2, 3),
    components=(4, 8, 16),
    points=16,
    process_batch=8,
    process_steps=1,
    process_samples=(8, 16, 32),
)


def samples_in_batches(sizes: Sizes) -> dict[str, Any]:
    """Samples drawn in batches of one size: the program never grows."""
    return _samples(sizes, sizes.batch, f"in batches of {sizes.batch}", "flat")


def samples_at_once(sizes: Sizes) -> dict[str, Any]:
    """Samples drawn in one batch."""
    return _samples(sizes, None, "at once", "linear")


def _samples(
    sizes: Sizes, batch_size: int | None, how: str, memory: str
) -> dict[str, Any]:
    model = network(sizes.width)
    calls = {
        n: sampling_call(model, n, steps=sizes.steps, batch_size=batch_size)
        for n in sizes.samples
    }
    return _entry(f"samples, {how}", sizes, calls, memory=memory)


def samples_in_a_process(sizes: Sizes) -> dict[str, Any]:
    """Real memory of a process: its peak over what was resident before the run."""
    batch = sizes.process_batch
    peaks = {
        name: [
            process_peak(n, size, sizes.width, sizes.process_steps)
            for n in sizes.process_samples
        ]
        for name, size in (("process_in_batches", batch), ("process_at_once", 0))
    }
    values = sizes.process_samples
    entry: dict[str, Any] = {
        "axis": "samples, whole process",
        "values": list(values),
        "batch": batch,
    }
    for name, expected in zip(peaks, ("flat", "linear"), strict=True):
        entry |= _quantity(name, "mib", values, peaks[name], expected)
    return entry


def schedule_steps(sizes: Sizes) -> dict[str, Any]:
    """Steps of the schedule."""
    model = network(sizes.width)
    calls = {n: sampling_call(model, sizes.batch, steps=n) for n in sizes.schedule}
    return _entry("steps", sizes, calls)


def blocks(sizes: Sizes) -> dict[str, Any]:
    """Blocks of the network. Its weights are inputs, not temporary memory."""
    calls = {
        n: sampling_call(network(sizes.width, n), sizes.batch, steps=sizes.steps)
        for n in sizes.blocks
    }
    return _entry("blocks", sizes, calls)


def dropped_blocks(sizes: Sizes) -> dict[str, Any]:
    """Blocks dropped in the weak pass, beside CFG without one."""
    rules = {k: dataclasses.replace(S2, num_dropped=k) for k in sizes.dropped}
    return _weak_passes("dropped blocks", sizes, rules, memory="flat")


def masks(sizes: Sizes) -> dict[str, Any]:
    """Weak passes in each step: seconds, and the time to compile them."""
    rules = {m: dataclasses.replace(S2, num_masks=m) for m in sizes.masks}
    compiling = [
        compile_seconds(call, min(2, sizes.repeats))
        for call in _weak_calls(sizes, rules).values()
    ]
    entry = _weak_passes("masks", sizes, rules, memory="at most linear")
    numbers, passes = entry["values"], np.array(entry["expected_passes"])
    seconds = np.array(entry["time_seconds"])
    in_passes = passes[0] * seconds / seconds[0]  # CFG comes first
    per_mask = {
        "passes_per_mask": float(np.polyfit(numbers, in_passes, 1)[0]),
        "expected_passes_per_mask": float(np.polyfit(numbers, passes, 1)[0]),
    }
    compilation = _quantity("compile", "seconds", numbers, compiling, "flat")
    return entry | per_mask | compilation


def components(sizes: Sizes) -> dict[str, Any]:
    """Components of a mixture, at a fixed number of points."""
    x = jax.random.normal(jax.random.key(0), (sizes.points, 2))
    mixtures = {n: gg.presets.random(0, n) for n in sizes.components}
    score = jax.jit(lambda mixture, x: mixture.score(x, jnp.float32(0.5)))
    temporary = [
        score.lower(m, x).compile().memory_analysis().temp_size_in_bytes
        for m in mixtures.values()
    ]
    calls = {n: lambda m=m: score(m, x) for n, m in mixtures.items()}
    return _entry("components", sizes, calls, temporary=temporary)


#: In the order in which they are measured and drawn.
AXES: tuple[Callable[[Sizes], dict[str, Any]], ...] = (
    samples_in_batches,
    samples_at_once,
    samples_in_a_process,
    schedule_steps,
    blocks,
    dropped_blocks,
    masks,
    components,
)


def _weak_calls(
    sizes: Sizes, rules: dict[int, gg.S2Guidance]
) -> dict[int, Callable[[], Any]]:
    """CFG as point 0, then each rule."""
    model = network(sizes.weak_width)
    return {
        n: sampling_call(model, sizes.batch, steps=sizes.weak_steps, rule=rule)
        for n, rule in _with_cfg(rules).items()
    }


def _with_cfg(rules: dict[int, gg.S2Guidance]) -> dict[int, gg.GuidanceRule]:
    return {0: gg.CFG(S2.scale), **rules}


def _weak_passes(
    axis: str, sizes: Sizes, rules: dict[int, gg.S2Guidance], memory: str
) -> dict[str, Any]:
    """Rules of weak passes beside CFG, against their expected passes."""
    calls = _weak_calls(sizes, rules)
    passes = [
        passes_per_evaluation(rule, sizes.weak_steps)
        for rule in _with_cfg(rules).values()
    ]
    return _entry(axis, sizes, calls, memory=memory, passes=passes)


def _entry(
    axis: str,
    sizes: Sizes,
    calls: dict[int, Callable[[], Any]],
    *,
    memory: str = "flat",
    passes: list[float] | None = None,
    temporary: list[int] | None = None,
) -> dict[str, Any]:
    """Time (the least of the rounds) and temporary memory along one axis."""
    if temporary is None:
        temporary = [programs_of(call).temporary_bytes for call in calls.values()]
    rounds = alternating({str(n): c for n, c in calls.items()}, sizes.repeats)
    seconds = [min(times) for times in rounds.values()]
    mib = [size / _MIB for size in temporary]
    time_expected = "arithmetic" if passes else "linear"
    entry: dict[str, Any] = {"axis": axis, "values": list(calls)}
    if passes:
        entry["expected_passes"] = passes
    return (
        entry
        | _quantity("time", "seconds", list(calls), seconds, time_expected, passes)
        | _quantity("memory", "mib", list(calls), mib, memory)
    )


def _quantity(
    name: str,
    unit: str,
    x: Any,
    y: list[float],
    expected: str,
    passes: list[float] | None = None,
) -> dict[str, Any]:
    """Values and verdict of one quantity, as keys of an entry."""
    found = judge(x, y, expected, passes)
    return {f"{name}_{unit}": y} | {f"{name}_{k}": v for k, v in found.items()}
