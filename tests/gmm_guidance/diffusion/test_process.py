"""Continuous noise processes against definitions, quadrature and finite differences.

Oracles are written from the definitions in float64 and share no code with the module.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.clocks import EVERY_CLOCK, EVERY_PROCESS, scales
from scipy import integrate

from gmm_guidance.diffusion.process import (
    DDPM,
    VE,
    VP,
    RectifiedFlow,
    process_from_fields,
)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@functools.partial(jax.jit, static_argnums=0)
def there_and_back(process, levels):
    t = process.time(levels)
    return t, process.sigma(t), process.noise_std(t) / process.alpha(t)


def test_vp_alpha_is_the_integral_of_beta(x64):
    for t in (1e-3, 0.2, 0.7, 1.0):
        integral, _ = integrate.quad(lambda u: 0.1 + 19.9 * u, 0, t)
        np.testing.assert_allclose(VP().alpha(t), np.exp(-integral / 2), rtol=1e-12)
    np.testing.assert_allclose(VP(2.0, 2.0).alpha(0.5), np.exp(-0.5), rtol=1e-12)


@pytest.mark.parametrize("process, last", [(VP(), 1), (VP(1.0, 1.0), 1), (DDPM(), 999)])
def test_variance_is_preserved(process, last):
    alpha, std = scales(process, jnp.linspace(0.0, 1.0, 41) * last)
    np.testing.assert_allclose(alpha**2 + std**2, 1.0, rtol=1e-6)


@EVERY_PROCESS
def test_time_inverts_sigma(process):
    levels = np.logspace(-3, 3, 61, dtype=np.float32)
    t, sigma, _ = (np.asarray(a) for a in there_and_back(process, levels))
    direction = -1 if getattr(process, "data_at_one", False) else 1
    assert np.all(direction * np.diff(t) > 0)
    # A flow's clock resolves sigma by half a unit in the last place of a time near 1.
    grain = np.maximum(levels, 1 / levels) * (
        1.2e-7 if isinstance(process, RectifiedFlow) else 0
    )
    assert np.all(np.abs(sigma / levels - 1) < 4e-6 + grain)


@EVERY_PROCESS
def test_sigma_is_noise_over_signal_in_float64(x64, process):
    levels = np.logspace(-3, 3, 61)
    t, sigma, ratio = there_and_back(process, levels)
    assert t.dtype == jnp.float64
    np.testing.assert_allclose(sigma, levels, rtol=1e-9)
    np.testing.assert_allclose(ratio, levels, rtol=1e-9)


def test_vp_is_sound_at_extreme_levels_in_float32():
    levels = np.array([1e-12, 1e-5, 1e4, 1e15], np.float32)
    t, sigma, _ = there_and_back(VP(), levels)
    np.testing.assert_allclose(sigma, levels, rtol=2e-5)
    time = np.asarray(t, np.float64)
    beta_integral = 0.1 * time + 19.9 * time**2 / 2
    expected = np.log1p(levels.astype(np.float64) ** 2)
    np.testing.assert_allclose(beta_integral, expected, rtol=1e-6)
    slopes = jax.jit(jax.vmap(jax.grad(VP().time)))(levels)
    assert np.isfinite(slopes).all()


def test_sit_is_the_flow_with_its_clock_reversed():
    flow, sit, t = RectifiedFlow(), RectifiedFlow(data_at_one=True), 0.3
    np.testing.assert_allclose(sit.alpha(1 - t), flow.alpha(t), rtol=1e-6)
    np.testing.assert_allclose(sit.sigma(1 - t), flow.sigma(t), rtol=1e-6)
    np.testing.assert_allclose(sit.sigma(0.2), 4.0, rtol=1e-6)
    np.testing.assert_allclose(sit.time(4.0), 0.2, rtol=1e-6)


@EVERY_CLOCK
def test_rates_are_the_derivatives(x64, process, times):
    step = 1e-5
    # A quarter into its interval, where the chain is smooth.
    t = jnp.array(times) + (0.25 if isinstance(process, DDPM) else 0.0)

    @jax.jit
    def three_ways(t):
        results = []
        for value, rate in (
            (process.alpha, process.alpha_rate),
            (process.noise_std, process.noise_std_rate),
        ):
            slope = (value(t + step) - value(t - step)) / (2 * step)
            _, tangent = jax.jvp(value, (t,), (jnp.ones_like(t),))
            results.append((slope, tangent, rate(t)))
        return results

    for slope, tangent, rate in three_ways(t):
        np.testing.assert_allclose(rate, slope, rtol=1e-5, atol=1e-12)
        np.testing.assert_allclose(rate, tangent, rtol=1e-9, atol=1e-14)


def test_processes_are_hashable_values():
    assert len({VE(), VP(), VP(0.1, 20.0), DDPM(), DDPM(), RectifiedFlow()}) == 4
    assert RectifiedFlow() != RectifiedFlow(data_at_one=True)


# --- what is refused


@pytest.mark.parametrize(
    "beta_min, beta_max", [(0, 20), (3, 2), (np.nan, 1), (1, np.inf)]
)
def test_bad_vp(beta_min, beta_max):
    with pytest.raises(ValueError, match="0 < beta_min <= beta_max.*got"):
        VP(beta_min, beta_max)


@EVERY_PROCESS
def test_negative_levels(process):
    for sigma in (-1.0, np.nan, jnp.array([1.0, -1.0])):
        with pytest.raises(ValueError, match="sigma must be at least 0, got"):
            process.time(sigma)


@pytest.mark.parametrize(
    "process, t",
    [(VE(), -1.0), (VP(), -0.1), (VP(), np.nan)]
    + [(RectifiedFlow(), 1.5), (RectifiedFlow(data_at_one=True), 700)],
)
def test_times_off_the_clock(process, t):
    with pytest.raises(ValueError, match=r"time must be in \[0, (inf|1)\], got"):
        process.alpha(t)


@pytest.mark.parametrize(
    "process", [VE(), VP(0.2, 9.0), DDPM(50, integer_times=True), RectifiedFlow(True)]
)
def test_processes_are_stored_by_their_fields(process):
    fields = json.loads(json.dumps(dataclasses.asdict(process)))
    assert process_from_fields(fields) == process
    for wrong in ({}, {"name": "flow"}, fields | {"speed": 1}, "flow"):
        with pytest.raises(ValueError, match="a process must have a name"):
            process_from_fields(wrong)
