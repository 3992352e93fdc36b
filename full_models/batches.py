"""Drawing many samples of a large model in batches, with progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gmm_guidance as gg

Batch = tuple[int, np.ndarray]


def draw_in_batches(
    model: Any,
    labels: np.ndarray,
    *,
    key: jax.Array,
    guidance: gg.GuidanceRule,
    schedule: Any,
    solver: Any,
    batch_size: int,
    report: Callable[[int, float], None] | None = None,
) -> np.ndarray:
    """Samples of a model, one for each label: float32, ``[n, H, W, C]``.

    The last batch is filled up, so that one program serves all. A sample depends on
    the key, its index and its label, not on the batch (up to the rounding of matrix
    products).

    Args:
        model: a ``DiT``.
        labels: ``[n]`` integers.
        key: a JAX random key.
        guidance: the rule.
        schedule: noise levels.
        solver: as in ``guided_sample``.
        batch_size: samples at once, at least 1.
        report: called after each batch with the samples done and their seconds.

    Raises:
        ValueError: as ``guided_sample``.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    size = min(batch_size, len(labels))
    parts = []
    for start in range(0, len(labels), size):
        begun = time.monotonic()
        chosen = np.resize(labels[start : start + size], size)
        samples = gg.guided_sample(
            key,
            model,
            jnp.asarray(chosen, jnp.int32),
            num_samples=size,
            guidance=guidance,
            schedule=schedule,
            solver=solver,
            first_index=start,
        )
        done = min(start + size, len(labels))
        parts.append(np.asarray(samples)[: done - start])
        if report is not None:
            report(done, time.monotonic() - begun)
    return np.concatenate(parts)
