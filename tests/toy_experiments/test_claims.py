"""The ledger: verdicts follow from the numbers, and from nothing else."""

import json

import pytest

from toy_experiments.claims import CLAIMS, Claim, Judgement, judge_all, write_ledger
from toy_experiments.claims.ledger import from_regimes, paired
from toy_experiments.claims.s2_paper import _against_cfg, _helps_at_equal_scale
from toy_experiments.cli import main
from toy_experiments.common.experiment import over_seeds
from toy_experiments.phase_diagram import verdict
from toy_experiments.registry import EXPERIMENTS


def entry(*values):
    return over_seeds([{"x": v} for v in values])["x"]


def distributions(change):
    """S² differs from CFG by ``change`` in every panel."""
    panels = {}
    for regime in ("under", "well"):
        panels[f"{regime}/cfg"] = {"w2": entry(1.0, 1.1, 1.2)}
        panels[f"{regime}/s2"] = {
            "w2": entry(1.0 + change, 1.1 + change, 1.21 + change)
        }
    return {"dimensions": {"1": panels}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [(-0.2, "holds"), (0.2, "does not hold"), (0.0, "undecided")],
)
def test_verdicts_follow_the_paired_interval(change, expected):
    found = _against_cfg("s2", {1: "w2"})(distributions(change))
    assert found.verdict == expected


def test_pairing_uses_the_same_seeds():
    """Seeds differ by far more than the change, which is the same in each."""
    mean, low, high = paired(entry(1.0, 5.0, 9.0), entry(1.1, 5.1, 9.1))
    assert mean == pytest.approx(-0.1)
    assert high < 0 and low == pytest.approx(high)


def test_some_regimes_good_and_some_bad():
    assert from_regimes([True, False], [False, True]) == "holds in a regime"
    assert from_regimes([False, False], [False, True]) == "does not hold"
    assert from_regimes([False], [False]) == "undecided"


def test_counts_of_the_phase_diagram():
    def cell(name):
        return {"verdict": name}

    cells = {
        "steps 50, scale 1, omega 0.25": cell("helps"),
        "steps 50, scale 2, omega 0.25": cell("harms"),
    }
    rare = cells | {
        f"steps {k}, scale 2, omega 0.25": cell("nothing") for k in range(40)
    }
    by_chance = _helps_at_equal_scale({"toys": {"tree": {"cells": rare}}})
    assert by_chance.verdict == "does not hold"
    found = _helps_at_equal_scale({"toys": {"tree": {"cells": cells}}})
    assert found.verdict == "holds in a regime"
    assert "λ = 1: helps 1, harms 0 of 1" in found.effect
    assert "often at λ = 1" in found.regime


def test_verdict_of_a_change():
    assert verdict(entry(-1.0, -1.1, -0.9)) == "helps"
    assert verdict(entry(1.0, 1.1, 0.9)) == "harms"
    assert verdict(entry(-1.0, 1.0, 0.1)) == "nothing"


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
