"""The digits: data, classifier, training that resumes, and the evaluation of rules."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the digits extra: scikit-learn")

from full_models import load_weights
from full_models.digits import train as train_module
from full_models.digits.comparison import (
    at_the_same_scale,
    best_settings,
    difference,
)
from full_models.digits.data import HELD_OUT, load_digits
from full_models.digits.evaluate import DigitsEvaluation, evaluate_digits
from full_models.digits.features import digits_classifier
from full_models.digits.measures import MEASURES, Measure
from full_models.digits.page import BEGIN, END, write_page
from full_models.digits.rules import Setting, settings
from full_models.digits.runs import network_path, read_run
from full_models.digits.train import DigitsTraining, train_digits
from gmm_guidance._runtime.checkpoints import stored_steps
from gmm_guidance._runtime.directory_lock import DirectoryLock
from gmm_guidance._runtime.reporter import Reporter

TINY = DigitsTraining(
    width=16, depth=3, num_heads=2, steps=60, batch_size=16, snapshots=(20,)
)
FIRST_LABELS = [1, 4, 5, 6, 9, 1, 2, 2]
EVALUATION = DigitsEvaluation(
    num_samples=100, steps=3, scales=(1.0, 1.5), s2_scales=(0.25,), num_masks=2
)


def test_split_is_fixed_disjoint_and_balanced():
    digits = load_digits()
    assert len(digits.held_images) == HELD_OUT and len(digits.train_images) == 1257
    seen = np.concatenate([digits.train_images, digits.held_images]).reshape(1797, 64)
    assert len(np.unique(seen, axis=0)) == 1797
    assert seen.min() == -1.0 and seen.max() == 1.0
    counts = np.bincount(digits.held_labels)
    assert counts.min() >= 52 and counts.max() <= 56
    # Whatever scikit-learn does to its shuffling must not go unnoticed.
    assert digits.held_labels[:8].tolist() == FIRST_LABELS


@pytest.mark.ci
def test_classifier_is_scikit_learns():
    from sklearn.neural_network import MLPClassifier

    digits, ours = load_digits(), digits_classifier()
    flat = digits.train_images.reshape(-1, 64).astype(np.float64)
    theirs = MLPClassifier((64,), max_iter=400, alpha=1e-3, random_state=0)
    theirs.fit(flat, digits.train_labels)
    held = digits.held_images
    np.testing.assert_allclose(
        ours.class_probabilities(held),
        theirs.predict_proba(held.reshape(-1, 64).astype(np.float64)),
        atol=1e-9,
    )
    assert ours.accuracy(held, digits.held_labels) > 0.97


@pytest.mark.ci
def test_real_images_read_as_the_floors():
    """Shuffled labels, noise, copies and a single class are told from them."""
    digits = load_digits()
    measure = Measure(digits, digits_classifier(), HELD_OUT)
    floors, held = measure.floors(), digits.held_images
    assert set(floors) == set(MEASURES)
    real = measure(held)
    assert real["frechet"] == floors["frechet"] and real["coverage"] == 1.0
    assert floors["accuracy"] > 0.97 and floors["precision"] > 0.8
    rng = np.random.default_rng(0)
    shuffled = measure(held, rng.permutation(digits.held_labels))
    assert shuffled["accuracy"] < 0.25 and shuffled["frechet"] == real["frechet"]
    noise = measure(rng.uniform(-1, 1, held.shape))
    assert noise["frechet"] > 10 * floors["frechet"] and noise["precision"] < 0.1
    copies = measure(digits.train_images[:HELD_OUT])
    assert copies["nearest"] == 0.0 < floors["nearest"]
    one_class = measure(held[digits.held_labels == 3][np.arange(HELD_OUT) % 50])
    assert one_class["recall"] < 0.3 < floors["recall"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two tiny runs of different seeds."""
    folder = tmp_path_factory.mktemp("runs")
    with Reporter() as reporter:
        for seed in (0, 1):
            config = dataclasses.replace(TINY, seed=seed)
            train_digits(config, folder / f"run{seed}", reporter)
    return [folder / "run0", folder / "run1"]


@pytest.mark.ci
def test_training_leaves_networks_a_record_and_a_sheet(runs, capsys):
    record = json.loads((runs[0] / "run.json").read_text())
    assert record["finished"] and record["steps"] == [20, 60]
    assert record["loss"][-1]["step"] == 60
    assert (runs[0] / "samples.png").stat().st_size > 1000
    assert read_run(runs[0]).network(20).config == TINY.network()
    files = {p.name for p in runs[0].iterdir()}
    assert not any("checkpoint" in f or f.startswith(".") for f in files)
    before = network_path(runs[0], 60).stat().st_mtime_ns
    with Reporter() as reporter:
        train_digits(TINY, runs[0], reporter)  # it is finished: nothing happens
        with pytest.raises(ValueError, match="another run: config.steps is 60"):
            train_digits(dataclasses.replace(TINY, steps=70), runs[0], reporter)
    assert network_path(runs[0], 60).stat().st_mtime_ns == before


@pytest.mark.ci
def test_interrupted_training_goes_on_exactly(runs, tmp_path, monkeypatch):
    append = train_module._append

    def stop(path, progress):
        append(path, progress)
        if progress.step >= 40:
            raise KeyboardInterrupt

    with Reporter() as reporter:
        monkeypatch.setattr(train_module, "_append", stop)
        with pytest.raises(KeyboardInterrupt):
            train_digits(TINY, tmp_path, reporter)
    with pytest.raises(ValueError, match="not finished; give its command again"):
        read_run(tmp_path)
    monkeypatch.setattr(train_module, "_append", append)
    with Reporter() as reporter:
        train_digits(TINY, tmp_path, reporter)
    for step in (20, 60):
        found, wanted = (
            network_path(p, step).read_bytes() for p in (tmp_path, runs[0])
        )
        assert found == wanted


_SLOW_TRAINING = """
import sys, time
from pathlib import Path
from full_models import training
from full_models.digits import train
from gmm_guidance._runtime.directory_lock import DirectoryLock
from gmm_guidance._runtime.reporter import Reporter

training._CHECKPOINT_SECONDS = 0.0
append = train._append

def slowly(path, progress):
    append(path, progress)
    time.sleep(1.0)

train._append = slowly
config = train.DigitsTraining(
    width=16, depth=3, num_heads=2, steps=60, batch_size=16, snapshots=(20,)
)
with Reporter() as reporter:
    train.train_digits(config, Path(sys.argv[1]), reporter)
"""


@pytest.mark.ci
def test_killed_training_goes_on_exactly(runs, tmp_path):
    """A process that had no time to say goodbye."""
    process = subprocess.Popen([sys.executable, "-c", _SLOW_TRAINING, str(tmp_path)])
    checkpoint = tmp_path / "checkpoint"
    deadline = time.monotonic() + 240
    while max(stored_steps(checkpoint), default=0) < 20:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not network_path(tmp_path, 60).exists()
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write('\n{"step": 4')  # a line that the kill cut off
    with Reporter() as reporter:
        train_digits(TINY, tmp_path, reporter)
    for step in (20, 60):
        found, wanted = (
            network_path(p, step).read_bytes() for p in (tmp_path, runs[0])
        )
        assert found == wanted
    records = [json.loads((p / "run.json").read_text()) for p in (tmp_path, runs[0])]
    assert records[0]["loss"] == records[1]["loss"]


@pytest.mark.ci
def test_a_lost_snapshot_is_trained_again(runs, tmp_path, monkeypatch):
    """A checkpoint beyond a network that is not there cannot bring it back."""
    append = train_module._append

    def stop(path, progress):
        append(path, progress)
        if progress.step == 20:  # before the network of step 20 is written
            raise KeyboardInterrupt

    with Reporter() as reporter:
        monkeypatch.setattr(train_module, "_append", stop)
        with pytest.raises(KeyboardInterrupt):
            train_digits(TINY, tmp_path, reporter)
        assert not network_path(tmp_path, 20).exists()
        monkeypatch.setattr(train_module, "_append", append)
        train_digits(TINY, tmp_path, reporter)
    found, wanted = (network_path(p, 20).read_bytes() for p in (tmp_path, runs[0]))
    assert found == wanted


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"gmm-guidance\[digits\]"):
        load_digits()


@pytest.mark.slow
def test_evaluation_of_all_rules(runs, tmp_path):
    config = dataclasses.replace(EVALUATION, runs=tuple(runs))
    with Reporter() as reporter:
        written = evaluate_digits(config, tmp_path, reporter)
        cells = {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").iterdir()}
        first = json.loads((tmp_path / "metrics.json").read_text())
        next(iter(cells)).write_bytes(b"damaged")
        evaluate_digits(config, tmp_path, reporter)
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert first | {"seconds": 0} == again | {"seconds": 0}
    kept = [p for p, time in cells.items() if p.stat().st_mtime_ns == time]
    assert len(kept) == len(cells) - 1  # the damaged one alone was drawn again
    assert (
        all(p.exists() for p in written) and "S²" in (tmp_path / "table.md").read_text()
    )
    assert [e["length"] for e in first["lengths"]] == [20, 60]
    rules = {e["rule"] for e in first["lengths"][1]["settings"]}
    assert len(rules) == 6
    for entry in first["lengths"]:
        for setting in entry["settings"]:
            values = [setting[name]["mean"] for name in MEASURES]
            assert np.isfinite(values).all() and len(setting["frechet"]["runs"]) == 2
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    assert all(p.stat().st_size < 200_000 for p in write_page(tmp_path, page))
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "**20 training steps.**" in text and "**60 training steps.**" in text


@pytest.mark.ci
def test_runs_that_do_not_belong_together(runs, tmp_path):
    with Reporter() as reporter:

        def evaluate(**changes):
            config = dataclasses.replace(EVALUATION, **changes)
            return evaluate_digits(config, tmp_path / "out", reporter)

        with pytest.raises(ValueError, match="at least one training folder"):
            evaluate()
        with pytest.raises(ValueError, match="different training seeds"):
            evaluate(runs=(runs[0], runs[0]))
        with pytest.raises(FileNotFoundError, match="no training run in"):
            evaluate(runs=(tmp_path / "nowhere",))
        with pytest.raises(ValueError, match=r"no network was kept at \[30\]"):
            evaluate(runs=(runs[0],), lengths=(30,))
        other = tmp_path / "wider"
        shutil.copytree(runs[1], other)
        record = json.loads((other / "run.json").read_text())
        record["config"]["width"] = 32
        (other / "run.json").write_text(json.dumps(record))
        with pytest.raises(ValueError, match="no repetition of .*: width is 32"):
            evaluate(runs=(runs[0], other))
    with pytest.raises(ValueError, match="from 100 to 540"):
        DigitsEvaluation(num_samples=1000)
    with pytest.raises(ValueError, match="1 .off. among them"):
        DigitsEvaluation(scales=(1.5,))


@pytest.mark.ci
def test_networks_are_weights_like_any_other(runs):
    network = load_weights(network_path(runs[0], 60))
    assert network.sample_shape == (8, 8, 1) and network.config.process == "flow"


def run_values(*numbers):
    return [{"frechet": x, "accuracy": 0.9} for x in numbers]


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"),
    [
        ((1.0, 2.0, 3.0), (1.5, 2.51, 3.49), "closer"),
        ((1.5, 2.51, 3.49), (1.0, 2.0, 3.0), "farther"),
        ((1.0, 2.0, 3.0), (0.5, 2.5, 3.5), "undecided"),
        ((1.0,), (2.0,), "undecided"),  # one run decides nothing
    ],
)
def test_verdicts_are_of_paired_differences(ours, theirs, wanted):
    """Runs differ by much more than rules: unpaired, none of these would be decided."""
    found = difference(run_values(*ours), run_values(*theirs))
    assert found["verdict"] == wanted
    wanted_mean = np.mean(np.subtract(ours, theirs))
    assert found["frechet"]["mean"] == pytest.approx(wanted_mean)


def test_best_settings_and_their_references():
    """The least mean distance wins; best CFG that is off is not set against itself."""
    grid = settings((1.0, 2.0), (0.25, 0.5), has_weak_network=False)
    table = {
        Setting("no guidance"): (1.0, 1.2),
        Setting("CFG", 2.0): (0.9, 1.5),
        Setting("S²", 1.0, 0.25): (0.8, 1.0),
        Setting("S²", 1.0, 0.5): (0.5, 1.5),
    }

    def values(setting):
        return run_values(*table.get(setting, (3.0, 3.0)))

    best = best_settings(grid, values)
    assert "AutoGuidance" not in best and best["CFG"] == Setting("no guidance")
    assert best["S²"] == Setting("S²", 1.0, 0.25)
    same = {
        (e["rule"], e["scale"], e["weight"]): e for e in at_the_same_scale(grid, values)
    }
    assert same["S²", 1.0, 0.5]["frechet"]["runs"] == pytest.approx([-0.5, 0.3])
    assert same["SkipLayer", 2.0, 0.5]["frechet"]["runs"] == pytest.approx([2.1, 1.5])


@pytest.mark.ci
def test_damaged_record_and_page_without_marks(runs, tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        read_run(tmp_path)
    with Reporter() as reporter, pytest.raises(ValueError, match="damaged"):
        train_digits(TINY, tmp_path, reporter)
    page = tmp_path / "page.md"
    page.write_text("no marks")
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold the lines"):
        write_page(tmp_path, page)


def test_two_trainings_in_one_folder_are_refused(tmp_path):
    with DirectoryLock(tmp_path), Reporter() as reporter:
        with pytest.raises(BlockingIOError, match="in use by another process"):
            train_digits(TINY, tmp_path, reporter)
    assert list(tmp_path.iterdir()) == []
