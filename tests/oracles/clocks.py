"""The processes under test, each with times of its own clock, and textbook formulas."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from gmm_guidance.diffusion.process import DDPM, VE, VP, RectifiedFlow

# Each with three times of its own clock at which nothing is singular.
CLOCKS = {
    "ve": (VE(), (0.05, 1.0, 30.0)),
    "vp": (VP(), (0.05, 0.4, 0.8)),
    "ddpm": (DDPM(), (20.3, 400.0, 800.6)),
    "flow": (RectifiedFlow(), (0.05, 0.5, 0.95)),
    "sit": (RectifiedFlow(data_at_one=True), (0.05, 0.5, 0.95)),
}
EVERY_CLOCK = pytest.mark.parametrize("process, times", CLOCKS.values(), ids=CLOCKS)
EVERY_PROCESS = pytest.mark.parametrize(
    "process", [process for process, _ in CLOCKS.values()], ids=CLOCKS
)


@functools.partial(jax.jit, static_argnums=0)
def scales(process, t):
    """The library's alpha and s at ``t``."""
    return process.alpha(t), process.noise_std(t)


def chain(num_steps=1000, first=1e-4, last=2e-2):
    """DDPM's alpha_bar, one factor after another."""
    product, table = 1.0, []
    for i in range(num_steps):
        product *= 1.0 - (first + (last - first) * i / (num_steps - 1))
        table.append(product)
    return np.array(table)


def column(values):
    """One value for each sample ``[n]``, shaped to multiply ``[n, a, b]``."""
    return np.reshape(np.asarray(values, float), (-1, 1, 1))


def noised(process, t, x0, eps):
    """``x_t`` at a scalar time or one for each sample, float64."""
    alpha, std = (np.asarray(value, float) for value in scales(process, t))
    if alpha.ndim:
        alpha, std = column(alpha), column(std)
    return alpha * x0 + std * eps
