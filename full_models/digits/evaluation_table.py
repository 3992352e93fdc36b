"""The results of an evaluation as text: tables of rules, differences and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from full_models.digits.measures import MEASURES, TITLES
from full_models.digits.rules import RULES, S2, UNGUIDED, WITH_TERM
from gmm_guidance._runtime.files import write_text

Record = dict[str, Any]
_DIGITS = {"frechet": 3, "accuracy": 3, "nearest": 2}


def write_table(out: Path, record: Record) -> Path:
    """Write ``table.md`` from the numbers of ``metrics.json``."""
    return write_text(out / "table.md", table(record))


def table(record: Record) -> str:
    """All tables, in Markdown."""
    parts = ["# Guidance on the digits", note(record)]
    for entry in record["lengths"]:
        parts += [
            f"## {entry['length']} training steps",
            best_table(record, entry),
            f"{S2} minus CFG at the same scale, Fréchet distance:",
            same_scale_table(entry, S2),
        ]
    for rule in WITH_TERM:
        if rule != S2:
            parts.append(f"## {rule} minus CFG at the same scale, Fréchet distance")
            for entry in record["lengths"]:
                parts += [
                    f"{entry['length']} training steps:",
                    same_scale_table(entry, rule),
                ]
    return "\n\n".join(parts) + "\n"


def best_table(record: Record, entry: Record) -> str:
    """Each rule at its best setting, real images first."""
    head = ["rule", "scale", "weight", *(TITLES[name] for name in MEASURES)]
    head += ["Fréchet minus CFG, 95 %", "verdict"]
    floor = [_number(record["floors"][name], name) for name in MEASURES]
    rows = [["real images", "", "", *floor, "", ""]]
    for best in entry["best"]:
        change = best.get("minus_cfg")
        # Best no guidance and best CFG may be one setting: nothing to compare.
        last = ["", ""] if change is None else [_interval(change), change["verdict"]]
        scale = f"{best['scale']:g}" + " (off)" * (best["scale"] == 1.0)
        rows.append(
            [
                best["rule"],
                "" if best["rule"] == UNGUIDED else scale,
                f"{best['weight']:g}" if best["weight"] else "",
                *(_plus_minus(best[name], name) for name in MEASURES),
                *last,
            ]
        )
    return _markdown(head, rows)


def same_scale_table(entry: Record, rule: str) -> str:
    """Differences of a rule from CFG: a row for a scale, a column for a weight."""
    cells = {
        (cell["scale"], cell["weight"]): cell
        for cell in entry["same_scale"]
        if cell["rule"] == rule
    }
    scales = list(dict.fromkeys(scale for scale, _ in cells))
    weights = list(dict.fromkeys(weight for _, weight in cells))
    rows = [
        [f"{scale:g}" + " (CFG off)" * (scale == 1.0)]
        + [
            f"{_interval(cells[scale, weight])} {cells[scale, weight]['verdict']}"
            for weight in weights
        ]
        for scale in scales
    ]
    return _markdown(["scale", *(f"weight {w:g}" for w in weights)], rows)


def summary(record: Record) -> list[str]:
    """A line for each training length."""
    lines = []
    for entry in record["lengths"]:
        best = {b["rule"]: b for b in entry["best"]}
        parts = [
            f"{rule} {best[rule]['frechet']['mean']:.2f}"
            + (
                f" ({best[rule]['minus_cfg']['verdict']})"
                if "minus_cfg" in best[rule]
                else ""
            )
            for rule in RULES
            if rule in best
        ]
        lines.append(f"{entry['length']} steps, Fréchet at best: {', '.join(parts)}")
    return lines


def note(record: Record) -> str:
    """How the numbers were made, for the reader of a table."""
    config, runs = record["config"], record["runs"]
    training = runs[0]["training"]
    seeds = ", ".join(str(run["training"]["seed"]) for run in runs)
    count = len(runs)
    uncertainty = (
        f"Mean ± standard error over the {count} training runs; differences are paired "
        f"by run, with 95 % intervals by Student's t of {count - 1} degrees of "
        f"freedom. *closer* and *farther*: the interval lies on one side of zero."
        if count > 1
        else "One run: no standard errors, and nothing is decided."
    )
    return (
        f"Networks of width {training['width']} and depth {training['depth']}, batches "
        f"of {training['batch_size']}; training seeds {seeds}. "
        f"{config['num_samples']} samples of each rule and network, "
        f"{config['solver']}, {config['steps']} steps. {uncertainty}\n\n"
        "The setting of each rule is the one with the least mean Fréchet distance with "
        "one sampling key; all numbers of the first table of a length are of samples "
        "with another key, so that a rule with more settings to choose from gains "
        "nothing by chance of sampling. The networks are the same for both. Tables at "
        "the same scale use the first key.\n\n"
        "The Fréchet distance is to the 1,257 training images, in 64 features of a "
        "classifier; precision to coverage compare with as many held-out images, of "
        "the same classes; the nearest training image is in pixels of [-1, 1]. *Real "
        "images* is what held-out images read in place of samples (precision to "
        "coverage: what training images do)."
    )


def _number(value: float | None, name: str) -> str:
    return "–" if value is None else f"{value:.{_DIGITS.get(name, 2)}f}"


def _plus_minus(entry: Record, name: str) -> str:
    text = _number(entry["mean"], name)
    if entry["standard_error"] is None:
        return text
    return f"{text} ± {_number(entry['standard_error'], name)}"


def _interval(change: Record) -> str:
    entry = change["frechet"]
    low, high = entry["interval_95"]
    mean = f"{entry['mean']:+.2f}".replace("-", "−")
    if low is None:
        return mean
    return f"{mean} [{low:+.2f}, {high:+.2f}]".replace("-", "−")


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
