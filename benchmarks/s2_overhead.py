"""What S² costs over CFG on a wide ``BlockMLP``, against the arithmetic.

Three ways to run the weak pass: shared prefix (ours), a separate third pass that skips
its dropped blocks, and a third row of one batch whose dropped blocks are computed and
thrown away.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import gmm_guidance as gg
from benchmarks.harness import alternating


def s2_overhead(
    width: int = 512, num_blocks: int = 28, batch: int = 128
) -> dict[str, Any]:
    """Overhead of one evaluation, averaged over every possible single dropped block."""
    config = gg.NetworkConfig(dim=2, num_labels=4, width=width, num_blocks=num_blocks)
    network = gg.BlockMLP(config, rngs=nnx.Rngs(0)).as_stack()
    x = jax.random.normal(jax.random.key(0), (batch, 2))
    label = jnp.zeros(batch, jnp.int32)
    sigma = jnp.float32(1.0)
    results: dict[str, Any] = {}

    @jax.jit
    def cfg(network, x):
        passes = (gg.Pass(label), gg.Pass(None))
        return gg.evaluate_passes(network, x, sigma, passes)

    @jax.jit
    def shared(network, x, drop):
        passes = (gg.Pass(label), gg.Pass(None), gg.Pass(label, drop))
        return gg.evaluate_passes(network, x, sigma, passes)

    @jax.jit
    def separate(network, x, drop):
        full = cfg(network, x)
        return *full, gg.evaluate_passes(network, x, sigma, gg.Pass(label, drop))

    @jax.jit
    def third_row(network, x, drop):
        # A set for each sample is computed in full and masked.
        masks = jnp.broadcast_to(drop, (batch, *drop.shape))
        hidden, context = jax.tree.map(
            lambda *r: jnp.stack(r),
            network.embed(x, sigma, label),
            network.embed(x, sigma, None),
            network.embed(x, sigma, label),
        )

        def block(i, h):
            new = jax.vmap(network.block, (None, 0, 0))(i, h, context)
            held = jnp.any(masks[0] == i)
            return new.at[2].set(jnp.where(held, h[2], new[2]))

        hidden = jax.lax.fori_loop(0, network.num_blocks, block, hidden)
        return jax.vmap(network.readout, (0, 0, None, None))(hidden, context, x, sigma)

    for count in (1, 2):
        rule = gg.S2Guidance(2.0, num_dropped=count, window=None)
        law = gg.drop.FixedCount(count)
        keys = jax.random.split(jax.random.key(count), 9)
        drops = [law.draw(k, num_blocks) for k in keys]
        if count == 1:  # every draw once
            drops = [jnp.asarray([i], jnp.int32) for i in range(1, num_blocks)]
        first = float(np.mean([int(d[0]) for d in drops]))
        joined = (num_blocks - first - count) / num_blocks

        def over(program, drops=drops):
            return lambda: [program(network, x, d) for d in drops]

        times = alternating(
            {
                "cfg": lambda n=len(drops): [cfg(network, x) for _ in range(n)],
                "shared": over(shared),
                "separate": over(separate),
                "third_row": over(third_row),
            },
            repeats=3,
        )
        base = np.array(times["cfg"])
        same = [
            bool(jnp.array_equal(shared(network, x, d)[2], separate(network, x, d)[2]))
            for d in drops[:5]
        ]
        expected = gg.expected_cost(
            rule, gg.Karras(4), num_blocks, solver="euler"
        ).shared
        results[f"S² over CFG, {count} of {num_blocks} blocks, width {width}"] = {
            "arithmetic_percent_of_these_draws": 50 * joined,
            "arithmetic_percent_expected": 50 * expected / 4 - 100,
            **{
                f"{name}_percent": 100 * float(np.median(np.array(times[name]) / base))
                - 100
                for name in ("shared", "separate", "third_row")
            },
            "bit_identical_to_separate": all(same),
        }
    return results
