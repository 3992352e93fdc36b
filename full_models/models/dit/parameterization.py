"""What a DiT or SiT is asked at a noise level, and what its answer means.

The library's samples are ``x = x0 + sigma * noise``; the networks see ``x_t = alpha
x``, at a time of their own clock, and predict noise (DiT) or velocity (SiT).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import gmm_guidance as gg
from gmm_guidance.diffusion.process import Process

_DDPM = gg.DDPM()
_FLOW = gg.RectifiedFlow(data_at_one=True)


def process_of(name: str) -> Process:
    """The process of a configuration's ``process``: DiT's chain, or SiT's path."""
    return _DDPM if name == "ddpm" else _FLOW


def network_time(name: str, sigma: ArrayLike) -> jax.Array:
    """The time that the network is given, float32, the shape of sigma.

    An integer step of the chain for DiT, the nearest one, since it has seen no other;
    ``1 / (1 + sigma)`` for SiT.
    """
    if name == "ddpm":
        return _DDPM.nearest_step(sigma).astype(jnp.float32)
    return _FLOW.time(sigma).astype(jnp.float32)


def network_input(name: str, x: jax.Array, sigma: jax.Array) -> jax.Array:
    """``alpha x`` of unit scale; sigma broadcasts against x."""
    if name == "ddpm":
        return x * jax.lax.rsqrt(1.0 + sigma**2)
    return x / (1.0 + sigma)


def denoised(
    name: str, prediction: jax.Array, x: jax.Array, sigma: jax.Array
) -> jax.Array:
    """``E[x0 | x]`` from noise (DiT) or velocity (SiT); sigma broadcasts against x.

    DiT's noise is that of the exact level, though the network was asked at the nearest
    step: ``x - sigma eps``.
    """
    if name == "ddpm":
        return x - sigma * prediction
    # x_t + (1 - t) v, with x_t = x t and t = 1 / (1 + sigma).
    return (x + sigma * prediction) / (1.0 + sigma)


def velocity_target(clean: jax.Array, noise: jax.Array) -> jax.Array:
    """What a flow network is trained to predict: ``dx_t / dt`` towards the data."""
    return clean - noise
