"""The toys of other papers, in miniature: their numbers against closed forms."""

import dataclasses
import os

import jax
import numpy as np
import pytest

import gmm_guidance as gg
from gmm_guidance._runtime.files import jsonable
from gmm_guidance._runtime.reporter import Reporter
from toy_experiments import autoguidance_toy, cfg_zero_toy, power_distribution
from toy_experiments.common.style import figure_style
from toy_experiments.common.workspace import Workspace

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


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path, Reporter())


def draws_and_says(experiment, config, metrics, data):
    """What the command line does with the numbers; names of the figures."""
    record = jsonable({"seeds": config.seeds, **metrics})
    with figure_style():
        figures = experiment.draw(record, data)
        for figure in figures.values():
            figure.canvas.draw()
    assert all(isinstance(line, str) for line in experiment.summarise(record))
    return set(figures)


# --- power_distribution


@pytest.fixture(scope="module")
def power(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("power"), Reporter())
    return power_distribution.compute(POWER, workspace)


@pytest.mark.ci
def test_variances_of_the_pair_in_closed_form(power):
    """The three laws of Bradley and Nakkiran's counter-example, written out."""
    pair = power[0]["pair"]
    for i, s in enumerate(POWER.scales):
        flow, diffusion, tilted = (pair[law][i] for law in power_distribution.LAWS)
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
        row = power[0]["cases"][case][POWER.scales.index(scale)]
        found = (row["w2_to_tilted"], row["w2_to_class"])
        np.testing.assert_allclose(found, wanted, atol=0.004)


@pytest.mark.ci
def test_tilted_tail_against_quadrature(power):
    """p(x | 1) p(1 | x)^w at modes N(+-1, 1), where p(1 | x) = 1 / (1 + e^(-2 x))."""
    x = np.linspace(-30, 30, 600_001)
    for name in ("zero", "root"):
        for w, found in zip(
            power[0]["bounds"]["w"], power[0]["bounds"][name]["tilted"], strict=True
        ):
            density = np.exp(-0.5 * (x - 1) ** 2 - w * np.logaddexp(0.0, -2 * x))
            below = x < (0.0 if name == "zero" else np.sqrt(w))
            wanted = -np.log(density[below].sum() / density.sum())
            assert found == pytest.approx(wanted, rel=2e-3, abs=1e-4)


@pytest.mark.ci
def test_mass_left_of_zero_falls_as_the_square_of_the_scale(power):
    fit = power[0]["bounds"]["zero"]["flow_growth"]
    assert fit["upper_slope"] == pytest.approx(fit["lower_slope"], rel=0.1)
    assert 1.8 < fit["power"] < 2.1


def test_growth_of_known_curves():
    w = np.array([1.0, 2.0, 4.0, 8.0])
    assert power_distribution.growth(w**2, w, 3 * w**2) == pytest.approx(
        {"slope": 3.0, "lower_slope": 3.0, "upper_slope": 3.0, "power": 2.0}
    )


@pytest.mark.ci
def test_power_distribution_draws(power):
    names = draws_and_says(power_distribution.EXPERIMENT, POWER, *power)
    assert names == {"figure"}


# --- autoguidance_toy


@pytest.mark.slow
def test_autoguidance_toy(workspace):
    metrics, data = autoguidance_toy.compute(TREE, workspace)
    panels = metrics["panels"]
    assert set(panels) == {name for name, *_ in autoguidance_toy.PANELS}
    for panel in panels.values():
        assert all(len(entry["seeds"]) == 2 for entry in panel.values())
    # Exact CFG leaves the root of the tree; exact sampling without guidance is true.
    for name in ("w2", "branch_variation", "nn_recall"):
        floor = panels["truth"][name]["mean"]
        assert panels["exact/unguided"][name]["mean"] < 2.0 * floor
        assert panels["exact/cfg"][name]["mean"] > 2.0 * floor
    assert panels["unguided"]["outside"]["mean"] > 0.3  # after six steps of training
    names = draws_and_says(autoguidance_toy.EXPERIMENT, TREE, metrics, data)
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
def test_cfg_zero_toy(workspace):
    metrics, data = cfg_zero_toy.compute(ZERO, workspace)
    result = metrics["scales"]["2"]
    assert set(result) == {"exact", "2", "5", "paired"}
    first = result["exact"]["first_velocity"]
    assert first["error"]["mean"] == 0.0
    # D is twice the class's mean, (+-8, +-8), at once: v = noise - D.
    assert first["norm"]["mean"] == pytest.approx(np.sqrt(2 + 128), rel=0.03)
    assert result["2"]["first_velocity"]["error"]["mean"] > 1.0
    for rule in ("optimised", "zero", "both"):
        change = result["paired"][f"5/{rule}"]
        difference = [
            a - b
            for a, b in zip(
                result["5"][rule]["sliced_w2"]["seeds"],
                result["5"]["cfg"]["sliced_w2"]["seeds"],
                strict=True,
            )
        ]
        assert change["seeds"] == pytest.approx(difference)
    names = draws_and_says(cfg_zero_toy.EXPERIMENT, ZERO, metrics, data)
    assert names == {"figure"}


@pytest.mark.ci
def test_a_zero_first_step_only_starts_later():
    """In the clock of the flow x_t stays; as x / alpha it shrinks with 1 + sigma."""
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

    for name, other in (("zero", gg.CFG(2.0)), ("both", gg.CFGZeroStar(2.0, 0))):
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
