"""Claims of S²-Guidance (arXiv 2508.12880v4) about mixtures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from toy_experiments.claims.ledger import (
    Claim,
    Comparison,
    Judgement,
    Verdict,
    all_or_some,
    compare,
    interval,
    judge,
    of_entry,
)
from toy_experiments.common.mixtures import MIXTURE_TITLES
from toy_experiments.common.paper import NETWORK_TITLES, REGIMES
from toy_experiments.common.records import (
    Metrics,
    Record,
    distinct,
    paired_change,
    select,
    single,
)
from toy_experiments.phase_diagram import EQUAL_COST

_PAPER = "Chen et al., arXiv 2508.12880v4"
# What the phase diagram trains.
_GRID = "pre-normalized blocks with EDM preconditioning, three mixtures"
# An interval of 95 % lies on the wrong side of zero in 2.5 % of cells by chance.
_CHANCE = 0.05


def _case(record: Record) -> str:
    """Where a record belongs, in words."""
    words = [MIXTURE_TITLES[record["mixture"]]]
    if "network" in record:
        words.append(NETWORK_TITLES[record["network"]])
    if "steps" in record:
        words.append(f"{record['steps']} steps")
    if "s2_scale" in record:
        words.append(f"ω = {record['s2_scale']:g}")
    return ", ".join(words)


def _line(metrics: Metrics, network: str, rule: str) -> Record:
    return single(metrics, "samples", mixture="two_modes", network=network, rule=rule)


def _cfg_shifts(metrics: Metrics) -> Judgement:
    exact, trained = (_line(metrics, n, "cfg") for n in ("exact", "well"))
    shift, width = exact["mode_shift"]["mean"], exact["mode_width_ratio"]["mean"]
    low, high = trained["mode_shift"]["interval_95"]
    return Judgement(
        "two modes, CFG scale "
        f"{metrics['config']['guidance']['cfg_scale']:g}, exact and trained denoisers",
        f"The mode moves outward by {shift:.2f} standard deviations and narrows to "
        f"{width:.2f} of its width with exact denoisers, by "
        f"{trained['mode_shift']['mean']:.2f} with the well-trained network.",
        interval(low, high, 2),
        "holds" if shift > 0.1 and low > 0.1 else "does not hold",
    )


def _cfg_is_network_error(metrics: Metrics) -> Judgement:
    exact, trained = (_line(metrics, n, "cfg")["w2"] for n in ("exact", "well"))
    fraction = (trained["mean"] - exact["mean"]) / trained["mean"]
    return Judgement(
        "two modes, well-trained network",
        f"W2 to the truth is {exact['mean']:.3f} with exact denoisers and "
        f"{trained['mean']:.3f} with the network: learning error accounts for "
        f"{fraction:.0%} of it.",
        of_entry(trained),
        "holds" if fraction > 0.5 else "does not hold",
    )


def _against_cfg(rule: str) -> Callable[[Metrics], Judgement]:
    """Whether a rule is closer to the truth than CFG, by mixture and network."""

    def decide(metrics: Metrics) -> Judgement:
        found = []
        for network in REGIMES:
            for record in select(metrics, "samples", network=network, rule=rule):
                name = "w2" if "w2" in record else "sliced_w2"
                cfg = single(
                    metrics,
                    "samples",
                    mixture=record["mixture"],
                    network=network,
                    rule="cfg",
                )
                found.append(compare(_case(record), record, cfg, name))
        return judge(
            found,
            "Change of W2 against CFG at the same scale",
            "both mixtures, both networks",
        )

    return decide


def _returns_the_mode(metrics: Metrics) -> Judgement:
    found, words = [], []
    for network in REGIMES:
        cfg, s2 = (_line(metrics, network, rule) for rule in ("cfg", "s2"))
        title = NETWORK_TITLES[network]
        found.append(compare(f"{title}, change of shift", s2, cfg, "mode_shift"))
        words.append(
            f"{title}: shift {cfg['mode_shift']['mean']:.2f} with CFG, "
            f"{s2['mode_shift']['mean']:.2f} with S² (width "
            f"{cfg['mode_width_ratio']['mean']:.2f} and "
            f"{s2['mode_width_ratio']['mean']:.2f})"
        )
    regime = "two modes, shifts in standard deviations"
    return judge(found, "; ".join(words) + ".", regime)


def _helps_at_equal_scale(metrics: Metrics) -> Judgement:
    cells = metrics["tables"]["cells"]
    total = len(cells)
    by_scale = {
        scale: Counter(c["verdict"] for c in select(metrics, "cells", scale=scale))
        for scale in distinct(cells, "scale")
    }
    closer = sum(counts["closer"] for counts in by_scale.values())
    farther = sum(counts["farther"] for counts in by_scale.values())
    each = ", ".join(
        f"λ = {scale:g}: closer {counts['closer']}, farther {counts['farther']} of "
        f"{counts.total()}"
        for scale, counts in by_scale.items()
    )
    chance = _CHANCE / 2 * total
    most = max(by_scale, key=lambda s: by_scale[s]["closer"] / by_scale[s].total())
    verdict: Verdict = "holds in a regime"
    if closer <= _CHANCE * total:
        verdict = "does not hold"
    elif closer > 0.9 * total:
        verdict = "holds"
    return Judgement(
        f"{_GRID}, {total} cells; most often at λ = {most:g}",
        f"S² is closer to the truth than CFG at the same scale in {closer} of {total} "
        f"cells, farther in {farther} ({each}). By chance alone {chance:g} "
        "would be closer and as many farther.",
        "each cell by its own interval over seeds",
        verdict,
    )


def _best(reference: str) -> Callable[[Metrics], Judgement]:
    """S² at its best scale against a rule at its best scale."""

    def decide(metrics: Metrics) -> Judgement:
        found, relative = [], []
        for record in select(metrics, "best", rule="s2"):
            place = {k: record[k] for k in ("mixture", "steps")}
            other = single(metrics, "best", rule=reference, **place)
            change = Comparison.of(_case(record), record[f"minus_{reference}"])
            found.append(change)
            relative.append(change.change / other["distance"]["mean"])
        low, high = int(np.argmin(relative)), int(np.argmax(relative))
        better, worse = (sum(c) for c in zip(
            *((c.is_better, c.is_worse) for c in found), strict=True
        ))  # fmt: skip
        effect = (
            f"With each rule at its own best scale S² is closer in {better}, farther "
            f"in {worse} of {len(found)} cells; relative change of W2 from "
            f"{relative[low]:+.1%} ({found[low].case}) to {relative[high]:+.0%} "
            f"({found[high].case})."
        )
        return judge(found, effect, f"{_GRID}, {len(found)} cells", each=False)

    return decide


def _naive_like_single(metrics: Metrics) -> Judgement:
    words, close = [], []
    for one in select(metrics, "masks", num_masks=1):
        place = {k: one[k] for k in ("mixture", "network", "steps")}
        every = single(metrics, "masks", num_masks="all", **place)
        change = paired_change(one, every, "distance")
        mean = every["distance"]["mean"]
        close.append(max(abs(end) for end in change["interval_95"]) < 0.05 * mean)
        words.append(f"{_case(place)} {change['mean'] / mean:+.1%}")
    return Judgement(
        "the expectation over all masks against one mask a step",
        f"Relative difference of W2: {', '.join(words)} (within 5 % counts as equal).",
        "each interval within 5 %" if all(close) else "not all intervals within 5 %",
        all_or_some(close),
    )


def _same_direction(metrics: Metrics) -> Judgement:
    records = metrics["tables"]["variance"]
    fractions = [r["variance_fraction"] for r in records]
    words = [f"{_case(r)} {r['variance_fraction']['mean']:.0%}" for r in records]
    # Corrections in one direction have no variance; unrelated ones nothing else.
    low = all(f["interval_95"][1] < 0.25 for f in fractions)
    return Judgement(
        "one block dropped of seven, exact over all masks, median over noise levels",
        f"Fraction of the squared correction that is variance between blocks: "
        f"{', '.join(words)} (0 % if all push alike, 86 % if they are unrelated).",
        "; ".join(of_entry(f, 2) for f in fractions),
        "holds" if low else "does not hold",
    )


def _mask_noise(metrics: Metrics) -> Judgement:
    words, relative = [], []
    for one in select(metrics, "draws", masks="shared, fresh, N = 1"):
        place = {k: one[k] for k in ("mixture", "steps")}
        frozen = single(metrics, "draws", masks="shared, frozen", **place)
        spread, kept = (
            r["std_of_distance_over_masks"]["mean"] / r["distance"]["mean"]
            for r in (one, frozen)
        )
        upper = one["std_of_distance_over_masks"]["interval_95"][1]
        relative.append(upper / one["distance"]["mean"])
        words.append(f"{_case(place)} {spread:.1%} (frozen {kept:.1%})")
    return Judgement(
        "fixed noise, masks drawn anew",
        f"Standard deviation of W2 over masks, relative to W2: {', '.join(words)}.",
        f"upper ends at most {max(relative):.1%}",
        all_or_some([r < 0.05 for r in relative]),
    )


def _small_omega(metrics: Metrics) -> Judgement:
    """A small omega is better than none, a large one worse than a small one."""
    omegas = distinct(metrics["tables"]["cells"], "s2_scale")
    small, large = min(omegas), max(omegas)
    cells = select(metrics, "cells", s2_scale=small)
    better = sum(cell["verdict"] == "closer" for cell in cells)
    worse = 0
    for cell in cells:
        place = {k: cell[k] for k in ("mixture", "steps", "scale")}
        other = single(metrics, "cells", s2_scale=large, **place)
        worse += compare("", other, cell, "change_of_distance").is_worse
    least = min(better, worse) / len(cells)
    verdict: Verdict = "does not hold"
    if least > _CHANCE:
        verdict = "holds" if least > 0.9 else "holds in a regime"
    return Judgement(
        f"{_GRID}, ω = {small:g} against 0 and {large:g}",
        f"ω = {small:g} is closer to the truth than CFG in {better} of {len(cells)} "
        f"cells; ω = {large:g} is farther than ω = {small:g} in {worse}.",
        "each cell by its own interval over seeds",
        verdict,
    )


def _points_at_the_error(metrics: Metrics) -> Judgement:
    words = []
    towards = away = levels = 0
    for budget in select(metrics, "budgets", points="noised"):
        place = {k: budget[k] for k in ("mixture", "steps")}
        entries = [
            level["cosine_with_minus_learning_error"]
            for level in select(metrics, "levels", points="noised", **place)
        ]
        above = sum(e["interval_95"][0] > 0 for e in entries)
        below = sum(e["interval_95"][1] < 0 for e in entries)
        towards, away = towards + above, away + below
        levels += len(entries)
        mean = np.mean([e["mean"] for e in entries])
        words.append(
            f"{_case(place)}: against it at {above} of {len(entries)} levels, along it "
            f"at {below}, mean cosine {mean:+.2f}"
        )
    verdict: Verdict = "does not hold"
    if towards > 2 * away and towards > _CHANCE * levels:
        verdict = "holds" if towards > 0.5 * levels else "holds in a regime"
    return Judgement(
        f"CFG scale {metrics['config']['scale']:g}, expectation over masks, true "
        "noised samples",
        f"The correction points, relative to the learned error: {'; '.join(words)}.",
        "levels counted by their 95 % intervals over seeds",
        verdict,
    )


def _subtract(metrics: Metrics) -> Judgement:
    plain, other = (
        single(metrics, "samples", network="exact", form=form)
        for form in ("centered", "subtract")
    )
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
        _against_cfg("autoguidance"),
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
        _against_cfg("s2"),
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
        _best("cfg"),
    ),
    Claim(
        "S² is better than CFG that spends the same compute on more steps.",
        f"{_PAPER}, Table 6, Fig. 14",
        "phase_diagram",
        _best(EQUAL_COST),
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
