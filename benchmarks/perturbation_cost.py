"""Cost of weak passes by kind of perturbation over CFG, against the arithmetic."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gmm_guidance as gg
from benchmarks.harness import alternating
from benchmarks.s2_overhead import random_network

_KINDS = ("drop", "drop_attention", "drop_mlp", "identity", "blur", "temper", "shuffle")
_FIRSTS = (0.15, 0.5, 0.85)  # of the depth: near the mean of a random block


def perturbation_cost(
    name: str = "DiT-S/2", depth: int = 28, batch: int = 1, repeats: int = 3
) -> dict[str, Any]:
    """One evaluation with a perturbed block at three depths, for each kind."""
    network = random_network(name, depth=depth)
    label = jnp.arange(batch) % network.num_labels
    x = jax.random.normal(jax.random.key(1), (batch, *network.sample_shape))
    sigma, key = jnp.float32(1.0), jax.random.key(2)
    blocks = [int(fraction * depth) for fraction in _FIRSTS]

    def evaluate(kind):
        @jax.jit
        def run(network, x, block):
            passes = [gg.Pass(label), gg.Pass(None)]
            if kind is not None:
                own = gg.Perturbation(kind, block, None, key)
                passes.append(gg.Pass(label, perturb=own))
            return gg.evaluate_passes(network, x, sigma, tuple(passes))

        return lambda: [
            run(network, x, jnp.array([block], jnp.int32)) for block in blocks
        ]

    programs = {str(kind): evaluate(kind) for kind in (None, *_KINDS)}
    times = alternating(programs, repeats)
    base = np.array(times["None"])
    results = {}
    for kind in _KINDS:
        costs = [
            gg.expected_cost(
                gg.SkipLayer(2.0, (block,), window=None, kind=kind)
                if kind != "shuffle"
                else gg.TPG(2.0, (block,)),
                gg.Karras(4),
                network,
                solver="euler",
            )
            for block in blocks
        ]
        results[kind] = {
            "measured_percent": 100 * float(np.median(times[kind] / base)) - 100,
            "arithmetic_percent": 12.5 * float(np.mean([c.shared for c in costs]))
            - 100,
            "arithmetic_percent_separate": 12.5
            * float(np.mean([c.separate for c in costs]))
            - 100,
        }
    title = f"one perturbed block of {depth} over CFG, {name}, batch {batch}"
    return {f"{title}: {kind}": entry for kind, entry in results.items()}
