"""Networks whose blocks scale their output: closed forms, and the sampler's answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmm_guidance as gg

# Two modes at +-4 of standard deviation 1, in units of the standard deviation of all.
S = np.sqrt(17.0)
MIXTURE = gg.GaussianMixture(
    np.array([[-4.0], [4.0]]) / S, 1.0 / S**2, labels=np.array([0, 1])
)
STD, DISTANCE = 1.0 / S, 4.0 / S
LOW, HIGH = 0.002, 20.0
CASES = {
    "edm": (gg.VE(), gg.ScaledPrediction("edm", 1.0)),
    "epsilon": (gg.VE(), "epsilon"),
    "velocity": (gg.RectifiedFlow(), "velocity"),
    "x0": (gg.VE(), "x0"),
}
INPUT = {
    "edm": lambda sigma: 1.0 / (1.0 + sigma**2),
    "epsilon": lambda sigma: 1.0,
    "velocity": lambda sigma: 1.0 / (1.0 + sigma),
    "x0": lambda sigma: 0.0,
}


def change(name, strength, low=LOW, high=HIGH):
    return gg.exact.scaled_output_change(
        *CASES[name],
        strength,
        std=STD,
        distance=DISTANCE,
        sigma_min=low,
        sigma_max=high,
    )


@pytest.mark.parametrize("strength", [0.02, 0.1])
def test_widths_have_closed_forms(strength):
    """The integral of alpha - a over log sigma, by hand for each parameterization."""

    def alpha(sigma):
        return 0.5 * np.log(sigma**2 / (STD**2 + sigma**2))

    integrals = {
        "edm": lambda sigma: 0.5 * np.log(sigma**2 / (1.0 + sigma**2)),
        "epsilon": np.log,
        "velocity": lambda sigma: np.log(sigma / (1.0 + sigma)),
        "x0": lambda sigma: 0.0,
    }
    for name, a in integrals.items():
        expected = alpha(HIGH) - a(HIGH) - (alpha(LOW) - a(LOW))
        found = change(name, strength).log_width
        np.testing.assert_allclose(found, strength * expected, rtol=1e-4, atol=1e-6)
    # Over the whole range: bounded for EDM and velocity.
    for name in ("edm", "velocity"):
        whole = change(name, strength, 1e-6, 1e5).log_width
        np.testing.assert_allclose(whole, strength * np.log(STD), rtol=1e-4)


def test_shifts_have_closed_forms():
    g = 0.1
    assert abs(change("epsilon", g).shift) < 1e-6
    # EDM over the whole range: M / m = (1 + g) / 2 v^((1 + g) / 2)
    # int_0^inf (v + t)^(-(3 + g) / 2) (t + 1)^(g / 2) dt.
    t = np.concatenate([[0.0], np.geomspace(1e-8, 1e12, 200001)])
    integrand = (STD**2 + t) ** (-(3 + g) / 2) * (t + 1.0) ** (g / 2)
    mean = (1 + g) / 2 * STD ** (1 + g) * np.trapezoid(integrand, t)
    found = change("edm", g, 1e-6, 1e6).shift
    np.testing.assert_allclose(found, (mean - 1.0) * DISTANCE / STD, rtol=1e-3)
    # A data standard deviation equal to the mode's: outward by exactly 1 + g.
    same = gg.exact.scaled_output_change(
        gg.VE(),
        gg.ScaledPrediction("edm", STD),
        g,
        std=STD,
        distance=DISTANCE,
        sigma_min=1e-6,
        sigma_max=1e6,
    )
    np.testing.assert_allclose(same.shift, g * DISTANCE / STD, rtol=1e-4)
    assert abs(same.log_width) < 1e-6
    assert change("x0", g).shift > 4 * change("velocity", g).shift > 0


@pytest.mark.parametrize("name", CASES)
def test_a_dropped_block_takes_its_fraction_of_the_output(name):
    stack = gg.exact.ScaledOutputStack(MIXTURE, 0.125, *CASES[name], num_blocks=4)
    x = jnp.linspace(-3.0, 3.0, 12)[:, None]
    label = jnp.arange(12) % 3  # the last one: no condition
    for sigma in (0.05, 0.6, 5.0):
        level = jnp.float32(sigma)
        exact = MIXTURE.denoise(x, sigma, label)
        drops = [jnp.array(d, jnp.int32) for d in ([1, 4], [0, 4], [2, 3])]
        passes = [gg.Pass(label), *(gg.Pass(label, drop=d) for d in drops)]
        full, one, first, two = gg.evaluate_passes(stack, x, level, passes)
        atol = 2e-6 * max(1.0, sigma)
        np.testing.assert_allclose(full, exact, atol=atol)
        output = exact - INPUT[name](sigma) * x
        for weak, fraction in ((one, 0.125), (first, 0.125), (two, 0.25)):
            np.testing.assert_allclose(weak, exact - fraction * output, atol=2 * atol)


def test_widths_agree_with_another_integration():
    """In float64 NumPy, strength 0.1 in the window 0.1-0.9 of 24 steps."""
    sigmas = gg.Karras(24, 0.0005, 20.0).sigmas()
    low, high = sigmas[22], sigmas[3]
    widths = {"edm": 0.868, "epsilon": 0.693, "velocity": 0.877, "x0": 1.68}
    for name, width in widths.items():
        found = np.exp(change(name, 0.1, low, high).log_width)
        np.testing.assert_allclose(found, width, rtol=2e-3)


@pytest.fixture(scope="module")
def unguided():
    return quantiles(gg.ExactDenoiser(MIXTURE), gg.Unguided())


def quantiles(denoiser, rule):
    schedule = gg.Karras(120, 0.0005, 20.0)
    found = gg.quantile_map(
        denoiser, 1, guidance=rule, schedule=schedule, solver="heun", num_points=64
    )
    return np.asarray(found, np.float64)


@pytest.mark.parametrize("name", CASES)
def test_the_sampler_reaches_the_closed_form(name, unguided):
    """Exact denoisers, no CFG, S² of strength 0.1 in the paper's window."""
    stack = gg.exact.ScaledOutputStack(MIXTURE, 0.125, *CASES[name])
    guided = quantiles(stack, gg.S2Guidance(1.0, 0.8))
    sigmas = gg.Karras(120, 0.0005, 20.0).sigmas()
    closed = change(name, 0.1, sigmas[108], sigmas[12])
    width = np.log(guided.std() / unguided.std())
    np.testing.assert_allclose(width, closed.log_width, rtol=0.02)
    shift = (guided.mean() - unguided.mean()) / STD
    # At sigma 20 the sampler starts from mean 0 instead of the class's.
    np.testing.assert_allclose(shift, closed.shift, rtol=0.02, atol=0.02)


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        change("edm", 0.1, 2.0, 1.0)
    with pytest.raises(ValueError, match="num_blocks must be at least 2"):
        gg.exact.ScaledOutputStack(MIXTURE, 0.1, gg.VE(), "epsilon", num_blocks=1)
    with pytest.raises(ValueError, match="prediction"):
        gg.exact.ScaledOutputStack(MIXTURE, 0.1, gg.VE(), "noise")


def test_the_stack_is_a_denoiser_and_a_pytree():
    stack = gg.exact.ScaledOutputStack(MIXTURE, 0.1, *CASES["edm"])
    assert stack.sample_shape == (1,) and stack.num_labels == 2
    x = jnp.ones((2, 1))
    value = jax.jit(lambda s, x: s(x, jnp.float32(0.5)))(stack, x)
    np.testing.assert_allclose(value, MIXTURE.denoise(x, 0.5), rtol=1e-5)
