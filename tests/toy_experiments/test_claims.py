"""The ledger: verdicts follow from the numbers, and from nothing else."""

import json

import pytest

from toy_experiments.claims import CLAIMS, Claim, Judgement, judge_all, write_ledger
from toy_experiments.claims.ledger import Comparison, judge
from toy_experiments.claims.s2_paper import _against_cfg, _helps_at_equal_scale
from toy_experiments.cli import main
from toy_experiments.common.records import measurement
from toy_experiments.registry import EXPERIMENTS


def distributions(change):
    """S² differs from CFG by ``change`` in every panel."""
    records = [
        {"mixture": "two_modes", "network": network, "rule": rule, "w2": w2}
        for network in ("under", "well")
        for rule, w2 in (
            ("cfg", measurement([1.0, 1.1, 1.2])),
            ("s2", measurement([1.0 + change, 1.1 + change, 1.21 + change])),
        )
    ]
    return {"tables": {"samples": records}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [(-0.2, "holds"), (0.2, "does not hold"), (0.0, "undecided")],
)
def test_verdicts_follow_the_paired_interval(change, expected):
    found = _against_cfg("s2")(distributions(change))
    assert found.verdict == expected


def test_some_cases_better_and_some_worse():
    better, worse = Comparison("a", -2.0, -3.0, -1.0), Comparison("b", 2.0, 1.0, 3.0)
    neither = Comparison("c", 0.0, -1.0, 1.0)
    found = judge([better, worse], "Change", "everywhere", digits=0)
    assert found.verdict == "holds in a regime" and found.regime == "holds for a"
    assert found.effect == "Change: a -2, b +2."
    assert found.interval == "a [-3, -1]; b [1, 3]"
    assert judge([better], "Change", "everywhere").verdict == "holds"
    nowhere = judge([worse, neither], "Change", "everywhere")
    assert nowhere.verdict == "does not hold" and nowhere.regime == "everywhere"
    assert judge([neither], "Change", "everywhere").verdict == "undecided"


def test_counts_of_the_phase_diagram():
    def metrics(*verdicts):
        cells = [{"scale": s, "verdict": v} for s, v in verdicts]
        return {"tables": {"cells": cells}}

    cells = [(1.0, "closer"), (2.0, "farther")]
    rare = [*cells, *[(2.0, "undecided")] * 40]
    assert _helps_at_equal_scale(metrics(*rare)).verdict == "does not hold"
    found = _helps_at_equal_scale(metrics(*cells))
    assert found.verdict == "holds in a regime"
    assert "λ = 1: closer 1, farther 0 of 1" in found.effect
    assert "often at λ = 1" in found.regime


def test_every_claim_names_an_experiment_that_exists():
    for claim in CLAIMS:
        assert (claim.experiment in EXPERIMENTS) != isinstance(claim.judge, str)
    assert len({c.text for c in CLAIMS}) == len(CLAIMS)


def test_writing_twice_gives_the_same_bytes(tmp_path):

    def judge(metrics):
        return Judgement("x", f"{metrics['v']}", "", "holds")

    claims = (
        Claim("It moves.", "somewhere", "a", judge),
        Claim("It shines.", "elsewhere", "", "No light here."),
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.json").write_text(json.dumps({"v": 3}))
    page = tmp_path / "docs" / "claims.md"
    texts = []
    for _ in range(2):
        write_ledger(judge_all(claims, tmp_path), tmp_path, page)
        texts.append((page.read_bytes(), (tmp_path / "claims.json").read_bytes()))
    assert texts[0] == texts[1]
    text = page.read_text()
    assert "1 holds, 1 not testable here" in text and "**Holds.** 3" in text
    rows = json.loads((tmp_path / "claims.json").read_text())
    assert rows[1]["verdict"] == "not testable here"


def test_missing_and_damaged_results_write_nothing(tmp_path, capsys):
    assert main(["claims", "--out", str(tmp_path)]) == 2
    assert "toy-experiments run" in capsys.readouterr().err
    for claim in CLAIMS:
        if claim.experiment:
            (tmp_path / claim.experiment).mkdir(exist_ok=True)
            (tmp_path / claim.experiment / "metrics.json").write_text("{")
    assert main(["claims", "--out", str(tmp_path)]) == 2
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "claims.json").exists()
