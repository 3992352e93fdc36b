"""One guided flow in the clocks of EDM, VP and rectified flow: the same samples.

Each process is integrated here in its own scale and its own time, by its own velocity;
the library does it once, in the variance-exploding clock.
"""

import jax
import numpy as np
import pytest

from gmm_guidance import presets
from gmm_guidance.diffusion.parameterization import from_denoised
from gmm_guidance.diffusion.process import VE, VP, RectifiedFlow
from gmm_guidance.diffusion.schedule import Karras
from gmm_guidance.guidance import CFG
from gmm_guidance.mixture.exact_denoiser import ExactDenoiser
from gmm_guidance.sampling.sample import guided_sample

FIRST, LAST, SCALE = 30.0, 0.01, 3.0
PROCESSES = {
    "VE": VE(),
    "VP": VP(),
    "flow": RectifiedFlow(),
    "SiT": RectifiedFlow(data_at_one=True),
}


@pytest.fixture(scope="module")
def reference():
    """Start, and state at noise level ``LAST``, of a guided run in the plane."""
    with jax.enable_x64(True):
        mixture = presets.four_corners(std=0.5, labels="diagonal", mean=2.0)
        x = FIRST * np.random.default_rng(0).normal(size=(12, 2))
        label = np.arange(12) % 2
        _, path = guided_sample(
            jax.random.key(0),
            ExactDenoiser(mixture),
            label,
            num_samples=12,
            guidance=CFG(SCALE),
            schedule=Karras(400, LAST, FIRST),
            initial=x,
            trajectory=True,
        )
        return mixture, label, x, np.asarray(path[-2])


@pytest.mark.parametrize("name", PROCESSES)
def test_the_guided_flow_in_its_own_clock(reference, name):
    mixture, label, x, wanted = reference
    process = PROCESSES[name]

    def velocity(x_t, t):
        clean, sigma = x_t / process.alpha(t), process.sigma(t)
        uncond, cond = mixture.denoise_rows(clean, sigma, (None, label))
        guided = (1 - SCALE) * uncond + SCALE * cond
        return from_denoised(process, guided, x_t, t, "velocity")

    def step(x_t, times):
        t, after = times
        slope = velocity(x_t, t)
        end = velocity(x_t + (after - t) * slope, after)
        return x_t + 0.5 * (after - t) * (slope + end), None

    @jax.jit
    def solve(x, levels):
        times = process.time(levels)
        start = process.alpha(times[0]) * x
        x_t, _ = jax.lax.scan(step, start, (times[:-1], times[1:]))
        return x_t / process.alpha(times[-1])

    with jax.enable_x64(True):
        # Even steps in log sigma, which no solver of the library takes.
        samples = np.asarray(solve(x, np.geomspace(FIRST, LAST, 1001)))
    np.testing.assert_allclose(samples, wanted, rtol=0, atol=2e-3)
    # Labels are diagonals: samples lie in the quadrants of their own.
    signs = np.sign(samples).prod(axis=1)
    np.testing.assert_array_equal(signs, np.where(label == 0, 1, -1))
