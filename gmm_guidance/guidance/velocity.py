"""Rules that are defined on the velocity: to the velocity of a process, and back.

Between ``D`` and the velocity ``v = alpha' D + s' eps`` of one point ``x_t`` lies an
affine map, so that differences of velocities are those of ``D`` times a number.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gmm_guidance.diffusion.parameterization import (
    denormalise,
    from_denoised,
    to_denoised,
)
from gmm_guidance.diffusion.process import Process


def velocity_of(
    process: Process, denoised: jax.Array, x: jax.Array, sigma: jax.Array
) -> jax.Array:
    """The velocity of the process that denoised samples amount to at ``x, sigma``.

    Of ``VE()`` it is the noise ``(x - D) / sigma``.
    """
    x_t, t = denormalise(process, x, sigma)
    return from_denoised(process, denoised, x_t, t, "velocity")


def denoised_of(
    process: Process, velocity: jax.Array, x: jax.Array, sigma: jax.Array
) -> jax.Array:
    """The inverse of ``velocity_of``."""
    x_t, t = denormalise(process, x, sigma)
    return to_denoised(process, velocity, x_t, t, "velocity")


def denoised_change(process: Process, change: jax.Array, sigma: jax.Array) -> jax.Array:
    """What a change of the velocity amounts to in ``D``; exactly zero for zero."""
    return denoised_of(process, change, jnp.zeros_like(change), sigma)
