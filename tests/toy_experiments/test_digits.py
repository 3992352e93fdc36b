"""The digits: data, measures, training that resumes, and the comparison of rules."""

import dataclasses
import json
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the digits extra: scikit-learn")

from full_models import load_weights
from full_models.training import DiTTraining
from gmm_guidance._runtime.checkpoints import stored_steps
from gmm_guidance._runtime.progress import Reporter
from toy_experiments import cli, digits
from toy_experiments.common.images import MEASURES, Classifier, Reference
from toy_experiments.common.page import marks
from toy_experiments.common.records import select
from toy_experiments.common.store import Store
from toy_experiments.digits import DigitsConfig, Setting, load_digits

CONFIG = DigitsConfig(
    seeds=2,
    num_samples=100,
    num_steps=3,
    network=dataclasses.replace(DigitsConfig().network, width=16, depth=3, num_heads=2),
    training=DiTTraining(snapshots=(20, 60), batch_size=16),
    scales=(1.0, 1.5),
    s2_scales=(0.25,),
    num_masks=2,
)
FIRST_LABELS = [1, 4, 5, 6, 9, 1, 2, 2]


def test_split_is_fixed_disjoint_and_balanced():
    data = load_digits()
    assert len(data.held_images) == digits.HELD_OUT and len(data.train_images) == 1257
    seen = np.concatenate([data.train_images, data.held_images]).reshape(1797, 64)
    assert len(np.unique(seen, axis=0)) == 1797
    assert seen.min() == -1.0 and seen.max() == 1.0
    counts = np.bincount(data.held_labels)
    assert counts.min() >= 52 and counts.max() <= 56
    # Whatever scikit-learn does to its shuffling must not go unnoticed.
    assert data.held_labels[:8].tolist() == FIRST_LABELS


@pytest.mark.ci
def test_real_images_measure_as_the_floors():
    """Shuffled labels, noise, copies and a single class are told from them."""
    data = load_digits()
    classifier = Classifier.fit(data.train_images, data.train_labels, 64)
    reference = Reference(data, classifier, digits.HELD_OUT)
    measure, floors, held = reference.measure, reference.floors(), data.held_images
    assert set(floors) == set(MEASURES)
    real = measure(held)
    assert real["frechet"] == floors["frechet"] and real["coverage"] == 1.0
    assert floors["accuracy"] > 0.97 and floors["precision"] > 0.8
    rng = np.random.default_rng(0)
    shuffled = measure(held, rng.permutation(data.held_labels))
    assert shuffled["accuracy"] < 0.25 and shuffled["frechet"] == real["frechet"]
    noise = measure(rng.uniform(-1, 1, held.shape))
    assert noise["frechet"] > 10 * floors["frechet"] and noise["precision"] < 0.1
    copies = measure(data.train_images[: digits.HELD_OUT])
    assert copies["nearest"] == 0.0 < floors["nearest"]
    one_class = measure(held[data.held_labels == 3][np.arange(digits.HELD_OUT) % 50])
    assert one_class["recall"] < 0.3 < floors["recall"]
    with pytest.raises(ValueError, match="images must be finite"):
        measure(np.full_like(held, np.nan))


def train(folder, seed=0):
    store = Store(folder, Reporter())
    return digits.trained(CONFIG, store, load_digits(), seed)


def cells(folder):
    found = (folder / "cells").glob("train_transformer-*.npz")
    return {path.name: path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with the networks of seed 0."""
    folder = tmp_path_factory.mktemp("results")
    train(folder)
    return folder


@pytest.mark.ci
@pytest.mark.parametrize("stop_at", [20, 40])
def test_interrupted_training_resumes_exactly(results, tmp_path, monkeypatch, stop_at):
    """Before and after a snapshot."""
    advance = Reporter.task

    class Stopping:
        def __init__(self, task):
            self.task = task

        def __enter__(self):
            self.task.__enter__()
            return self

        def __exit__(self, *details):
            self.task.__exit__(*details)

        def move_to(self, step, detail):
            if step >= stop_at:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "task", lambda *args: Stopping(advance(*args)))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    assert stored_steps(next((tmp_path / "cells").glob("*.checkpoint")))
    assert not cells(tmp_path)
    train(tmp_path)
    assert cells(tmp_path) == cells(results)
    assert [p.suffix for p in (tmp_path / "cells").iterdir()] == [".npz"]


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"gmm-guidance\[digits\]"):
        load_digits()


OPTIONS = ["--seeds", "2", "--num-samples", "100", "--num-steps", "3"]
OPTIONS += ["--network.width", "16", "--network.depth", "3"]
OPTIONS += ["--network.num-heads", "2", "--training.snapshots", "20", "60"]
OPTIONS += ["--training.batch-size", "16"]
OPTIONS += ["--scales", "1", "1.5", "--s2-scales", "0.25", "--num-masks", "2"]


@pytest.mark.slow
def test_the_experiment(results, tmp_path, capsys):
    out = ["--out", str(results)]
    assert cli.main(["run", "digits", *out, *OPTIONS]) == 0
    weights = results / "digits" / "weights" / "seed-1-step-60.safetensors"
    assert str(weights) in "".join(capsys.readouterr().out.split())
    network = load_weights(weights)
    assert network.sample_shape == (8, 8, 1) and network.num_blocks == 3
    metrics = json.loads((results / "digits" / "metrics.json").read_text())
    records = metrics["tables"]["settings"]
    assert {r["rule"] for r in select(metrics, "settings", steps=60)} == set(
        digits.RULES
    )
    # The shorter training has no weak model for AutoGuidance.
    assert not select(metrics, "best", steps=20, rule="autoguidance")
    for record in records:
        values = [record[name]["seeds"] for name in MEASURES]
        assert np.isfinite(values).all() and np.shape(values) == (len(MEASURES), 2)
        if record["rule"] in digits.WITH_TERM:
            place = {k: record[k] for k in ("steps", "scale")}
            (cfg,) = select(metrics, "settings", rule="cfg", **place)
            assert record["frechet_minus_cfg"]["seeds"] == pytest.approx(
                np.subtract(record["frechet"]["seeds"], cfg["frechet"]["seeds"])
            )
    page = tmp_path / "page.md"
    begin, end = marks("digits")
    page.write_text(f"before\n\n{begin}\nold\n{end}\n\nafter\n")
    assert cli.main(["draw", "digits", *out, "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "**20 training steps.**" in text and "**60 training steps.**" in text
    figures = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert figures == ["digits_scales.png", "digits_sheet.png", "digits_tradeoff.png"]
    page.write_text("no marks")
    assert cli.main(["draw", "digits", *out, "--page", str(page)]) == 2


def test_best_settings_and_their_references():
    """The least mean distance wins; best CFG that is off is not set against itself."""
    grid = digits.settings((1.0, 2.0), (0.25, 0.5), has_weak_model=False)
    distances = {
        Setting("unguided"): (1.0, 1.2),
        Setting("cfg", 2.0): (0.9, 1.5),
        Setting("s2", 1.0, 0.25): (0.8, 1.0),
        Setting("s2", 1.0, 0.5): (0.5, 1.5),
    }
    values = {
        setting: [
            {"frechet": x, "accuracy": 0.9} for x in distances.get(setting, (3.0, 3.0))
        ]
        for row in grid.values()
        for setting in row
    }
    best = digits.best_settings(grid, values)
    assert "autoguidance" not in best and best["cfg"] == Setting("unguided")
    assert best["s2"] == Setting("s2", 1.0, 0.25)
    records = {r["rule"]: r for r in digits.best_records(best, values)}
    assert "verdict" not in records["cfg"] and records["cfg"]["scale"] == 1.0
    assert records["s2"]["frechet_minus_cfg"]["seeds"] == pytest.approx([-0.2, -0.2])
    same = {
        (r["rule"], r["scale"], r["s2_scale"]): r
        for r in digits.setting_records(grid, values)
    }
    change = same["s2", 1.0, 0.5]["frechet_minus_cfg"]
    assert change["seeds"] == pytest.approx([-0.5, 0.3])
    change = same["skip_layer", 2.0, 0.5]["frechet_minus_cfg"]
    assert change["seeds"] == pytest.approx([2.1, 1.5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 1}, "seeds must be at least 2"),
        ({"num_samples": 1000}, "at most 540"),
        ({"num_samples": 80}, "at least 100"),
        ({"scales": (1.5,)}, "1 .off. among them"),
        ({"shown": (30,)}, "shown must be among the kept steps"),
        ({"sheet_scale": 7.0}, "sheet_scale must be among scales"),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)
