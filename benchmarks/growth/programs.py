"""The compiled programs that a call of ``guided_sample`` runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from gmm_guidance.sampling import sample as sampling


class Programs(NamedTuple):
    """What one call would run.

    Attributes:
        temporary_bytes: memory beside inputs and outputs, of the largest program. They
            run one after another.
        compile_seconds: tracing, lowering and compiling, all programs together.
        calls: of programs; each batch is one.
    """

    temporary_bytes: int
    compile_seconds: float
    calls: int


def programs_of(call: Callable[[], Any]) -> Programs:
    """Compile the programs of a call of ``guided_sample``, and run none of them.

    Compiling ``guided_sample`` as a whole would unroll its loop over batches into one
    program, which is not what runs.
    """
    run = sampling._run
    temporary: list[int] = []
    took: list[float] = []

    def compiled(*args: Any) -> Any:
        started = time.perf_counter()
        lowered = run.lower(*args)
        program = lowered.compile()  # known shapes come from JAX's cache
        took.append(time.perf_counter() - started)
        temporary.append(program.memory_analysis().temp_size_in_bytes)
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), lowered.out_info)

    with mock.patch.object(sampling, "_run", compiled):
        call()
    return Programs(max(temporary), sum(took), len(took))


def compile_seconds(call: Callable[[], Any], repeats: int) -> float:
    """The least seconds of several compilations from scratch."""
    found = []
    for _ in range(repeats):
        jax.clear_caches()
        found.append(programs_of(call).compile_seconds)
    return min(found)
