"""Judging claims from stored results, and writing the ledger.

A claim names the experiment that tests it and a function from that experiment's numbers
to a judgement. No verdict is written by hand: the same results give the same verdicts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gmm_guidance._runtime.files import write_text
from gmm_guidance.metrics import confidence_interval
from toy_experiments.common.experiment import Metrics

Verdict = Literal[
    "holds", "holds in a regime", "does not hold", "undecided", "not testable here"
]
VERDICTS: tuple[Verdict, ...] = (
    "holds",
    "holds in a regime",
    "does not hold",
    "undecided",
    "not testable here",
)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the results say of a claim.

    Attributes:
        regime: where it was tested, or where it holds.
        effect: the number that decides, in words.
        interval: its 95 % interval over seeds, or empty for a closed form.
        verdict: one of ``VERDICTS``.
    """

    regime: str
    effect: str
    interval: str
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Claim:
    """A published statement.

    Attributes:
        text: the statement, in our words.
        source: paper and place.
        experiment: whose results decide; empty if nothing here can.
        judge: from that experiment's numbers to a judgement; or the reason why it is
            not testable here.
    """

    text: str
    source: str
    experiment: str
    judge: Callable[[Metrics], Judgement] | str


def judge_all(claims: Sequence[Claim], results: Path) -> list[dict[str, str]]:
    """Judge each claim from ``results/<experiment>/metrics.json``.

    Raises:
        ValueError: if results of an experiment are missing or damaged; the message
            lists them with the command that makes them.
    """
    needed = sorted({c.experiment for c in claims if c.experiment})
    records, missing = {}, []
    for name in needed:
        path = results / name / "metrics.json"
        if not path.exists():
            missing.append(name)
            continue
        try:
            records[name] = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); run {name} again."
            ) from None
    if missing:
        raise ValueError(
            f"the ledger needs results that are not in {results}: "
            f"{', '.join(missing)}. Run: toy-experiments run {' '.join(missing)} "
            f"--out {results}"
        )
    return [_row(claim, records) for claim in claims]


def _row(claim: Claim, records: dict[str, Metrics]) -> dict[str, str]:
    if isinstance(claim.judge, str):
        found = Judgement("", claim.judge, "", "not testable here")
    else:
        found = claim.judge(records[claim.experiment])
    return {
        "claim": claim.text,
        "source": claim.source,
        **dataclasses.asdict(found),
        "evidence": claim.experiment,
    }


def write_ledger(rows: Sequence[dict[str, str]], results: Path, page: Path) -> None:
    """Write ``results/claims.json`` and the page of the documentation."""
    write_text(results / "claims.json", json.dumps(list(rows), indent=1) + "\n")
    write_text(page, _markdown(rows))


def _markdown(rows: Sequence[dict[str, str]]) -> str:
    counts = {v: sum(r["verdict"] == v for r in rows) for v in VERDICTS}
    tally = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    lines = [
        "# Claims",
        "",
        "What papers say of guidance on mixtures, and what the experiments here",
        "measured. This page is made from their results by `toy-experiments claims`;",
        "no verdict is written by hand. Intervals are 95 % over training seeds. *Holds",
        "in a regime* names the regime; *undecided* means that the interval contains",
        "both answers.",
        "",
        f"{len(rows)} claims: {tally}.",
        "",
    ]
    for number, row in enumerate(rows, start=1):
        lines += [
            f"## {number}. {row['claim']}",
            "",
            f"**{row['verdict'].capitalize()}.** {row['effect']}",
            "",
            f"- Source: {row['source']}",
        ]
        if row["regime"]:
            lines.append(f"- Regime: {row['regime']}")
        if row["interval"]:
            lines.append(f"- 95 % interval: {row['interval']}")
        if row["evidence"]:
            lines.append(f"- Evidence: experiment `{row['evidence']}`")
        lines.append("")
    return "\n".join(lines)


# -- what judges share ----------------------------------------------------------------


def paired(entry: Metrics, other: Metrics) -> tuple[float, float, float]:
    """Mean difference of two entries over the same seeds, and its 95 % interval."""
    change = np.array(entry["seeds"]) - np.array(other["seeds"])
    low, high = confidence_interval(change)
    return float(change.mean()), float(low), float(high)


def interval(low: float, high: float, digits: int = 3) -> str:
    """``[low, high]``."""
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def of_entry(entry: Metrics, digits: int = 3) -> str:
    """The interval of an entry, empty where it has none."""
    ends: Any = entry.get("interval_95")
    return interval(ends[0], ends[1], digits) if ends else ""


def from_regimes(good: Sequence[bool], bad: Sequence[bool]) -> Verdict:
    """A verdict from several regimes: where it clearly holds and clearly fails."""
    if all(good):
        return "holds"
    if any(good):
        return "holds in a regime"
    return "does not hold" if any(bad) else "undecided"
