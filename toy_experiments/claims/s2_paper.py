"""Claims of S²-Guidance (arXiv 2508.12880v4) about mixtures."""

from __future__ import annotations

import numpy as np

from toy_experiments.claims.ledger import (
    Claim,
    Judgement,
    Verdict,
    from_regimes,
    interval,
    of_entry,
    paired,
)
from toy_experiments.common.experiment import Metrics

_PAPER = "Chen et al., arXiv 2508.12880v4"
# An interval of 95 % lies on the wrong side of zero in 2.5 % of cells by chance.
_CHANCE = 0.05
_REGIMES = ("under", "well")
_NAMES = {"under": "under-trained", "well": "well-trained"}


def _cfg_shifts(metrics: Metrics) -> Judgement:
    line = metrics["dimensions"]["1"]
    exact, trained = line["exact/cfg"], line["well/cfg"]
    shift, width = exact["mode_shift"]["mean"], exact["mode_width_ratio"]["mean"]
    low, high = trained["mode_shift"]["interval_95"]
    holds = shift > 0.1 and low > 0.1
    return Judgement(
        "two modes, CFG scale "
        f"{metrics['config']['guidance']['cfg_scale']:g}, exact and trained denoisers",
        f"The mode moves outward by {shift:.2f} standard deviations and narrows to "
        f"{width:.2f} of its width with exact denoisers, by "
        f"{trained['mode_shift']['mean']:.2f} with the well-trained network.",
        interval(low, high, 2),
        "holds" if holds else "does not hold",
    )


def _cfg_is_network_error(metrics: Metrics) -> Judgement:
    line = metrics["dimensions"]["1"]
    exact, trained = line["exact/cfg"]["w2"]["mean"], line["well/cfg"]["w2"]
    share = (trained["mean"] - exact) / trained["mean"]
    return Judgement(
        "two modes, well-trained network",
        f"W2 to the truth is {exact:.3f} with exact denoisers and "
        f"{trained['mean']:.3f} with the network: learning error accounts for "
        f"{share:.0%} of it.",
        of_entry(trained),
        "holds" if share > 0.5 else "does not hold",
    )


def _against_cfg(method: str, metric: dict[int, str]):
    """Whether a method is closer to the truth than CFG, by dimension and regime."""

    def judge(metrics: Metrics) -> Judgement:
        good, bad, words, ends, where = [], [], [], [], []
        for dim, name in metric.items():
            result = metrics["dimensions"][str(dim)]
            for regime in _REGIMES:
                change, low, high = paired(
                    result[f"{regime}/{method}"][name], result[f"{regime}/cfg"][name]
                )
                good.append(high < 0)
                bad.append(low > 0)
                case = f"{dim}-D {_NAMES[regime]}"
                words.append(f"{case} {change:+.3f}")
                ends.append(f"{case} {interval(low, high)}")
                if high < 0:
                    where.append(case)
        return Judgement(
            "holds for " + ", ".join(where) if where else "1-D and 2-D, both networks",
            f"Change of W2 against CFG at the same scale: {', '.join(words)}.",
            "; ".join(ends),
            from_regimes(good, bad),
        )

    return judge


def _returns_the_mode(metrics: Metrics) -> Judgement:
    line = metrics["dimensions"]["1"]
    words, good, bad, ends = [], [], [], []
    for regime in _REGIMES:
        cfg, s2 = line[f"{regime}/cfg"], line[f"{regime}/s2"]
        change, low, high = paired(s2["mode_shift"], cfg["mode_shift"])
        good.append(high < 0)
        bad.append(low > 0)
        words.append(
            f"{_NAMES[regime]}: shift {cfg['mode_shift']['mean']:.2f} with CFG, "
            f"{s2['mode_shift']['mean']:.2f} with S² (width "
            f"{cfg['mode_width_ratio']['mean']:.2f} and "
            f"{s2['mode_width_ratio']['mean']:.2f})"
        )
        ends.append(f"{_NAMES[regime]} change of shift {interval(low, high)}")
    return Judgement(
        "two modes, shifts in standard deviations",
        "; ".join(words) + ".",
        "; ".join(ends),
        from_regimes(good, bad),
    )


def _helps_at_equal_scale(metrics: Metrics) -> Judgement:
    helping: list[str] = []
    total = harms = 0
    by_scale: dict[str, list[str]] = {}
    for result in metrics["toys"].values():
        for cell, entry in result["cells"].items():
            total += 1
            scale = cell.split("scale ")[1].split(",")[0]
            by_scale.setdefault(scale, []).append(entry["verdict"])
            if entry["verdict"] == "helps":
                helping.append(cell)
            harms += entry["verdict"] == "harms"
    shares = ", ".join(
        f"λ = {scale}: helps {found.count('helps')}, harms {found.count('harms')} of "
        f"{len(found)}"
        for scale, found in by_scale.items()
    )
    verdict: Verdict = (
        "does not hold"
        if len(helping) <= _CHANCE * total
        else "holds"
        if len(helping) > 0.9 * total
        else "holds in a regime"
    )
    most = max(by_scale, key=lambda s: by_scale[s].count("helps") / len(by_scale[s]))
    return Judgement(
        f"three mixtures, {total} cells; most often at λ = {most}",
        f"S² is closer to the truth than CFG at the same scale in {len(helping)} of "
        f"{total} cells, farther in {harms} ({shares}).",
        "each cell by its own interval over seeds",
        verdict,
    )


def _best(key: str, field: str, baseline: str):
    def judge(metrics: Metrics) -> Judgement:
        good, bad, where, total = [], [], [], 0
        extremes: list[tuple[float, str, list[float]]] = []
        for toy, result in metrics["toys"].items():
            for steps, rows in result["best"].items():
                for name, entry in rows.items():
                    if not name.startswith("S2"):
                        continue
                    total += 1
                    verdict = entry[field]
                    good.append(verdict == "helps")
                    bad.append(verdict == "harms")
                    case = f"{toy}, {steps}, {name.replace('S2 omega', 'ω =')}"
                    if verdict == "helps":
                        where.append(case)
                    relative = entry[key]["mean"] / rows[baseline]["distance"]["mean"]
                    extremes.append((relative, case, entry[key]["interval_95"]))
        low, high = min(extremes), max(extremes)
        return Judgement(
            "holds for " + "; ".join(where)
            if where
            else f"three mixtures, {total} cells",
            f"With each rule at its own best scale S² is closer in {sum(good)}, "
            f"farther in {sum(bad)} of {total} cells; relative change of W2 from "
            f"{low[0]:+.1%} ({low[1]}) to {high[0]:+.0%} ({high[1]}).",
            f"change of W2 at the best cell {interval(low[2][0], low[2][1], 4)}",
            from_regimes(good, bad),
        )

    return judge


def _naive_like_single(metrics: Metrics) -> Judgement:
    words, close = [], []
    for dim in metrics["config"]["dimensions"]:
        for regime in _REGIMES:
            one = metrics["curves"][f"{dim}/{regime}/1"]["distance"]
            every = metrics["curves"][f"{dim}/{regime}/all"]["distance"]
            change, low, high = paired(one, every)
            close.append(max(abs(low), abs(high)) < 0.05 * every["mean"])
            relative = change / every["mean"]
            words.append(f"{dim}-D {_NAMES[regime]} {relative:+.1%}")
    return Judgement(
        "the expectation over all masks against one mask a step",
        f"Relative difference of W2: {', '.join(words)} (within 5 % counts as equal).",
        "each interval within 5 %" if all(close) else "not all intervals within 5 %",
        "holds"
        if all(close)
        else "holds in a regime"
        if any(close)
        else "does not hold",
    )


def _same_direction(metrics: Metrics) -> Judgement:
    shares, words = [], []
    for toy, result in metrics["toys"].items():
        for steps, rows in result.items():
            entry = rows["share of the squared correction that is variance"]
            share = entry["median over noise levels"]
            shares.append(share)
            words.append(f"{toy} {steps} {share['mean']:.0%}")
    # Corrections in one direction have no variance; unrelated ones nothing else.
    low = all(s["interval_95"][1] < 0.25 for s in shares)
    return Judgement(
        "one block dropped of seven, exact over all masks, median over noise levels",
        f"Share of the squared correction that is variance between blocks: "
        f"{', '.join(words)} (0 % if all push alike, 86 % if they are unrelated).",
        "; ".join(of_entry(s, 2) for s in shares),
        "holds" if low else "does not hold",
    )


def _small_omega(metrics: Metrics) -> Judgement:
    """A small omega is better than none, a large one worse than a small one."""
    better, worse, total = 0, 0, 0
    omegas = [w for w in metrics["s2_scales"] if w]
    small, large = min(omegas), max(omegas)
    for result in metrics["toys"].values():
        for cell, entry in result["cells"].items():
            if not cell.endswith(f"omega {small:g}"):
                continue
            total += 1
            other = result["cells"][
                cell.replace(f"omega {small:g}", f"omega {large:g}")
            ]
            gap, low, _ = paired(
                other["change of distance"], entry["change of distance"]
            )
            better += entry["verdict"] == "helps"
            worse += low > 0
    first, second = better / total, worse / total
    return Judgement(
        f"three mixtures, ω = {small:g} against 0 and {large:g}",
        f"ω = {small:g} is closer to the truth than CFG in {better} of {total} cells; "
        f"ω = {large:g} is farther than ω = {small:g} in {worse}.",
        "each cell by its own interval over seeds",
        "holds" if min(first, second) > 0.9
        else "holds in a regime" if min(first, second) > _CHANCE
        else "does not hold",
    )  # fmt: skip


def _points_at_the_error(metrics: Metrics) -> Judgement:
    words = []
    towards = away = levels = 0
    for toy, result in metrics["toys"].items():
        for key, row in result.items():
            if not key.startswith("noised"):
                continue
            entries = [
                level["cosine with minus learning error"]
                for level in row["levels"].values()
            ]
            above = sum(e["interval_95"][0] > 0 for e in entries)
            below = sum(e["interval_95"][1] < 0 for e in entries)
            towards, away = towards + above, away + below
            levels += len(entries)
            mean = np.mean([e["mean"] for e in entries])
            words.append(
                f"{toy}, {key.split(', ')[1]}: against it at {above} of {len(entries)} "
                f"levels, along it at {below}, mean cosine {mean:+.2f}"
            )
    verdict: Verdict = "does not hold"
    if towards > 2 * away and towards > _CHANCE * levels:
        verdict = "holds" if towards > 0.5 * levels else "holds in a regime"
    return Judgement(
        f"CFG scale {metrics['scale']:g}, expectation over masks, true noised samples",
        f"The correction points, relative to the learned error: {'; '.join(words)}.",
        "levels counted by their 95 % intervals over seeds",
        verdict,
    )


def _subtract(metrics: Metrics) -> Judgement:
    panels = metrics["panels"]
    plain, other = panels["exact/centered"], panels["exact/subtract"]
    shift = other["mode_shift"]
    return Judgement(
        "two modes, a redundant sub-network",
        f"Subtracting ω D_weak moves the mode by {shift['mean']:+.2f} standard "
        f"deviations (W2 {other['w2']['mean']:.2f}); the centered form leaves it where "
        f"CFG puts it ({plain['mode_shift']['mean']:+.2f}, W2 "
        f"{plain['w2']['mean']:.2f}).",
        of_entry(shift, 2),
        "holds" if other["w2"]["mean"] < plain["w2"]["mean"] else "does not hold",
    )


def _mask_noise(metrics: Metrics) -> Judgement:
    words, relative = [], []
    for toy, result in metrics["toys"].items():
        for steps, rows in result.items():
            row = rows["shared, fresh, N = 1"]
            spread = row["std of the distance over masks"]
            share = spread["interval_95"][1] / row["distance"]["mean"]
            relative.append(share)
            words.append(
                f"{toy} {steps} {spread['mean'] / row['distance']['mean']:.1%} "
                f"(frozen "
                f"{_relative_spread(rows['shared, frozen']):.1%})"
            )
    return Judgement(
        "fixed noise, masks drawn anew",
        f"Standard deviation of W2 over masks, relative to W2: {', '.join(words)}.",
        f"upper ends at most {max(relative):.1%}",
        "holds" if max(relative) < 0.05 else "holds in a regime"
        if min(relative) < 0.05 else "does not hold",
    )  # fmt: skip


def _relative_spread(row: Metrics) -> float:
    spread = row["std of the distance over masks"]["mean"]
    return float(spread / row["distance"]["mean"])


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "CFG shifts the mode of a conditional distribution away from the truth.",
        f"{_PAPER}, Sec. 3.1, Fig. 3",
        "distributions",
        _cfg_shifts,
    ),
    Claim(
        "This distortion is an error of the network, which its sub-networks reveal.",
        f"{_PAPER}, Sec. 3.1-3.2",
        "distributions",
        _cfg_is_network_error,
    ),
    Claim(
        "AutoGuidance comes closer to the truth than CFG.",
        f"{_PAPER}, Fig. 3",
        "distributions",
        _against_cfg("autoguidance", {1: "w2", 2: "sliced_w2"}),
    ),
    Claim(
        "S² returns the mode to its place and keeps its width.",
        f"{_PAPER}, Fig. 3",
        "distributions",
        _returns_the_mode,
    ),
    Claim(
        "S² matches the truth better than CFG does (the published setting, scale and "
        "omega).",
        f"{_PAPER}, Fig. 3",
        "distributions",
        _against_cfg("s2", {1: "w2", 2: "sliced_w2"}),
    ),
    Claim(
        "S² lies above CFG over a wide range of scales.",
        f"{_PAPER}, Fig. 7a",
        "phase_diagram",
        _helps_at_equal_scale,
    ),
    Claim(
        "S² is mostly above CFG at CFG's best scale.",
        f"{_PAPER}, Fig. 7a",
        "phase_diagram",
        _best("change", "verdict", "CFG"),
    ),
    Claim(
        "S² is better than CFG that spends the same compute on more steps.",
        f"{_PAPER}, Table 6, Fig. 14",
        "phase_diagram",
        _best("change at equal cost", "verdict at equal cost", "CFG at equal cost"),
    ),
    Claim(
        "A small omega helps and a large one over-corrects.",
        f"{_PAPER}, Fig. 7b",
        "phase_diagram",
        _small_omega,
    ),
    Claim(
        "Naive S² (many masks) and S² (one mask) give the same distribution.",
        f"{_PAPER}, Fig. 10",
        "naive_vs_single",
        _naive_like_single,
    ),
    Claim(
        "Different dropped blocks push in the same direction if few are dropped.",
        f"{_PAPER}, Sec. 3.3, App. A.2",
        "mask_variance",
        _same_direction,
    ),
    Claim(
        "The randomness of the masks hardly changes the result.",
        f"{_PAPER}, Table 7",
        "mask_variance",
        _mask_noise,
    ),
    Claim(
        "The sub-network errs further in the direction of the network's own error.",
        f"{_PAPER}, Sec. 3.2",
        "error_budget",
        _points_at_the_error,
    ),
    Claim(
        "Subtracting ω D_weak without adding ω D_c back (the appendix) corrects CFG.",
        f"{_PAPER}, App. B, Eqs 16-28",
        "subtract_form",
        _subtract,
    ),
    Claim(
        "On two classes of CIFAR-10 S² keeps the classes apart where CFG collapses.",
        f"{_PAPER}, Fig. 4",
        "",
        "It needs an image model; mixtures say nothing of it.",
    ),
    Claim(
        "S² improves FID, HPS and VBench of SiT, SD3 and Wan.",
        f"{_PAPER}, Tables 1-3",
        "",
        "Preference and image quality have no counterpart on a mixture.",
    ),
    Claim(
        "Dropping the first block hurts.",
        f"{_PAPER}, Fig. 7c,d",
        "",
        "It is stated of DiT and SiT; the first block is protected here throughout.",
    ),
)
