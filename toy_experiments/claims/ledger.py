"""Judging claims from stored results, and writing the ledger.

A claim names the experiment that tests it and a function from that experiment's numbers
to a judgement. No verdict is written by hand: the same results give the same verdicts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from gmm_guidance._runtime.files import write_text
from toy_experiments.common.records import Metrics, Record, paired_change

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


# -- helpers of judges ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A change against a reference in one case; negative is better.

    Attributes:
        case: mixture, network, ... in words.
        change: mean over seeds.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    case: str
    change: float
    low: float
    high: float

    @classmethod
    def of(cls, case: str, change: Record) -> Comparison:
        """From the measurement of a change."""
        return cls(case, change["mean"], *change["interval_95"])

    @property
    def is_better(self) -> bool:
        """Whether the interval is below zero."""
        return self.high < 0

    @property
    def is_worse(self) -> bool:
        """Whether the interval is above zero."""
        return self.low > 0


def compare(case: str, record: Record, reference: Record, name: str) -> Comparison:
    """Paired change of a measurement of two records over the same seeds."""
    return Comparison.of(case, paired_change(record, reference, name))


def judge(
    found: Sequence[Comparison],
    effect: str,
    regime: str,
    *,
    digits: int = 3,
    each: bool = True,
) -> Judgement:
    """A judgement from the changes in several cases.

    Args:
        found: the changes.
        effect: what changes; the numbers follow unless it ends with a period.
        regime: where it was tested, for a claim that holds nowhere.
        digits: decimals of the numbers.
        each: whether to list the interval of each case.
    """
    better = [c.case for c in found if c.is_better and c.case]
    if not effect.endswith("."):
        values = (f"{c.case} {c.change:+.{digits}f}".strip() for c in found)
        effect = f"{effect}: {', '.join(values)}."
    ends = "; ".join(
        f"{c.case} {interval(c.low, c.high, digits)}".strip() for c in found
    )
    return Judgement(
        "holds for " + "; ".join(better) if better else regime,
        effect,
        ends if each else "each by its own interval over seeds",
        verdict_of(found),
    )


def verdict_of(found: Sequence[Comparison]) -> Verdict:
    """A verdict from several cases: where a claim clearly holds and clearly fails."""
    if all(c.is_better for c in found):
        return "holds"
    if any(c.is_better for c in found):
        return "holds in a regime"
    return "does not hold" if any(c.is_worse for c in found) else "undecided"


def all_or_some(good: Sequence[bool]) -> Verdict:
    """A verdict from conditions that hold or fail."""
    if all(good):
        return "holds"
    return "holds in a regime" if any(good) else "does not hold"


def interval(low: float, high: float, digits: int = 3) -> str:
    """``[low, high]``."""
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def of_entry(entry: Record, digits: int = 3) -> str:
    """The interval of a measurement, empty where it has none."""
    if "interval_95" not in entry:
        return ""
    low, high = entry["interval_95"]
    return interval(low, high, digits)
