"""The DDPM chain against its running product, at steps, between and beyond them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.clocks import chain, scales

from gmm_guidance.diffusion.process import DDPM


def test_table_is_the_running_product():
    table = chain()
    np.testing.assert_allclose(DDPM().alpha_bars(), table, rtol=1e-11)
    np.testing.assert_allclose(DDPM().sigmas() ** 2, 1 / table - 1, rtol=1e-10)
    alpha, std = (np.asarray(a) for a in scales(DDPM(), jnp.arange(1000)))
    np.testing.assert_allclose(alpha**2, table, rtol=4e-6)
    np.testing.assert_allclose(std**2, 1 - table, rtol=4e-6)
    short = DDPM(num_steps=7, beta_start=0.1, beta_end=0.5)
    np.testing.assert_allclose(short.alpha_bars(), chain(7, 0.1, 0.5), rtol=1e-13)
    assert DDPM().sigmas()[0] == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(ValueError, match="read-only"):
        DDPM().sigmas()[0] = 1.0


def test_log_sigma_is_linear_between_steps_and_beyond_both_ends():
    table = DDPM().sigmas()
    expected = [
        np.sqrt(table[500] * table[501]),
        table[0] ** 2 / table[1],
        table[-1] ** 2 / table[-2],
    ]
    levels = jax.jit(DDPM().sigma)(jnp.array([500.5, -1.0, 1000.0]))
    np.testing.assert_allclose(levels, expected, rtol=5e-6)


def test_inverse_at_its_steps_and_nearest_steps_beyond():
    @jax.jit
    def inverse(levels):
        return DDPM().time(levels), DDPM().nearest_step(levels)

    steps = np.arange(1000)
    time, nearest = inverse(jnp.array([*DDPM().sigmas(), 1e-6, 0.0, 1e6]))
    np.testing.assert_allclose(time[:1000], steps, atol=3e-4)
    assert nearest.dtype == jnp.int32
    np.testing.assert_array_equal(nearest, [*steps, 0, 0, 999])


def test_rate_at_a_step_is_that_of_the_interval_to_its_right():
    with jax.enable_x64(True):
        alpha, _ = (np.asarray(a) for a in scales(DDPM(), np.array([400.0, 400.001])))
        rate = np.asarray(jax.jit(DDPM().alpha_rate)(400))
    np.testing.assert_allclose(rate, np.diff(alpha)[0] / 0.001, rtol=1e-4)


@pytest.mark.parametrize(
    "arguments, pattern",
    [
        ({"num_steps": 1}, "num_steps must be a whole number of at least 2, got 1"),
        ({"num_steps": 10.0}, "whole number.*got 10.0"),
        ({"beta_start": 0.0}, "0 < beta_start.*got beta_start=0.0"),
        ({"beta_end": 1.0}, "beta_end < 1.*beta_end=1.0"),
        ({"beta_start": 0.03}, "beta_start <= beta_end"),
    ],
)
def test_bad_chains(arguments, pattern):
    with pytest.raises(ValueError, match=pattern):
        DDPM(**arguments)


@pytest.mark.parametrize("step", [-1, 1000, np.array([3, 1000])])
def test_integer_times_outside_of_the_chain(step):
    with pytest.raises(ValueError, match=r"0\.\.999, got \[(-1|1000)\]"):
        DDPM().alpha(step)
