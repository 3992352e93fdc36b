"""Ways to leave out blocks of a weak pass in one program, and the device's own speed.

Which is fastest depends on the device: a condition for each block, a scan over the
indices of kept blocks, or a copy of the kept parameters that is scanned.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import alternating, temporary_mib
from benchmarks.s2_overhead import random_network
from gmm_guidance.blocks.process_stack import ProcessStack


def block_selection(
    name: str = "DiT-S/2", batch: int = 2, repeats: int = 5, **changes: Any
) -> dict[str, Any]:
    """Seconds of one weak pass with one dropped block, and temporary memory."""
    network = random_network(name, **changes)
    depth = network.num_blocks
    x = jax.random.normal(jax.random.key(1), (batch, *network.sample_shape))
    label = jnp.arange(batch) % network.num_labels
    sigma = jnp.float32(1.0)
    everything = jnp.arange(depth)

    def between(run):
        @jax.jit
        def program(network, x, dropped):
            hidden, context = network.embed(x, sigma, label)
            hidden = run(network, hidden, context, dropped)
            return network.readout(hidden, context, x, sigma)

        return program

    def with_cond(network, hidden, context, dropped):
        def block(i, hidden):
            return jax.lax.cond(
                i == dropped,
                lambda hidden: hidden,
                lambda hidden: network.block(i, hidden, context),
                hidden,
            )

        return jax.lax.fori_loop(0, depth, block, hidden)

    def kept(dropped):
        return everything[:-1] + (everything[:-1] >= dropped)

    def kept_indices(network, hidden, context, dropped):
        def block(hidden, i):
            return network.block(i, hidden, context), None

        return jax.lax.scan(block, hidden, kept(dropped))[0]

    def gathered(network, hidden, context, dropped):
        chosen = jax.tree.map(lambda a: a[kept(dropped)], network.blocks)

        def block(hidden, block):
            return block(hidden, context), None

        return jax.lax.scan(block, hidden, chosen)[0]

    programs = {
        "fori_loop_cond": between(with_cond),
        "kept_index_scan": between(kept_indices),
        "gather": between(gathered),
    }
    draws = [jnp.asarray(i, jnp.int32) for i in (1, depth // 2, depth - 1)]
    values = [run(network, x, draws[1]) for run in programs.values()]
    times = alternating(
        {
            key: lambda run=run: [run(network, x, d) for d in draws]
            for key, run in programs.items()
        },
        repeats,
    )
    memory = {
        f"{key}_temporary_mib": temporary_mib(run, network, x, draws[0])
        for key, run in programs.items()
    }
    base = np.array(times["kept_index_scan"])
    compute = network.config.compute_dtype
    return {
        f"one weak pass, {name}, {depth} blocks, batch {batch}, {compute}": {
            "kept_index_scan_seconds": float(np.median(base)) / len(draws),
            **{
                f"{key}_over_kept_index_scan": float(np.median(np.array(t) / base))
                for key, t in times.items()
            },
            **memory,
            "largest_difference": float(
                max(jnp.max(jnp.abs(v - values[0])) for v in values)
            ),
            **_share_of_peak(network, batch, float(np.median(base)) / len(draws)),
        }
    }


def _share_of_peak(
    network: ProcessStack, batch: int, seconds: float
) -> dict[str, float]:
    """Matrix products of the pass over what the device reaches on large ones alone."""
    c = network.config
    tokens, width = c.num_tokens, c.width
    per_block = tokens * width * (8 * width + 4 * c.mlp_width) + 4 * tokens**2 * width
    per_block += 12 * width**2
    flops = batch * (network.num_blocks - 1) * per_block
    peak = matrix_peak(c.compute_dtype)
    return {
        "matrix_tflops_per_second": flops / seconds / 1e12,
        "measured_peak_tflops_per_second": peak / 1e12,
        "share_of_measured_peak": flops / seconds / peak,
    }


def matrix_peak(dtype: str) -> float:
    """Floating-point operations per second of a large square matrix product."""
    size = 2048 if jax.default_backend() == "cpu" else 16384
    a = jnp.ones((size, size), dtype)
    run = jax.jit(lambda a, b: a @ b)
    run(a, a).block_until_ready()
    best = np.inf
    for _ in range(5):
        begun = time.perf_counter()
        run(a, a).block_until_ready()
        best = min(best, time.perf_counter() - begun)
    return 2.0 * size**3 / best
