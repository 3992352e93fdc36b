"""Output quantiles of a deterministic sampler in one dimension, without sampling noise.

On a line the sampling flow is monotone: it carries the q-quantile of its start to the
q-quantile of its end. A few thousand quantiles therefore give the distribution of a
rule's output, its moments and its distances to the truth, with no Monte Carlo error.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.diffusion.schedule import Karras, Schedule
from gmm_guidance.guidance.rule import GuidanceRule, Unguided
from gmm_guidance.sampling.sample import guided_sample
from gmm_guidance.sampling.solvers import Solver


def quantile_map(
    denoiser: Denoiser,
    label: Any = None,
    *,
    guidance: GuidanceRule = Unguided(),
    schedule: Schedule = Karras(),
    solver: str | Solver = "heun",
    num_points: int = 2000,
    key: jax.Array | None = None,
) -> jax.Array:
    """Output quantiles of a deterministic sampler in one dimension.

    Args:
        denoiser: a denoiser of points on a line, ``[n, 1]``.
        label: ``None`` or an integer.
        guidance: the rule.
        schedule: noise levels.
        solver: a deterministic solver.
        num_points: how many quantiles, at levels ``(i + 1/2) / num_points``.
        key: for rules with random masks, which then stay fixed over the points.

    Returns:
        Quantiles of the output, ascending for a monotone flow: ``[num_points]``.

    Raises:
        ValueError: if ``num_points`` < 1, or as ``guided_sample``.
    """
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}.")
    levels = (np.arange(num_points) + 0.5) / num_points
    normal = jax.scipy.special.ndtri(jnp.asarray(levels, jnp.result_type(float)))
    start = float(schedule.sigmas()[0]) * normal[:, None]
    samples = guided_sample(
        jax.random.key(0) if key is None else key,
        denoiser,
        label,
        num_samples=num_points,
        guidance=guidance,
        schedule=schedule,
        solver=solver,
        initial=start,
    )
    return samples[:, 0]
