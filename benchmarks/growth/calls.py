"""The runs that are measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

import gmm_guidance as gg

_NUM_BLOCKS = 12
_LABEL = 1
S2 = gg.S2Guidance(2.0, window=None)


def network(width: int, num_blocks: int = _NUM_BLOCKS) -> gg.ProcessStack:
    """An untrained network: cost does not depend on the weights."""
    config = gg.NetworkConfig(dim=2, num_labels=4, width=width, num_blocks=num_blocks)
    return gg.BlockMLP(config, rngs=nnx.Rngs(0)).as_stack()


def sampling_call(
    model: gg.ProcessStack,
    samples: int,
    *,
    steps: int,
    rule: gg.GuidanceRule = S2,
    batch_size: int | None = None,
) -> Callable[[], Any]:
    """A call of ``guided_sample``, one evaluation in each step."""
    return lambda: gg.guided_sample(
        jax.random.key(0),
        model,
        _LABEL,
        num_samples=samples,
        guidance=rule,
        schedule=gg.Karras(steps),
        solver="euler",
        batch_size=batch_size,
    )


def passes_per_evaluation(
    rule: gg.GuidanceRule, steps: int, num_blocks: int = _NUM_BLOCKS
) -> float:
    """Expected forward passes of one evaluation, weak passes sharing their prefix."""
    cost = gg.expected_cost(rule, gg.Karras(steps), num_blocks, solver="euler")
    return cost.shared / cost.evaluations
