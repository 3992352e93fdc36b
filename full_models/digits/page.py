"""The results part of the documentation page on the digits, from stored numbers.

``python -m full_models.digits.page RESULTS docs/digits.md`` replaces what stands
between the two marks of the page, and draws the figures beside it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from full_models.digits.evaluation_figures import (
    draw_scales,
    draw_tradeoff,
    figure_style,
)
from full_models.digits.evaluation_table import best_table, note, same_scale_table
from full_models.digits.rules import AUTOGUIDANCE, CFG, S2, UNGUIDED, WITH_TERM
from gmm_guidance._runtime.files import atomic, write_text

Record = dict[str, Any]
BEGIN = "<!-- results: written by full_models.digits.page -->"
END = "<!-- end of results -->"
_DPI = 130  # a page of a browser; files below 200 kB


def write_page(results: Path, page: Path) -> list[Path]:
    """Write tables, verdicts and figures of an evaluation into a page.

    Args:
        results: the folder of an evaluation, with ``metrics.json`` and ``sheet.png``.
        page: the page, with the two marks.

    Raises:
        FileNotFoundError: if one of them is not there.
        ValueError: if the page has no marks.
    """
    record = json.loads((results / "metrics.json").read_text())
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} must hold the lines {BEGIN!r} and {END!r}.")
    figures = page.parent / "figures"
    figures.mkdir(exist_ok=True)
    written = []
    with figure_style():
        for name, draw in (("scales", draw_scales), ("tradeoff", draw_tradeoff)):
            path = figures / f"digits_{name}.png"
            with atomic(path) as temporary:
                draw(record).savefig(temporary, dpi=_DPI)
            written.append(path)
    shutil.copyfile(results / "sheet.png", figures / "digits_sheet.png")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    body = "\n\n".join(_results(record))
    return [
        write_text(page, f"{before}{BEGIN}\n\n{body}\n\n{END}{after}"),
        *written,
        figures / "digits_sheet.png",
    ]


def findings(record: Record) -> list[str]:
    """What the numbers say of S² and CFG, a paragraph for each training length."""
    return [_finding(entry) for entry in record["lengths"]]


def _finding(entry: Record) -> str:
    best = {b["rule"]: b for b in entry["best"]}
    cfg, s2 = best[CFG], best[S2]
    change = s2["minus_cfg"]
    text = (
        f"**{entry['length']} training steps.** CFG is best {_at(cfg)}: "
        f"{_value(cfg, 'frechet')}, accuracy {_value(cfg, 'accuracy')}. S² is best "
        f"{_at(s2)}: {_value(s2, 'frechet')}, accuracy {_value(s2, 'accuracy')}. S² "
        f"minus CFG is {_change(change['frechet'])}: {change['verdict']}."
    )
    others = [
        f"{rule} {_change(change['frechet'])}, {change['verdict']}"
        for rule in best
        if rule not in (UNGUIDED, CFG, S2)
        and (change := best[rule].get("minus_cfg")) is not None
    ]
    if "minus_cfg" not in best.get(AUTOGUIDANCE, {"minus_cfg": None}):
        others.append(f"{AUTOGUIDANCE} is best switched off too")
    text += f" The other rules at their best, against CFG: {'; '.join(others)}."
    cells = [c for c in entry["same_scale"] if c["rule"] == S2]
    for guided, title in ((False, "Without CFG"), (True, "On top of CFG")):
        chosen = [c for c in cells if (c["scale"] > 1.0) == guided]
        if chosen:
            counts = Counter(c["verdict"] for c in chosen)
            text += (
                f" {title}, at the same scale, the S² term brings samples closer in "
                f"{counts['closer']} of {len(chosen)} settings and takes them farther "
                f"in {counts['farther']}; {counts['undecided']} are undecided."
            )
    return text


def _at(entry: Record) -> str:
    weight = f", weight {entry['weight']:g}" if entry["weight"] else ""
    if entry["scale"] == 1.0:
        return f"without CFG (scale 1{weight})" if weight else "switched off (scale 1)"
    return f"at scale {entry['scale']:g}{weight}"


def _value(entry: Record, name: str) -> str:
    mean, error = entry[name]["mean"], entry[name]["standard_error"]
    return f"{mean:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _change(entry: Record) -> str:
    low, high = entry["interval_95"]
    text = f"{entry['mean']:+.3f}"
    if low is not None:
        text += f", 95 % interval {low:+.3f} to {high:+.3f}"
    return text.replace("-", "−")


def _results(record: Record) -> list[str]:
    parts = [
        *findings(record),
        "![Fréchet distance and accuracy over the scale](figures/digits_scales.png)",
        "![Accuracy against Fréchet distance](figures/digits_tradeoff.png)",
        "![The same noise under each rule](figures/digits_sheet.png)",
        "### Tables",
        note(record),
    ]
    for entry in record["lengths"]:
        parts += [
            f"#### {entry['length']} training steps",
            best_table(record, entry),
            f"{S2} minus CFG at the same scale, Fréchet distance with 95 % interval:",
            same_scale_table(entry, S2),
        ]
    others = " and ".join(rule for rule in WITH_TERM if rule != S2)
    parts.append(
        f"The same differences of {others} are in `table.md`, and every number with "
        f"its value in each run in `metrics.json`."
    )
    return parts


def main(arguments: Sequence[str]) -> int:
    """Run as a command with two paths; returns the exit status."""
    if len(arguments) != 2:
        print("usage: python -m full_models.digits.page RESULTS PAGE", file=sys.stderr)
        return 2
    for path in write_page(Path(arguments[0]), Path(arguments[1])):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
