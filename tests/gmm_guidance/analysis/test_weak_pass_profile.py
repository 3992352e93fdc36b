"""Projections of dropped blocks, against quadrature, samplers' errors, repetition."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.faulty_stack import FaultyStack

import gmm_guidance as gg

LINE = gg.presets.two_modes()
SIGMAS = np.array([1.5, 3.0, 8.0])
AMPLITUDES = np.array([0.0, 0.2, 0.5, 0.1])
MODEL = FaultyStack(LINE, jnp.asarray(AMPLITUDES, jnp.float32))


def calibrate(model, data=LINE, seed=0, **options):
    options = {"sigmas": SIGMAS, "num_samples": 4800, **options}
    return gg.calibrate(model, data, jax.random.key(seed), **options)


@pytest.fixture(scope="module")
def found():
    return calibrate(MODEL, num_samples=24000, label=1)


def expectations(sigma):
    """``E[a b]`` in class 1 of corrections, CFG's direction, learning error."""
    x = np.linspace(-60.0, 60.0, 40001)
    spread = np.sqrt(1.0 + sigma**2)
    density = np.exp(-((x - 4.0) ** 2) / 2 / spread**2) / spread
    post = [(x + sigma**2 * m) / spread**2 for m in (-4.0, 4.0)]
    second = 1.0 / (1.0 + np.exp(np.clip(-8.0 * x / spread**2, -500.0, 500.0)))
    uncond = (1.0 - second) * post[0] + second * post[1]
    turn = np.arange(1, 5)[:, None]
    waves = np.sin(0.7 * turn * x / np.sqrt(1 + 0.01 * x**2) + 0.3 * turn)
    terms = AMPLITUDES[:, None] * waves
    rows = np.stack([*terms[1:], terms[1:].mean(0), post[1] - uncond, -terms.sum(0)])
    weight = density / np.sqrt(2 * np.pi)
    return np.trapezoid(rows[:, None] * rows[None] * weight, x)


def test_projections_are_those_of_quadrature(found):
    profile = found.profile()
    assert profile.corrections == ("block 1", "block 2", "block 3", "mean of blocks")
    assert profile.directions == ("cfg", "learning_error")
    expected = np.stack([expectations(sigma) for sigma in SIGMAS])
    squares = np.einsum("skk->sk", expected)

    def check(projection, values):
        assert projection.value.shape == values.shape
        error = projection.standard_error
        assert (np.abs(projection.value - values) < 4 * error + 1e-4).all()
        assert (error < 0.2 * np.abs(values).max()).all()

    for column, direction in ((4, "cfg"), (5, "learning_error")):
        inner = expected[:, :4, column]
        size = squares[:, column, None]
        check(profile.fraction(direction), inner / size)
        check(profile.cosine(direction), inner / np.sqrt(size * squares[:, :4]))
    check(profile.size(), np.sqrt(squares[:, :4]))
    for scale in (1.0, 3.0):
        gain = expected[:, :4, 5] - (scale - 1) * expected[:, :4, 4]
        projection = profile.best_weight(scale)
        error = projection.standard_error
        assert (np.abs(projection.value - gain / squares[:, :4]) < 4 * error).all()


def test_a_block_that_scales_the_output_is_all_output():
    stack = gg.exact.ScaledOutputStack(LINE, 0.15, gg.VE(), "epsilon", num_blocks=3)
    profile = calibrate(stack, num_samples=480).profile()
    assert profile.directions == ("output", "cfg", "learning_error")
    np.testing.assert_allclose(profile.fraction("output").value, 0.15, rtol=1e-3)
    np.testing.assert_allclose(profile.cosine("output").value, 1.0, rtol=1e-5)
    assert (profile.fraction("output").standard_error < 1e-4).all()
    # The network's output is exact: what CFG adds to it is no error of the network.
    assert np.sqrt(profile.products[..., -1, -1].max()) < 1e-4


def test_data_alone_tell_the_error_that_a_rule_will_make(found):
    """The change of E|x0 - D|^2 by skip-layer guidance on fresh noised samples."""
    clean, labels = LINE.sample(jax.random.key(5), 12000)
    profile = calibrate(MODEL, (clean, labels), 1, num_samples=12000).profile()
    assert "learning_error" not in profile.directions
    change = profile.error_change(0.4, scale=2.0)
    fresh, label = LINE.sample(jax.random.key(6), 20000)
    noise = jax.random.normal(jax.random.key(7), fresh.shape)
    significant = []
    for column, blocks in enumerate([(1,), (2,), (3,)]):
        rule = gg.SkipLayer(2.0, blocks, 0.4, window=None)
        differences = 0.0
        for sigma, weight in zip(SIGMAS, profile.weights, strict=True):
            x = fresh + jnp.float32(sigma) * noise
            errors = [
                np.asarray(gg.guided_denoise(MODEL, r, x, sigma, label) - fresh) ** 2
                for r in (rule, gg.CFG(2.0))
            ]
            differences = differences + weight * (errors[0] - errors[1])
        expected = differences.mean()
        error = np.hypot(
            change.standard_error[column], differences.std() / np.sqrt(20000)
        )
        assert abs(change.value[column] - expected) < 4 * error
        significant.append(abs(expected) > 4 * error)
    assert any(significant)


def test_standard_errors_are_those_of_repetitions():
    profiles = [
        calibrate(MODEL, seed=seed, num_samples=480).profile() for seed in range(40)
    ]
    for call in (
        lambda p: p.best_weight(2.0),
        lambda p: p.fraction("cfg"),
        lambda p: p.cosine("learning_error"),
        lambda p: p.error_change(0.5, 2.0),
    ):
        found = [call(p) for p in profiles]
        spread = np.std([f.value for f in found], axis=0, ddof=1)
        stated = np.sqrt(np.mean([f.standard_error**2 for f in found], axis=0))
        ratio = np.sqrt(np.mean(spread**2 / stated**2))
        assert 0.8 < ratio < 1.25, ratio


def test_records_and_files(found, tmp_path):
    stack = gg.exact.ScaledOutputStack(LINE, 0.15, gg.VE(), "x0", num_blocks=2)
    own = calibrate(stack, num_samples=480)
    for calibration in (found, own):
        path = calibration.save(tmp_path / "calibration.json")
        again = gg.Calibration.load(path).profile()
        np.testing.assert_array_equal(again.products, calibration.profile().products)
        records = calibration.profile().records(scale=2.0)
        assert json.loads(json.dumps(records)) == records
    names = {r["quantity"] for r in records}
    assert {"size", "best_weight", "output_fraction", "cfg_cosine"} <= names
    one = next(r for r in records if r["quantity"] == "output_fraction")
    assert one["correction"] == "block 1" and one["sigma"] == SIGMAS[0]
    np.testing.assert_allclose(one["value"], 0.15, rtol=1e-3)
    text = path.read_text().replace("output_products", "something_else")
    path.write_text(text)
    with pytest.raises(ValueError, match="another version"):
        gg.Calibration.load(path)


def test_what_was_not_measured_is_refused():
    model = gg.ExactDenoiser(LINE)
    with pytest.raises(ValueError, match="no dropped block was measured"):
        calibrate(model, num_samples=480).profile()
    profile = calibrate(MODEL, features=((1,), (1, 2)), num_samples=480).profile()
    assert profile.corrections == ("block 1", "blocks 1+2")
    with pytest.raises(ValueError, match="calibrate with a ProcessStack"):
        profile.fraction("output")
    with pytest.raises(ValueError, match='the feature "cfg"'):
        profile.best_weight(2.0)
    assert np.isfinite(profile.best_weight().value).all()
