"""The command line and the experiments, run as users run them, in miniature."""

import dataclasses
import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from support.processes import command_line

from gmm_guidance._runtime.checkpoints import stored_steps
from toy_experiments import cli
from toy_experiments.common.records import select
from toy_experiments.registry import EXPERIMENTS, GROUPS, find_experiments

NAMES = ["distributions", "trajectories", "naive_vs_single", "score_fields"]
NAMES += ["subtract_form"]
TINY = ["--seeds", "2", "--num-steps", "3", "--num-samples", "64"]
TINY += ["--networks.width", "8", "--networks.num-blocks", "3"]
TINY += ["--networks.batch-size", "32", "--networks.under-steps", "4"]
TINY += ["--networks.under-weak-steps", "2", "--networks.well-steps", "12"]
TINY += ["--networks.well-weak-steps", "6", "--paper-like.steps", "10"]
TINY += ["--paper-like.width", "8", "--paper-like.num-blocks", "3"]
TINY += ["--paper-like.batch-size", "32", "--paper-like.num-steps", "3"]
FIELDS = [*TINY, "--grid", "16", "--sigmas", "1.0", "2.0"]


def run(*arguments: str) -> int:
    try:
        return cli.main(list(arguments))
    except SystemExit as end:  # the parsers' own way to end on bad options
        return int(end.code or 0)


def test_list_names_every_experiment(capsys):
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    groups = [line.split(":")[0] for line in lines if not line.startswith(" ")]
    members = [line.split() for line in lines if line.startswith(" ")]
    assert groups == list(GROUPS)
    assert [words[0] for words in members] == list(EXPERIMENTS)
    assert all(len(words) > 3 for words in members)


def test_groups_and_all_name_experiments():
    assert [e.name for e in find_experiments(["paper"])] == NAMES
    assert [e.name for e in find_experiments(["all"])] == list(EXPERIMENTS)
    both = find_experiments(["score_fields", "paper", "score_fields"])
    assert sorted(e.name for e in both) == sorted(NAMES)
    assert both[0].name == "score_fields"


def test_an_extra_that_is_not_installed(tmp_path, capsys, monkeypatch):
    """Named, an experiment is refused at once; in a group of several it is skipped."""
    lacking = dataclasses.replace(
        EXPERIMENTS["subtract_form"], needs=("no_such_module", "digits")
    )
    monkeypatch.setitem(EXPERIMENTS, "subtract_form", lacking)
    out = str(tmp_path / "r")
    for named in (["subtract_form"], ["paper", "subtract_form"]):
        assert run("run", *named, "--out", out) == 2
        assert "pip install 'gmm-guidance[digits]'" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    to_run, left_out = cli.Run(("paper",))._choose()
    assert [e.name for e in to_run] == [n for n in NAMES if n != "subtract_form"]
    assert left_out == [lacking]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("results")
    assert run("run", "score_fields", "--out", str(out), *FIELDS) == 0
    return out


@pytest.mark.ci
def test_run_writes_figures_numbers_and_data(results):
    folder = results / "score_fields"
    record = json.loads((folder / "metrics.json").read_text())
    assert record["experiment"] == "score_fields"
    assert record["config"]["networks"]["well_steps"] == 12
    assert set(record["versions"]) == {"gmm_guidance", "jax"}
    levels = record["tables"]["levels"]
    assert [(r["sigma"], r["network"]) for r in levels] == [
        (sigma, network) for sigma in (1.0, 2.0) for network in ("under", "well")
    ]
    for level in levels:
        entry = level["cfg_departure"]
        assert len(entry["seeds"]) == 2
        assert entry["mean"] == pytest.approx(np.mean(entry["seeds"]))
    for name in ("figure_under", "figure_well"):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (folder / f"{name}.pdf").read_bytes()[:4] == b"%PDF"
    assert not list(results.rglob(".partial-*"))


@pytest.mark.ci
def test_departures_are_those_of_the_fields(results):
    """The error split of the record is consistent with itself: a triangle holds."""
    record = json.loads((results / "score_fields" / "metrics.json").read_text())
    for level in select(record, "levels"):
        bias = np.array(level["rule_bias"]["seeds"])
        learned = np.array(level["learning_error"]["seeds"])
        both = np.array(level["cfg_departure"]["seeds"])
        assert (both <= bias + learned + 1e-5).all()
        assert (both >= abs(bias - learned) - 1e-5).all()
        assert bias[0] == bias[1] > 0  # the rule's bias knows no training seed


@pytest.mark.ci
def test_redrawing_needs_no_computation(results, capsys):
    figure = results / "score_fields" / "figure_well.png"
    before = figure.read_bytes()
    figure.unlink()
    assert run("draw", "score_fields", "--out", str(results)) == 0
    assert figure.read_bytes() == before
    assert str(figure) in capsys.readouterr().out


@pytest.mark.ci
def test_a_second_run_reuses_the_networks(results):
    stored = sorted((results / "cells").glob("train_networks-*.safetensors"))
    stamps = [p.stat().st_mtime_ns for p in stored]
    assert run("run", "score_fields", "--out", str(results), *FIELDS) == 0
    assert [p.stat().st_mtime_ns for p in stored] == stamps and stored


@pytest.mark.ci
def test_damaged_networks_are_trained_again(results):
    (stored,) = (results / "cells").glob("train_networks-*.safetensors")
    good = stored.read_bytes()
    stored.write_bytes(good[: len(good) // 2])
    assert run("run", "score_fields", "--out", str(results), *FIELDS) == 0
    assert stored.read_bytes() == good


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "distribution"], "Did you mean 'distributions'"),
        (["run", "zzz"], "unknown experiment or group 'zzz'"),
        (["run"], "name experiments, groups, or 'all'"),
        (["run", "score_fields", "--seeds", "1"], "seeds must be at least 2"),
        (["run", "score_fields", "--quick", "--full"], "one of --quick and --full"),
        (["run", "score_fields", "--num-steps", "0"], "num_steps"),
        (["run", "score_fields", "--std", "-1"], "std must be > 0"),
        (["draw", "score_fields"], "run it first"),
    ],
)
def test_bad_requests_write_nothing(arguments, message, tmp_path, capsys):
    out = tmp_path / "results"
    assert run(*arguments, "--out", str(out)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_unknown_option_is_an_error(tmp_path, capsys):
    out = str(tmp_path / "r")
    assert run("run", "score_fields", "--out", out, "--no-such", "1") == 2
    assert not (tmp_path / "r").exists()
    assert "no-such" in capsys.readouterr().err


@pytest.mark.ci
def test_interrupted_run_resumes(tmp_path):
    """A real process, interrupted while it trains, goes on from its checkpoint."""
    long = [*FIELDS]
    long[long.index("--networks.well-steps") + 1] = "2000000"
    command = [*command_line("toy_experiments.cli"), "run", "score_fields"]
    command += ["--out", str(tmp_path), *long]

    def interrupt_beyond(step: int) -> int:
        """Start the command, interrupt it once it got beyond a step; where it was."""
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        try:
            while stored_step(tmp_path) <= step:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130
        assert "run the same command again to resume" in errors
        assert not list(tmp_path.rglob("metrics.json"))
        return stored_step(tmp_path)

    first = interrupt_beyond(0)
    assert interrupt_beyond(first) > first > 0


def stored_step(out: Path) -> int:
    folders = out.glob("cells/*.checkpoint")
    return max((step for folder in folders for step in stored_steps(folder)), default=0)


@pytest.mark.slow
def test_the_paper_group_in_miniature(tmp_path):
    assert run("run", "paper", "--out", str(tmp_path), *TINY) == 0
    for name in NAMES:
        record = json.loads((tmp_path / name / "metrics.json").read_text())
        assert record["seeds"] == 2
        assert list((tmp_path / name).glob("figure*.png"))
