"""The output distribution of a deterministic sampler in one dimension.

The sampler is a monotone map of its start, ``x_0 = f(sigma_max z)`` with ``z`` standard
normal. Its density at ``x_0`` is that of the start divided by the map's derivative, and
means over its output are integrals over ``z`` against a Gaussian, for which an even
lattice is accurate to rounding. Between modes the map stretches such a lattice far
apart: further points fill these gaps. There is no sampling noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import check_count
from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.diffusion.schedule import Schedule, default_schedule, levels_of
from gmm_guidance.exact.density import track_volume
from gmm_guidance.exact.quantile_map import check_line
from gmm_guidance.guidance.rule import GuidanceRule, Unguided
from gmm_guidance.sampling.solvers import Solver

_REACH = 8.0  # standard deviations of the start
_REFINEMENTS = 2  # each divides the gaps in the start by hundreds


class LineDistribution(NamedTuple):
    """A distribution on a line, as log densities at its quantiles.

    Attributes:
        points: ascending points ``[m]``.
        log_density: log density at each point, ``[m]``.
        weights: probability mass of each point, for means: ``[m]``, summing to one; 0
            for points that only fill gaps of the density.
    """

    points: jax.Array
    log_density: jax.Array
    weights: jax.Array

    def density(self, grid: ArrayLike) -> jax.Array:
        """Density at any points, of their shape; 0 beyond the outermost ones.

        The log density is interpolated linearly between the points.
        """
        grid = jnp.asarray(grid, self.points.dtype)
        log_density = jnp.interp(
            grid, self.points, self.log_density, left=-jnp.inf, right=-jnp.inf
        )
        return jnp.exp(log_density)

    def mean(self) -> jax.Array:
        """Mean, a scalar."""
        return jnp.dot(self.weights, self.points)

    def variance(self) -> jax.Array:
        """Variance, a scalar."""
        return jnp.dot(self.weights, (self.points - self.mean()) ** 2)

    def entropy(self) -> jax.Array:
        """Differential entropy in nats."""
        return -jnp.dot(self.weights, self.log_density)

    def nll(self, target_log_prob: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Mean negative log density under a target, given as ``[m, 1]`` to ``[m]``."""
        return -jnp.dot(self.weights, target_log_prob(self.points[:, None]))

    def kl_divergence(
        self, target_log_prob: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        """``KL(this || target)`` in nats; the target as for ``nll``."""
        excess = self.log_density - target_log_prob(self.points[:, None])
        return jnp.dot(self.weights, excess)


def line_distribution(
    denoiser: Denoiser,
    label: Any = None,
    *,
    guidance: GuidanceRule = Unguided(),
    schedule: Schedule | None = None,
    solver: str | Solver = "heun",
    num_points: int = 2001,
    key: jax.Array | None = None,
) -> LineDistribution:
    """The output distribution of a deterministic sampler in one dimension.

    Args:
        denoiser: a differentiable denoiser of points on a line, ``[n, 1]``.
        label: ``None`` or an integer.
        guidance: a rule without state.
        schedule: noise levels; the start is ``N(0, sigma_max^2)``.
        solver: ``"euler"`` or ``"heun"``.
        num_points: number of points, at least 3, evenly spaced over -8 to 8 standard
            deviations of the start; twice as many then fill the gaps in the output.
        key: for rules with random masks, which are then the same for all points.

    Returns:
        Points, log densities and weights of the output.

    Raises:
        ValueError: if the map is not monotone (too few steps for the scale), or as
            ``output_density``.
    """
    num_points = check_count("num_points", num_points, 3)
    check_line(denoiser)
    schedule = default_schedule(denoiser) if schedule is None else schedule
    sigma = float(levels_of(schedule)[0])
    dtype = jnp.result_type(float)

    def run(z):
        ends, log_volume = track_volume(
            jax.random.key(0) if key is None else key,
            denoiser,
            label,
            jnp.asarray(sigma * z[:, None], dtype),
            guidance=guidance,
            schedule=schedule,
            solver=solver,
        )
        log_start = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) - np.log(sigma)
        points = np.asarray(ends[:, 0], np.float64)
        return points, log_start - np.asarray(log_volume, np.float64)

    z = np.linspace(-_REACH, _REACH, num_points)
    weights = np.exp(-0.5 * z**2) / np.exp(-0.5 * z**2).sum()
    points, log_density = run(z)
    # Only where there is mass: in the tails neighbors may coincide in float32.
    if (np.diff(points)[np.abs(z[1:]) < 5.0] <= 0).any():
        raise ValueError(
            "the sampler's map of the line is not monotone, so its output has no "
            "density of this form. Use more steps or a smaller scale."
        )
    even = np.linspace(points.min(), points.max(), num_points)
    for _ in range(_REFINEMENTS):
        more_z = np.interp(even, points, z)
        more_points, more_density = run(more_z)
        points = np.concatenate([points, more_points])
        order = np.argsort(points, kind="stable")
        points = points[order]
        z = np.concatenate([z, more_z])[order]
        log_density = np.concatenate([log_density, more_density])[order]
        weights = np.concatenate([weights, np.zeros(num_points)])[order]
    return LineDistribution(
        *(jnp.asarray(a, dtype) for a in (points, log_density, weights))
    )


def line_density(
    denoiser: Denoiser,
    label: Any,
    grid: ArrayLike,
    *,
    guidance: GuidanceRule = Unguided(),
    schedule: Schedule | None = None,
    solver: str | Solver = "heun",
    num_points: int = 2001,
    key: jax.Array | None = None,
) -> jax.Array:
    """Output density of a deterministic sampler at the points of a grid, of any shape.

    Further arguments and errors as of ``line_distribution``.
    """
    return line_distribution(
        denoiser,
        label,
        guidance=guidance,
        schedule=schedule,
        solver=solver,
        num_points=num_points,
        key=key,
    ).density(grid)
