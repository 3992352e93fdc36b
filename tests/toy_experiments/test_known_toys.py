"""The toys of other papers, in miniature: their numbers against closed forms."""

import dataclasses
import os

import jax
import numpy as np
import pytest

import gmm_guidance as gg
from gmm_guidance._runtime.files import jsonable
from gmm_guidance._runtime.progress import Reporter
from toy_experiments import (
    attention_toy,
    autoguidance_toy,
    cfg_zero_toy,
    power_distribution,
)
from toy_experiments.common.networks import Budgets
from toy_experiments.common.records import select, single
from toy_experiments.common.store import Store
from toy_experiments.common.style import figure_style

os.environ.setdefault("POT_BACKEND_DISABLE_PYTORCH", "1")  # seconds to import

POWER = power_distribution.PowerDistributionConfig(
    seeds=2,
    num_samples=16_384,
    num_steps=96,
    num_points=500,
    scales=(1.0, 2.0, 4.0),
    bound_scales=(2.0, 3.0, 5.0, 9.0),
)
TREE = autoguidance_toy.AutoguidanceToyConfig(
    seeds=2,
    depth=2,
    num_samples=200,
    num_steps=8,
    train_steps=6,
    weak_steps=3,
    width=8,
    weak_width=8,
    num_blocks=3,
    weak_blocks=2,
    batch_size=32,
)
ZERO = cfg_zero_toy.CFGZeroToyConfig(
    seeds=2,
    steps=(2, 5),
    num_samples=256,
    num_steps=20,
    scales=(2.0,),
    width=8,
    num_blocks=3,
    batch_size=32,
)


def computed(experiment, config, folder):
    """What ``metrics.json`` holds, and the arrays."""
    tables, data = experiment.compute(config, Store(folder, Reporter()))
    config = dataclasses.asdict(config)
    return jsonable({"seeds": 2, "config": config, "tables": tables}), data


def drawn(experiment, metrics, data):
    """Names of the figures."""
    with figure_style():
        figures = experiment.draw(metrics, data)
        for figure in figures.values():
            figure.canvas.draw()
    assert all(isinstance(line, str) for line in experiment.summarize(metrics))
    return set(figures)


# --- power_distribution


@pytest.fixture(scope="module")
def power(tmp_path_factory):
    folder = tmp_path_factory.mktemp("power")
    return computed(power_distribution.EXPERIMENT, POWER, folder)


@pytest.mark.ci
def test_variances_of_the_pair_in_closed_form(power):
    """The three distributions of Bradley and Nakkiran's counter-example."""
    for s in POWER.scales:
        flow, diffusion, tilted = select(power[0], "pair", scale=s)
        assert flow["closed_variance"] == pytest.approx(2 ** (1 - s))
        assert flow["variance"] == pytest.approx(2 ** (1 - s), rel=0.01)
        wanted = (2 - 2 ** (2 - 2 * s)) / (2 * s - 1)
        assert diffusion["closed_variance"] == pytest.approx(wanted)
        assert diffusion["variance"]["mean"] == pytest.approx(wanted, rel=0.04)
        assert diffusion["mean"]["mean"] == pytest.approx(
            diffusion["closed_mean"], abs=0.05
        )
        assert tilted["closed_variance"] == pytest.approx(2 / (s + 1))


@pytest.mark.ci
def test_golden_distances(power):
    """W2 of CFG to the tilted law and to p(x | label), from sigma = 80."""
    golden = {
        ("G1", 2.0): (0.3028, 0.3505),
        ("G1", 4.0): (0.6278, 0.7029),
        ("G2", 2.0): (0.3215, 0.6441),
        ("G2", 4.0): (0.8003, 1.3856),
        ("S2a", 2.0): (0.3292, 0.3292),
        ("S2a", 4.0): (0.6665, 0.6665),
        ("S2b", 2.0): (0.6581, 0.6585),
        ("S2b", 4.0): (1.3323, 1.3329),
    }
    for (case, scale), wanted in golden.items():
        row = single(power[0], "cases", case=case, scale=scale)
        found = (row["w2_to_tilted"], row["w2_to_class"])
        np.testing.assert_allclose(found, wanted, atol=0.004)


@pytest.mark.ci
def test_tilted_tail_against_quadrature(power):
    """p(x | 1) p(1 | x)^w at modes N(+-1, 1), where p(1 | x) = 1 / (1 + e^(-2 x))."""
    x = np.linspace(-30, 30, 600_001)
    for row in power[0]["tables"]["bounds"]:
        w = row["w"]
        density = np.exp(-0.5 * (x - 1) ** 2 - w * np.logaddexp(0.0, -2 * x))
        below = x < (0.0 if row["bound"] == "zero" else np.sqrt(w))
        wanted = -np.log(density[below].sum() / density.sum())
        assert row["tilted"] == pytest.approx(wanted, rel=2e-3, abs=1e-4)


@pytest.mark.ci
def test_mass_left_of_zero_falls_as_the_square_of_the_scale(power):
    fit = single(power[0], "growth", bound="zero", kind="flow")
    assert fit["upper_slope"] == pytest.approx(fit["lower_slope"], rel=0.1)
    assert 1.8 < fit["power"] < 2.1


def test_growth_of_known_curves():
    w = np.array([1.0, 2.0, 4.0, 8.0])
    assert power_distribution.growth(w**2, w, 3 * w**2) == pytest.approx(
        {"slope": 3.0, "lower_slope": 3.0, "upper_slope": 3.0, "power": 2.0}
    )


@pytest.mark.ci
def test_power_distribution_draws(power):
    assert drawn(power_distribution.EXPERIMENT, *power) == {"figure"}


# --- autoguidance_toy


@pytest.mark.slow
def test_autoguidance_toy(tmp_path):
    metrics, data = computed(autoguidance_toy.EXPERIMENT, TREE, tmp_path)
    panels = {
        (r["network"], r["rule"]): {k: v["mean"] for k, v in r.items() if "mean" in v}
        for r in metrics["tables"]["samples"]
    }
    assert tuple(panels) == autoguidance_toy.PANELS
    # Exact CFG leaves the root of the tree; exact sampling without guidance is true.
    for name in ("w2", "branch_variation", "coverage_distance"):
        floor = panels["truth", "truth"][name]
        assert panels["exact", "unguided"][name] < 2.0 * floor
        assert panels["exact", "cfg"][name] > 2.0 * floor
    assert panels["trained", "unguided"]["outside"] > 0.3  # after six training steps
    names = drawn(autoguidance_toy.EXPERIMENT, metrics, data)
    assert names == {"figure", "figure_paths"}


@pytest.mark.ci
def test_branch_mass_against_counting():
    """Branches far apart compared with their width: count samples by their branch."""
    judge = autoguidance_toy._Judge(TREE, TREE.mixture())
    tree = TREE.mixture().condition(0)
    means = np.asarray(tree.means)
    true = np.asarray(tree.weights).reshape(-1, 8).sum(1)
    samples = means[[0, 1, 2, 8, 9, 16]]  # centres: three of the first branch, ...
    wanted = 0.5 * np.abs(np.array([3, 2, 1]) / 6 - true).sum()
    judge._count = len(samples)
    assert judge(samples, 0)["branch_variation"] == pytest.approx(wanted, abs=0.02)


# --- cfg_zero_toy


@pytest.mark.slow
def test_cfg_zero_toy(tmp_path):
    metrics, data = computed(cfg_zero_toy.EXPERIMENT, ZERO, tmp_path)
    first, after_2, _ = metrics["tables"]["velocity"]
    assert first["steps"] is None and first["error"]["mean"] == 0.0
    # D is twice the class's mean, (+-8, +-8), at once: v = noise - D.
    assert first["norm"]["mean"] == pytest.approx(np.sqrt(2 + 128), rel=0.03)
    assert after_2["error"]["mean"] > 1.0
    cfg = single(metrics, "samples", steps=5, rule="cfg")["sliced_w2"]["seeds"]
    for rule in ("optimized", "zero", "cfg_zero"):
        record = single(metrics, "samples", steps=5, rule=rule)
        difference = np.subtract(record["sliced_w2"]["seeds"], cfg)
        assert record["minus_cfg"]["seeds"] == pytest.approx(difference)
    assert drawn(cfg_zero_toy.EXPERIMENT, metrics, data) == {"figure"}


@pytest.mark.ci
def test_a_zero_first_step_only_starts_later():
    """In the time of the flow x_t stays; as x / alpha it shrinks with 1 + sigma."""
    mixture = gg.presets.four_corners()
    sigmas = ZERO.schedule().sigmas()
    start = sigmas[0] * jax.random.normal(jax.random.key(0), (32, 2))
    later = start * np.float32((1 + sigmas[1]) / (1 + sigmas[0]))

    def sample(rule, levels, initial):
        return gg.guided_sample(
            jax.random.key(0),
            gg.ExactDenoiser(mixture),
            3,
            num_samples=32,
            guidance=rule,
            schedule=gg.CustomSchedule(levels),
            solver="euler",
            initial=initial,
        )

    for name, other in (("zero", gg.CFG(2.0)), ("cfg_zero", gg.CFGZeroStar(2.0, 0))):
        found = sample(ZERO.rule(name, 2.0), sigmas, start)
        wanted = sample(other, sigmas[1:], later)
        np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_jensen_shannon():
    mixture = gg.presets.four_corners()
    far = np.full((100, 2), 50.0)
    assert cfg_zero_toy.jensen_shannon(far, mixture) == pytest.approx(np.log(2), 1e-3)
    true, _ = mixture.sample(jax.random.key(0), 100_000)
    assert 0 < cfg_zero_toy.jensen_shannon(np.asarray(true), mixture) < 0.005


# --- what they refuse


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (POWER, {"seeds": 1}, "seeds must be at least 2"),
        (POWER, {"num_steps": 8}, "num_steps must be at least 64"),
        (POWER, {"scales": (0.5, 2.0)}, "scales must be"),
        (POWER, {"bound_scales": (1.0, 2.0, 3.0, 4.0)}, "bound_scales must be"),
        (TREE, {"seeds": 1}, "seeds must be at least 2"),
        (TREE, {"num_samples": 5}, "num_samples must be at least 64"),
        (ZERO, {"seeds": 1}, "seeds must be at least 2"),
        (ZERO, {"zero_steps": 20}, "below num_steps=20"),
        (ZERO, {"scales": (1.0,)}, "none of them 1"),
        (ZERO, {"steps": (5, 2)}, "ascending"),
    ],
)
def test_bad_configurations(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


@pytest.mark.parametrize("module", [power_distribution, autoguidance_toy, cfg_zero_toy])
def test_quick_is_smaller(module):
    quick, full = module.EXPERIMENT.config.quick(), module.EXPERIMENT.config()
    assert quick.seeds < full.seeds and quick.num_samples < full.num_samples


# --- attention_toy


@pytest.mark.ci
def test_perturbed_attention_has_the_variances_of_its_closed_form(tmp_path):
    config = attention_toy.AttentionToyConfig(
        seeds=2,
        num_samples=256,
        num_steps=4,
        network_samples=64,
        budgets=Budgets((3,), width=4, num_blocks=3, batch_size=16),
        scales=(1.0,),
        omegas=(0.5,),
        permutation_steps=(40,),
    )
    metrics, data = computed(attention_toy.EXPERIMENT, config, tmp_path)
    tables = metrics["tables"]
    assert max(r["relative_error"] for r in tables["variances"]) < 1e-7
    for rule in ("CFG 2", "CFG 2 + PAG", "CFG 2 + SEG"):
        (record,) = [r for r in tables["guided"] if r["rule"] == rule]
        assert record["wanted_shift"] == 2.0
        for name in ("shift", *attention_toy.SUBSPACES):
            gap = record[name] - record[f"wanted_{name}"]
            assert abs(gap) < 4.0 * record[f"{name}_error"], (rule, name)
    for record in tables["projections"]:
        assert sum(record[s]["mean"] for s in attention_toy.SUBSPACES) == (
            pytest.approx(1.0)
        )
    costs = {r["rule"]: (r["num_steps"], r["passes"]) for r in tables["rules"]}
    # A dropped block is not computed: S² has more steps than perturbed attention.
    assert costs["cfg"][0] >= costs["s2"][0] > costs["random_seg"][0] == 4
    assert drawn(attention_toy.EXPERIMENT, metrics, data) == {
        "figure",
        "figure_trained",
    }
