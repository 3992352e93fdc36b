"""Fixed encodings of position and time, as DiT has them."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

TIME_FEATURES = 256


@functools.cache
def position_table(grid: int, width: int) -> np.ndarray:
    """Sine-cosine positions of a square grid of patches: float32, ``[grid^2, width]``.

    The first half of the features encodes the column, the second the row; each half is
    ``[sin, cos]`` of ``position / 10000^(i / (width / 4))``, computed in float64.
    Tokens run along rows. The tables of published checkpoints agree to rounding.
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    phase = np.arange(grid)[:, None] * frequencies
    line = np.concatenate([np.sin(phase), np.cos(phase)], axis=1)  # [grid, width / 2]
    columns = np.tile(line, (grid, 1))
    rows = np.repeat(line, grid, axis=0)
    table = np.concatenate([columns, rows], axis=1).astype(np.float32)
    table.setflags(write=False)  # it is shared by all callers
    return table


def time_features(t: jax.Array) -> jax.Array:
    """``[cos, sin]`` of times at 128 frequencies from 1 to almost 1 / 10000.

    Frequencies are ``exp(-ln(10000) i / 128)``; other code bases divide by 127.

    Args:
        t: times ``[n]``, float32: integers for DiT, [0, 1] for SiT, unscaled.

    Returns:
        ``[n, 256]``, float32.
    """
    half = TIME_FEATURES // 2
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / half)
    phase = t[:, None] * jnp.asarray(frequencies, jnp.float32)[None]
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)
