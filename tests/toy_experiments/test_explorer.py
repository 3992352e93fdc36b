"""The explorer's arrays, against closed forms and the library's own rules."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm
from support import tiny_results

import gmm_guidance as gg
from gmm_guidance._runtime.progress import Reporter
from gmm_guidance.guidance.draws import RandomDraws
from toy_experiments import explorer
from toy_experiments.common.mixtures import make_mixture
from toy_experiments.common.paper import PAPER_MIXTURES, Networks
from toy_experiments.common.records import single
from toy_experiments.common.store import Store

pytestmark = pytest.mark.ci  # it trains; the report's tests use random weights

CONFIG = explorer.ExplorerConfig(
    seeds=2,
    num_steps=3,
    num_samples=64,
    networks=Networks(4, 2, 12, 6, width=8, num_blocks=3, batch_size=32),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    tiny_results.run_explorer(out, train=True)
    return out


@pytest.fixture(scope="module")
def data(out):
    return tiny_results.explorer_data(out)


@pytest.fixture(scope="module")
def network(out):
    """The under-trained network of the first seed, on the line."""
    return CONFIG.setting(Store(out, Reporter()), "two_modes").denoiser("under", 0)


@pytest.mark.parametrize("name, dim, label", [("line", 1, 1), ("plane", 2, 3)])
def test_the_truth_is_the_score_of_the_class(data, name, dim, label):
    mixture = make_mixture(PAPER_MIXTURES[dim - 1])
    for level, sigma in enumerate(data[f"{name}/sigmas"]):
        wanted = sigma * mixture.score(data[f"{name}/points"], float(sigma), label)
        got = explorer.guided_field(data, name, "exact", level, 1.0, 0.0)
        # Float32 predictions, over sigma; relative to positions of order 10.
        np.testing.assert_allclose(got, wanted, atol=2e-5 / sigma)


def test_exact_sub_networks_are_exact(data):
    for name in ("line", "plane"):
        uncond, cond, weak = data[f"{name}/exact"]
        np.testing.assert_array_equal(weak, cond)
        assert (uncond != cond).any()


def test_the_combination_is_the_librarys_rule(data, network):
    rule = gg.S2Guidance(3.0, 0.7, window=None, num_masks="all")
    level = 2
    sigma = data["line/sigmas"][level]
    x = jnp.asarray(data["line/points"])
    label = jnp.full(len(x), 1, jnp.int32)
    zero = jnp.uint32(0)
    random = RandomDraws(jax.random.key(0), zero, zero, 3, jnp.arange(len(x)))
    draws = rule.draw(random)
    outputs = gg.evaluate_passes(
        network, x, jnp.float32(sigma), rule.passes(label, draws)
    )
    guided = rule.combine(outputs, x, jnp.float32(sigma), ())[0]
    got = explorer.guided_field(data, "line", "under", level, 3.0, 0.7)
    np.testing.assert_allclose(got, (guided - x) / sigma, rtol=1e-4, atol=1e-4)
    assert (data["line/under"][2] != data["line/under"][1]).any()


def test_outputs_are_those_of_the_sampler(data, network):
    levels = (np.arange(40) + 0.5) / 40
    start = 80.0 * norm.ppf(levels)[:, None]
    samples = gg.guided_sample(
        jax.random.key(0),
        network,
        1,
        num_samples=40,
        guidance=gg.S2Guidance(4.0, 0.5, num_masks="all"),
        schedule=gg.Karras(3, 0.002, 80.0),
        initial=jnp.asarray(start, jnp.float32),
    )
    wanted = np.sort(np.asarray(samples)[:, 0])
    np.testing.assert_allclose(
        data["outputs/under"][2, 1], wanted, rtol=1e-4, atol=1e-3
    )
    exact = data["outputs/exact"]
    np.testing.assert_array_equal(exact[:, 0], exact[:, 2])  # omega changes nothing
    assert (exact[0] != exact[1]).all()


def test_truth_quantiles_and_density(data):
    levels = (np.arange(40) + 0.5) / 40
    wanted = norm.ppf(levels, loc=4.0)
    np.testing.assert_allclose(data["outputs/truth"], wanted, rtol=1e-5)
    many = norm.ppf((np.arange(20000) + 0.5) / 20000, loc=4.0)
    bins = np.linspace(0.0, 8.0, 65)
    density = explorer.binned_density(many, bins)
    np.testing.assert_allclose(density, np.diff(norm.cdf(bins, 4.0)) * 8, atol=1e-3)


def test_density_has_all_the_mass():
    bins = np.linspace(-3.0, 3.0, 25)
    for quantiles in ([-1.0, 0.5, 2.0], [0.0, 0.0, 1.0], [0.1, 0.1, 0.1]):
        density = explorer.binned_density(np.array(quantiles), bins)
        assert np.sum(density * np.diff(bins)) == pytest.approx(1.0)
        assert (density >= 0).all()


def test_numbers_are_those_of_the_quantiles(out, data):
    record = json.loads((out / "explorer" / "metrics.json").read_text())
    entry = single(record, "outputs", network="under", scale=4.0, s2_scale=0.5)
    quantiles = data["outputs/under"][2, 1].astype(np.float64)
    assert entry["mean"] == pytest.approx(np.mean(quantiles))
    assert entry["std"] == pytest.approx(np.std(quantiles))
    gaps = quantiles - data["outputs/truth"]
    assert entry["w2"] == pytest.approx(np.sqrt(np.mean(gaps**2)))
    assert data["line/mode"].tolist() == [4.0]
    assert data["plane/mode"].tolist() == [4.0, 4.0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"limit": 0.0}, "limit must be > 0, got 0.0"),
        ({"lowest_level": 30.0}, "0 < lowest_level < highest_level"),
        ({"line_points": 1}, "line_points must be at least 2, got 1"),
        ({"omegas": (0.5, 1.0)}, "omegas must begin with 0"),
        ({"omegas": (0.5,)}, "omegas must be 2 or more ascending"),
        ({"scales": (2.0, 1.0)}, "scales must be 2 or more ascending"),
        ({"num_quantiles": 3}, "num_quantiles must be at least 16"),
    ],
)
def test_bad_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        explorer.ExplorerConfig(**change)
