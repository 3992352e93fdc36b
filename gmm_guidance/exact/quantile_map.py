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

from gmm_guidance._runtime.checks import check_count
from gmm_guidance.blocks.evaluate import check_denoiser
from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.diffusion.schedule import Schedule, default_schedule, levels_of
from gmm_guidance.guidance.rule import GuidanceRule, Unguided
from gmm_guidance.sampling.sample import guided_sample
from gmm_guidance.sampling.solvers import NoiseFree, Solver, as_solver


def quantile_map(
    denoiser: Denoiser,
    label: Any = None,
    *,
    guidance: GuidanceRule = Unguided(),
    schedule: Schedule | None = None,
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
        ValueError: if ``num_points`` < 1, for samples that are not on a line, a solver
            that adds noise, or as ``guided_sample``.
    """
    num_points = check_count("num_points", num_points)
    check_line(denoiser)
    schedule = default_schedule(denoiser) if schedule is None else schedule
    levels = (np.arange(num_points) + 0.5) / num_points
    normal = jax.scipy.special.ndtri(jnp.asarray(levels, jnp.result_type(float)))
    start = float(levels_of(schedule)[0]) * normal[:, None]
    samples = guided_sample(
        jax.random.key(0) if key is None else key,
        denoiser,
        label,
        num_samples=num_points,
        guidance=guidance,
        schedule=schedule,
        solver=NoiseFree(as_solver(solver)),
        initial=start,
    )
    return samples[:, 0]


def check_line(denoiser: Any) -> None:
    """Raise ``ValueError`` if a denoiser is known not to be of points on a line."""
    check_denoiser(denoiser)
    shape = getattr(denoiser, "sample_shape", (1,))
    if tuple(shape) != (1,):
        raise ValueError(
            f"quantiles and densities on a line need samples of shape (1,), got "
            f"{tuple(shape)}; use guided_sample or output_density in more dimensions."
        )
