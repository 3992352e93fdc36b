"""Overhead of S² over CFG, against the arithmetic.

Ways to run the weak pass beside CFG's two rows: the shared prefix (ours), a separate
third pass that skips its dropped blocks, and a third row of one batch whose dropped
blocks are computed and discarded. Single evaluations of a wide ``BlockMLP`` and of
diffusion transformers, in turn; then whole runs with the paper's window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import gmm_guidance as gg
from benchmarks.harness import alternating, temporary_mib
from full_models import DiT, DiTConfig, as_stack
from gmm_guidance.blocks.process_stack import ProcessStack
from gmm_guidance.guidance.draws import RandomDraws

_STEPS = 20
_WINDOW = (0.1, 0.9)  # 16 of 20 steps
_DRAWS = 5
# Dropped blocks and masks: one to three of one mask, and Naive S² with four.
EVERY_CASE = ((1, 1), (2, 1), (3, 1), (1, 4))


def s2_overhead(
    width: int = 512, num_blocks: int = 28, batch: int = 128
) -> dict[str, Any]:
    """Overhead on a ``BlockMLP``: every single dropped block, and nine pairs."""
    config = gg.NetworkConfig(dim=2, num_labels=4, width=width, num_blocks=num_blocks)
    network = gg.BlockMLP(config, rngs=nnx.Rngs(0)).as_stack()
    x = jax.random.normal(jax.random.key(0), (batch, 2))
    programs = _programs(jnp.zeros(batch, jnp.int32))
    shared, separate = programs["shared"], programs["separate"]
    results: dict[str, Any] = {}
    for count in (1, 2):
        drops = [jnp.asarray([i], jnp.int32) for i in range(1, num_blocks)]
        if count > 1:
            keys = jax.random.split(jax.random.key(count), 9)
            drops = [gg.drop.FixedCount(count).draw(k, num_blocks) for k in keys]
        draws = [(drop,) for drop in drops]
        times = _times(programs, network, x, draws, repeats=3)
        rule = gg.S2Guidance(2.0, num_dropped=count, window=None)
        cost = gg.expected_cost(rule, gg.Karras(4), num_blocks, solver="euler")
        same = [
            jnp.array_equal(shared(network, x, d)[2], separate(network, x, d)[2])
            for d in draws[:5]
        ]
        results[f"S² over CFG, {count} of {num_blocks} blocks, width {width}"] = {
            "arithmetic_percent_of_these_draws": _arithmetic(draws, num_blocks)[
                "shared"
            ],
            "arithmetic_percent_expected": 50 * cost.shared / 4 - 100,
            **{f"{k}_percent": v for k, v in _overheads(times).items()},
            "bit_identical_to_separate": bool(np.all(same)),
        }
    return results


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
    programs = _programs(jnp.arange(batch) % network.num_labels)
    x = jax.random.normal(jax.random.key(1), (batch, *network.sample_shape))
    depth = network.num_blocks
    compute = network.config.compute_dtype
    title = f"S² over CFG, {name}, {depth} blocks, batch {batch}, {compute}"
    window = len(_window_steps()) / _STEPS
    results: dict[str, Any] = {}
    for num_dropped, num_masks in cases:
        draws = _spread_draws(depth, num_dropped, num_masks)
        chosen = dict(programs)
        if num_masks > 1:
            del chosen["third_row"]
        times = _times(chosen, network, x, draws, repeats)
        arithmetic, measured = _arithmetic(draws, depth), _overheads(times)
        mask = "1 mask" if num_masks == 1 else f"{num_masks} masks (Naive S²)"
        results[f"{title}: {num_dropped} dropped, {mask}"] = {
            "cfg_seconds_per_evaluation": float(np.median(times["cfg"])) / len(draws),
            **{f"arithmetic_{k}_percent": v for k, v in arithmetic.items()},
            **{f"{k}_percent": v for k, v in measured.items()},
            **{f"{k}_percent_with_window": window * v for k, v in measured.items()},
            "arithmetic_shared_percent_with_window": window * arithmetic["shared"],
            "arithmetic_separate_percent_with_window": window * arithmetic["separate"],
            **{
                f"{key}_temporary_mib": temporary_mib(run, network, x, draws[0])
                for key, run in chosen.items()
            },
        }
    return results


def dit_run(
    name: str = "DiT-S/2", batch: int = 2, repeats: int = 3, **changes: Any
) -> dict[str, Any]:
    """Whole runs of 20 steps with the window, against what the drawn blocks cost.

    S² with its correction in each step, and held over 3 and 6 steps.
    """
    network = random_network(name, **changes)
    labels = jnp.arange(batch) % network.num_labels
    depth = network.num_blocks
    schedule = gg.DDPMSteps(_STEPS)
    rules = {hold: gg.S2Guidance(4.0, window=_WINDOW, hold=hold) for hold in (1, 3, 6)}

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

    def twice(guidance):
        return lambda: [sample(guidance, seed)() for seed in range(2)]

    runs = {"cfg": twice(gg.CFG(4.0))}
    runs |= {f"hold {hold}": twice(rule) for hold, rule in rules.items()}
    times = alternating(runs, repeats=repeats)
    compute = network.config.compute_dtype
    title = f"S² run over CFG run, {name}, {depth} blocks, batch {batch}, {compute}"
    results: dict[str, Any] = {}
    for hold, rule in rules.items():
        seconds = times[f"hold {hold}"]
        ratio = np.array(seconds) / np.array(times["cfg"])
        firsts = np.array([_firsts(rule, seed, depth)[::hold] for seed in range(2)])
        own = firsts.shape[1] / _STEPS * np.mean(depth - 1 - firsts) / depth
        expected = gg.expected_cost(rule, schedule, depth, solver="euler")
        results[title if hold == 1 else f"{title}, hold {hold}"] = {
            "measured_percent": 100 * float(np.median(ratio)) - 100,
            "arithmetic_percent_of_these_draws": 50 * own,
            "arithmetic_percent_expected": 50 * expected.shared / _STEPS - 100,
            "arithmetic_percent_separate": 50 * expected.separate / _STEPS - 100,
            "cfg_images_per_second": 2 * batch / float(np.median(times["cfg"])),
            "s2_images_per_second": 2 * batch / float(np.median(seconds)),
        }
    return results


def _programs(label: jax.Array) -> dict[str, Any]:
    """Evaluations ``(network, x, sets of dropped blocks)``; CFG's ignores the sets."""
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


def _times(programs, network, x, draws, repeats) -> dict[str, list[float]]:
    """Seconds of each program over all draws."""
    runs = {
        key: lambda run=run: [run(network, x, d) for d in draws]
        for key, run in programs.items()
    }
    return alternating(runs, repeats)


def _overheads(times: dict[str, list[float]]) -> dict[str, float]:
    """Percent over CFG, the median of paired ratios."""
    base = np.array(times["cfg"])
    return {
        key: 100 * float(np.median(np.array(values) / base)) - 100
        for key, values in times.items()
        if key != "cfg"
    }


def _spread_draws(
    depth: int, num_dropped: int, num_masks: int
) -> list[tuple[jax.Array, ...]]:
    """Draws whose first dropped blocks have the mean of the distribution."""
    every = np.array(gg.drop.FixedCount(num_dropped).all_masks(depth))
    firsts = every.min(axis=1)
    # In the order of the first dropped block, evenly spaced: quantiles.
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
    zero, index = jnp.uint32(0), jnp.zeros(1, jnp.uint32)
    return np.array(
        [
            int(jnp.min(rule.draw(draws)["weak"][0]))
            for i in _window_steps()
            for draws in [RandomDraws(mask_key, jnp.uint32(i), zero, depth, index)]
        ]
    )


def _window_steps() -> list[int]:
    return [i for i in range(_STEPS) if _WINDOW[0] <= i / _STEPS < _WINDOW[1]]
