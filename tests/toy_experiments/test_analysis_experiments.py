"""The analysis experiments: pieces against known answers, the whole in miniature."""

import json

import jax
import numpy as np
import pytest

import gmm_guidance as gg
from toy_experiments import cli
from toy_experiments.common.mixtures import (
    balanced_start,
    make_mixture,
    relative_schedule,
)
from toy_experiments.common.sweep import METRICS, measure
from toy_experiments.error_budget import _crossing
from toy_experiments.guidance_windows import window_curve
from toy_experiments.phase_diagram import PhaseDiagramConfig, equal_cost_steps

SCHEDULE = gg.Karras(6, 0.05, 20.0)


def test_a_curve_of_window_values_is_the_window():
    mixture = make_mixture("two_modes")
    exact = gg.ExactDenoiser(mixture)
    curve = window_curve(SCHEDULE.sigmas(), 3.0, 0.4, 9.0)
    window = gg.Windowed(gg.CFG(3.0), gg.SigmaWindow(0.4, 9.0))
    values = [
        gg.guided_sample(
            jax.random.key(0), exact, 1, num_samples=32, guidance=rule,
            schedule=SCHEDULE, solver="dpmpp_2m",
        )
        for rule in (gg.CFG(curve), window)
    ]  # fmt: skip
    np.testing.assert_allclose(values[0], values[1], atol=1e-5)


def test_starts_are_balanced_and_on_a_line_without_noise():
    line, corners = make_mixture("two_modes"), make_mixture("four_corners")
    labels, start = balanced_start(line, SCHEDULE, 1000, 3)
    assert (np.bincount(labels) == 500).all()
    np.testing.assert_allclose(start[labels == 0], start[labels == 1])
    assert start.mean() == pytest.approx(0.0, abs=1e-4)
    assert start[labels == 0].std() == pytest.approx(20.0, rel=0.01)
    labels, plane = balanced_start(corners, SCHEDULE, 1000, 3)
    other = balanced_start(corners, SCHEDULE, 1000, 4)[1]
    assert plane.shape == (1000, 2) and not np.allclose(plane, other)
    # Quasi-random: the mean of 250 independent samples would have an error of 0.06.
    for label in range(4):
        normal = plane[labels == label] / SCHEDULE.sigmas()[0]
        np.testing.assert_allclose(normal.mean(axis=0), 0.0, atol=0.02)
        np.testing.assert_allclose(np.cov(normal.T), np.eye(2), atol=0.06)


@pytest.mark.parametrize(
    "name",
    ["two_modes", "four_corners", pytest.param("tree", marks=pytest.mark.ci)],
)
def test_true_samples_measure_as_true(name):
    mixture = make_mixture(name)
    labels = np.arange(2000) % mixture.num_labels
    samples, _ = mixture.sample(jax.random.key(1), 2000, labels)
    true = dict(zip(METRICS, measure(name, np.asarray(samples), labels), strict=True))
    moved = np.asarray(samples) + 0.5 * float(mixture.scale)
    far = dict(zip(METRICS, measure(name, moved, labels), strict=True))
    scale = float(mixture.scale)
    assert true["distance"] < 0.06 * scale < 0.3 * scale < far["distance"]
    assert true["width"] == pytest.approx(1.0, abs=0.1)
    assert abs(true["shift"]) < 0.1
    assert true["nll_median"] < far["nll_median"]


@pytest.mark.ci
def test_sliced_distance_on_the_tree_is_that_of_a_shift():
    """Moved by c: the mean of (c . u)^2 over directions u is |c|^2 / 2."""
    mixture = make_mixture("tree")
    labels = np.arange(4000) % 2
    samples = np.asarray(mixture.sample(jax.random.key(2), 4000, labels)[0])
    got = measure("tree", samples + np.array([3.0, 4.0]), labels)[0]
    assert got == pytest.approx(5.0 / np.sqrt(2.0), rel=0.01)


def test_levels_of_a_toy_are_in_proportion_to_its_data():
    schedule = relative_schedule("four_corners", 10)
    assert schedule.sigma_max == pytest.approx(20.0 * np.sqrt(17.0), rel=1e-4)


def test_equal_cost_is_that_of_the_shared_prefix():
    """One of 8 blocks, mean index 4: 3/8 of a pass more in 20 of 24 steps."""
    config = PhaseDiagramConfig()
    assert equal_cost_steps(config) == round(24 + (3 / 8) * 19.5 / 2)


def test_crossing_of_two_lines():
    sigmas = np.array([16.0, 4.0, 1.0, 0.25])
    bias = sigmas**2
    learned = np.full(4, 2.0)
    assert _crossing(sigmas, bias, learned) == pytest.approx(np.sqrt(2.0), rel=1e-6)
    assert _crossing(sigmas, 0 * bias, learned) == 16.0
    assert _crossing(sigmas, bias + 9, learned) == 0.25


NETWORK = ["--budgets.steps", "4", "8", "--budgets.width", "8"]
NETWORK += ["--budgets.num-blocks", "3", "--budgets.batch-size", "32", "--seeds", "2"]
GRID = ["--grid.scales", "1", "2", "--grid.s2-scales", "0", "0.25"]
SMALL = ["--num-samples", "64"]
GRID += [*SMALL, "--num-steps", "10"]
RUNS = {
    "phase_diagram": [*GRID, "--variant-steps", "4"],
    "error_budget": ["--shown", "8", *SMALL, "--num-steps", "4"],
    "calibration": [*GRID, "--wide", "0", "--calibration-samples", "240"],
    "mask_variance": ["--shown", "8", "--mask-seeds", "2", *SMALL],
    "guidance_windows": [
        "--shown",
        "8",
        "--ends",
        "0",
        "1",
        "100",
        "--num-samples",
        "64",
    ],
    "repair": ["--scales", "1", "4", *SMALL, "--num-particles", "64"],
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder: all of them share their networks."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_in_miniature(name, out):
    options = ["--out", str(out), *NETWORK, *RUNS[name]]
    assert cli.main(["run", name, *options]) == 0
    record = json.loads((out / name / "metrics.json").read_text())
    assert record["experiment"] == name and record["seeds"] == 2
    assert list((out / name).glob("figure*.png"))
    # A second run finds all of its cells; drawing needs nothing else.
    cells = {p: p.stat().st_mtime_ns for p in (out / "cells").iterdir()}
    assert cli.main(["run", name, *options]) == 0
    assert cells == {p: p.stat().st_mtime_ns for p in (out / "cells").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["phase_diagram", "--seeds", "1"], "seeds must be at least 2"),
        (["phase_diagram", "--grid.s2-scales", "0.5"], "must contain 0"),
        (["error_budget", "--shown", "7"], "among budgets.steps"),
        (["phase_diagram", "--variant-s2-scale", "3"], "among grid.s2_scales"),
        (["guidance_windows", "--ends", "1", "0.5"], "ascending"),
        (["repair", "--drawn", "9"], "drawn must be among scales"),
    ],
)
def test_bad_requests(arguments, message, tmp_path, capsys):
    out = tmp_path / "results"
    try:
        status = cli.main(["run", *arguments, "--out", str(out)])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
