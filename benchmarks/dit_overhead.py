"""What S² costs over CFG on diffusion transformers, against the arithmetic.

Ways to run the weak pass beside CFG's two rows: the shared prefix (ours), a separate
third pass that leaves out its dropped blocks, and a third row of one batch whose
dropped blocks are computed and thrown away. One evaluation each, in turn, over draws
spread evenly over the blocks; then whole runs with the paper's window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import gmm_guidance as gg
from benchmarks.harness import alternating
from full_models import DiT, DiTConfig, as_stack
from gmm_guidance.blocks.process_stack import ProcessStack
from gmm_guidance.guidance.draws import RandomDraws

_STEPS = 20
_WINDOW = (0.1, 0.9)  # 16 of 20 steps
_DRAWS = 5
# Dropped blocks and masks: one to three of one mask, and Naive S² with four.
EVERY_CASE = ((1, 1), (2, 1), (3, 1), (1, 4))


def random_network(name: str, **changes: Any) -> ProcessStack:
    """A network with random weights, also where training starts from zero."""
    config = DiTConfig.named(name, **changes)
    abstract = jax.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0)))
    dtype = jnp.dtype(config.compute_dtype)
    leaves, structure = jax.tree.flatten(abstract)
    keys = jax.random.split(jax.random.key(0), len(leaves))

    def leaf(key, shape):
        return (0.02 * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    make = jax.jit(leaf, static_argnums=1)
    arrays = [make(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return as_stack(jax.tree.unflatten(structure, arrays))


def dit_overhead(
    name: str = "DiT-S/2",
    batch: int = 1,
    repeats: int = 3,
    cases: Sequence[tuple[int, int]] = EVERY_CASE,
    **changes: Any,
) -> dict[str, Any]:
    """Overhead of one evaluation and peak memory, for numbers of blocks and masks."""
    network = random_network(name, **changes)
    programs = _programs(network, batch)
    x = jax.random.normal(jax.random.key(1), (batch, *network.sample_shape))
    depth = network.num_blocks
    compute = network.config.compute_dtype
    title = f"S² over CFG, {name}, {depth} blocks, batch {batch}, {compute}"
    results: dict[str, Any] = {}
    for num_dropped, num_masks in cases:
        draws = _spread_draws(depth, num_dropped, num_masks)
        chosen = programs if num_masks == 1 else _without(programs, "third_row")
        times = alternating(
            {
                key: lambda run=run, draws=draws: [run(network, x, d) for d in draws]
                for key, run in chosen.items()
            },
            repeats=repeats,
        )
        base = np.array(times["cfg"])
        arithmetic = _arithmetic(draws, depth)
        share = _window_share()
        measured = {
            key: 100 * float(np.median(np.array(times[key]) / base)) - 100
            for key in chosen
            if key != "cfg"
        }
        memory = {
            f"{key}_temporary_mib": _temporary(run, network, x, draws[0]) / 2**20
            for key, run in chosen.items()
        }
        mask = "1 mask" if num_masks == 1 else f"{num_masks} masks (Naive S²)"
        results[f"{title}: {num_dropped} dropped, {mask}"] = {
            "cfg_seconds_per_evaluation": float(np.median(base)) / len(draws),
            **{f"arithmetic_{k}_percent": v for k, v in arithmetic.items()},
            **{f"{k}_percent": v for k, v in measured.items()},
            **{f"{k}_percent_with_window": share * v for k, v in measured.items()},
            "arithmetic_shared_percent_with_window": share * arithmetic["shared"],
            "arithmetic_separate_percent_with_window": share * arithmetic["separate"],
            **memory,
        }
    return results


def dit_run(
    name: str = "DiT-S/2", batch: int = 2, repeats: int = 3, **changes: Any
) -> dict[str, Any]:
    """Whole runs of 20 steps with the window, against what the drawn blocks cost."""
    network = random_network(name, **changes)
    labels = jnp.arange(batch) % network.num_labels
    depth = network.num_blocks
    schedule = gg.DDPMSteps(_STEPS)
    rule = gg.S2Guidance(4.0, window=_WINDOW)

    def sample(guidance, seed):
        return lambda: gg.guided_sample(
            jax.random.key(seed),
            network,
            labels,
            num_samples=batch,
            guidance=guidance,
            schedule=schedule,
            solver="euler",
        )

    times = alternating(
        {
            "cfg": lambda: [sample(gg.CFG(4.0), s)() for s in range(2)],
            "s2": lambda: [sample(rule, s)() for s in range(2)],
        },
        repeats=repeats,
    )
    ratio = np.array(times["s2"]) / np.array(times["cfg"])
    firsts = np.concatenate([_firsts(rule, seed, depth) for seed in range(2)])
    own = np.mean(depth - 1 - firsts) / depth
    expected = gg.expected_cost(rule, schedule, depth, solver="euler")
    compute = network.config.compute_dtype
    return {
        f"S² run over CFG run, {name}, {depth} blocks, batch {batch}, {compute}": {
            "measured_percent": 100 * float(np.median(ratio)) - 100,
            "arithmetic_percent_of_these_draws": 50 * _window_share() * own,
            "arithmetic_percent_expected": 50 * expected.shared / _STEPS - 100,
            "arithmetic_percent_separate": 50 * expected.separate / _STEPS - 100,
            "cfg_images_per_second": 2 * batch / float(np.median(times["cfg"])),
            "s2_images_per_second": 2 * batch / float(np.median(times["s2"])),
        }
    }


def _programs(network: ProcessStack, batch: int) -> dict[str, Any]:
    label = jnp.arange(batch) % network.num_labels
    sigma = jnp.float32(1.0)

    @jax.jit
    def cfg(network, x, drops):
        passes = (gg.Pass(label), gg.Pass(None))
        return gg.evaluate_passes(network, x, sigma, passes)

    @jax.jit
    def shared(network, x, drops):
        weak = (gg.Pass(label, drop) for drop in drops)
        passes = (gg.Pass(label), gg.Pass(None), *weak)
        return gg.evaluate_passes(network, x, sigma, passes)

    @jax.jit
    def separate(network, x, drops):
        full = cfg(network, x, drops)
        weak = [
            gg.evaluate_passes(network, x, sigma, gg.Pass(label, drop))
            for drop in drops
        ]
        return *full, *weak

    @jax.jit
    def third_row(network, x, drops):
        rows = (label, None, label)
        hidden, context = jax.tree.map(
            lambda *r: jnp.stack(r), *(network.embed(x, sigma, r) for r in rows)
        )

        def block(i, h):
            new = jax.vmap(network.block, (None, 0, 0))(i, h, context)
            held = jnp.any(drops[0] == i)
            return new.at[2].set(jnp.where(held, h[2], new[2]))

        hidden = jax.lax.fori_loop(0, network.num_blocks, block, hidden)
        return jax.vmap(network.readout, (0, 0, None, None))(hidden, context, x, sigma)

    return {
        "cfg": cfg,
        "shared": shared,
        "separate": separate,
        "third_row": third_row,
    }


def _spread_draws(
    depth: int, num_dropped: int, num_masks: int
) -> list[tuple[jax.Array, ...]]:
    """Draws whose first dropped blocks have the mean of the law."""
    law = gg.drop.FixedCount(num_dropped)
    every = np.array(law.all_masks(depth))
    firsts = every.min(axis=1)
    # In the order of the first dropped block, evenly spaced: quantiles of the law.
    order = np.argsort(firsts, kind="stable")
    count = min(_DRAWS, len(every))
    places = (np.arange(count * num_masks) + 0.5) / (count * num_masks) * len(every)
    chosen = every[order[places.astype(int)]]
    # Masks of one step are neither all early nor all late.
    dealt = chosen.reshape(num_masks, count, -1).swapaxes(0, 1)
    return [tuple(jnp.asarray(m, jnp.int32) for m in masks) for masks in dealt]


def _arithmetic(draws: list[tuple[jax.Array, ...]], depth: int) -> dict[str, float]:
    """Overhead over two passes, in percent, of these draws."""
    shared = separate = 0.0
    for masks in draws:
        for mask in masks:
            own = (depth - len(mask)) / depth
            separate += own
            shared += own - int(jnp.min(mask)) / depth
    scale = 50.0 / len(draws)
    return {"shared": scale * shared, "separate": scale * separate}


def _firsts(rule: gg.S2Guidance, seed: int, depth: int) -> np.ndarray:
    """First dropped block of each step in the window, as a run draws them."""
    mask_key = jax.random.split(jax.random.key(seed), 3)[1]
    steps = [i for i in range(_STEPS) if _WINDOW[0] <= i / _STEPS < _WINDOW[1]]
    zero, index = jnp.uint32(0), jnp.zeros(1, jnp.uint32)
    return np.array(
        [
            int(jnp.min(rule.draw(draws)["weak"][0]))
            for i in steps
            for draws in [RandomDraws(mask_key, jnp.uint32(i), zero, depth, index)]
        ]
    )


def _window_share() -> float:
    inside = [i for i in range(_STEPS) if _WINDOW[0] <= i / _STEPS < _WINDOW[1]]
    return len(inside) / _STEPS


def _temporary(run: Any, network: ProcessStack, x: jax.Array, draws: Any) -> int:
    return run.lower(network, x, draws).compile().memory_analysis().temp_size_in_bytes


def _without(programs: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: run for key, run in programs.items() if key != name}
