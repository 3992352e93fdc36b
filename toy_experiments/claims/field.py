"""Claims of related work about guidance on mixtures."""

from __future__ import annotations

import numpy as np

from toy_experiments.claims.ledger import (
    Claim,
    Judgement,
    from_regimes,
    interval,
    of_entry,
    paired,
)
from toy_experiments.common.experiment import Metrics
from toy_experiments.common.toys import TOY_TITLES


def _repair(metrics: Metrics) -> Judgement:
    words, good, ends = [], [], []
    drawn = f"{metrics['drawn']:g}"
    for toy, result in metrics["toys"].items():
        row = result[drawn]
        cfg = row["CFG, exact"]["to tilted"]["mean"]
        fixed = row["CFG repaired"]["to tilted"]
        good.append(fixed["interval_95"][1] < 0.25 * cfg)
        words.append(
            f"{TOY_TITLES[toy]}: W2 to the tilted law {cfg:.3f} for CFG, "
            f"{fixed['mean']:.3f} repaired (floor {row['floor']:.3f})"
        )
        ends.append(of_entry(fixed))
    return Judgement(
        f"exact denoisers, scale {drawn}",
        "; ".join(words) + ".",
        "; ".join(ends),
        "holds" if all(good) else "does not hold",
    )


def _not_tilted(metrics: Metrics) -> Judgement:
    words, good = [], []
    drawn = f"{metrics['drawn']:g}"
    for toy, result in metrics["toys"].items():
        row = result[drawn]
        cfg, flow = row["CFG, exact"]["to tilted"], row["tilted flow"]["to tilted"]
        good.append(cfg["mean"] > 10 * row["floor"])
        words.append(
            f"{TOY_TITLES[toy]}: W2 {cfg['mean']:.3f} for CFG, {flow['mean']:.3f} for "
            f"the flow of the tilted law itself, floor {row['floor']:.3f}"
        )
    return Judgement(
        f"exact denoisers, scale {drawn}",
        "; ".join(words) + ".",
        "",
        "holds" if all(good) else "does not hold",
    )


def _middle_of_the_noise(metrics: Metrics) -> Judgement:
    words, good = [], []
    for toy, result in metrics["toys"].items():
        for name, row in result.items():
            lo, hi = row["window"]
            against = row["best window minus always"]
            good.append(against["interval_95"][1] < 0 and hi < metrics["ends"][-1])
            words.append(
                f"{TOY_TITLES[toy]} {name}: best in ({lo:g}, {hi:g}], W2 "
                f"{row['best window']['mean']:.3f} against {row['always']['mean']:.3f} "
                f"always"
            )
    return Judgement(
        f"CFG scale {metrics['scale']:g}, levels in standard deviations of the data",
        "; ".join(words) + ".",
        "each by its own interval over seeds",
        "holds" if all(good) else "holds in a regime" if any(good) else "does not hold",
    )


def _better_than_none(metrics: Metrics) -> Judgement:
    words, good, bad = [], [], []
    for toy, result in metrics["toys"].items():
        for name, row in result.items():
            change = row["best window minus no guidance"]
            good.append(change["interval_95"][1] < 0)
            bad.append(change["interval_95"][0] > 0)
            words.append(f"{TOY_TITLES[toy]} {name} {change['mean']:+.4f}")
    return Judgement(
        "fidelity to p(x | label); the best of all windows",
        f"Change of W2 against no guidance: {', '.join(words)}.",
        "each by its own interval over seeds",
        "holds" if all(good) else "holds in a regime" if any(good) else "does not hold",
    )


def _bias_dominates(metrics: Metrics) -> Judgement:
    words, ends = [], []
    good = []
    for key, row in metrics["toys"]["tree"].items():
        if not key.startswith("noised"):
            continue
        entry = row["learned error exceeds the bias below sigma"]
        words.append(f"{key.split(', ')[1]}: sigma {entry['mean']:.3f}")
        ends.append(of_entry(entry))
        good.append(entry["mean"] < 0.5)
    return Judgement(
        f"tree mixture, scale {metrics['scale']:g}",
        f"The bias of exact CFG dominates above {', '.join(words)}; the learned error "
        f"below.",
        "; ".join(ends),
        "holds" if all(good) else "holds in a regime" if any(good) else "does not hold",
    )


def _data_coefficients(metrics: Metrics) -> Judgement:
    worst, shares, total = [], [], 0
    for result in metrics["cases"].values():
        for row in result.values():
            found = row["squared error removed by all blocks"]
            worst += found["smallest share at a level"]["seeds"]
            shares.append(found["share"]["mean"])
            total += len(found["share"]["seeds"])
    low = min(worst)
    return Judgement(
        "four cases of mixture and width, all training lengths",
        f"Coefficients from data alone remove {min(shares):.0%} to "
        f"{max(shares):.0%} of the squared denoising error; the worst change at any "
        f"level of {total} networks is {low:+.1%}.",
        "measured against the closed form",
        "holds" if low > -0.05 else "does not hold",
    )


def _calibrated_beats_grid(metrics: Metrics) -> Judgement:
    good, bad, where = [], [], []
    relative = []
    for case, result in metrics["cases"].items():
        for steps, row in result.items():
            change = row["change against best CFG"]["calibrated, all blocks"]
            best = row["distance"]["best CFG"]["mean"]
            relative.append(change["mean"] / best)
            good.append(change["interval_95"][1] < 0)
            bad.append(change["interval_95"][0] > 0)
            if good[-1]:
                where.append(f"{case}, {steps}")
    return Judgement(
        "holds for " + "; ".join(where) if where else "all cases",
        f"Closer than the best constant CFG in {sum(good)}, farther in {sum(bad)} of "
        f"{len(good)} cases; relative change of W2 from {min(relative):+.0%} to "
        f"{max(relative):+.0%}, median {np.median(relative):+.0%}.",
        "each case by its own interval over seeds",
        "holds" if all(good) else "holds in a regime" if any(good) else "does not hold",
    )


def _flow_variance(metrics: Metrics) -> Judgement:
    rows = metrics["pair"]["flow"]
    worst = max(abs(r["variance"] / 2.0 ** (1.0 - r["scale"]) - 1.0) for r in rows)
    return Judgement(
        f"N(m, 1) against N(0, 2), scales up to {rows[-1]['scale']:g}",
        f"The variance of the flow's output is within {worst:.1%} of 2^(1 - scale).",
        "",
        "holds" if worst < 0.02 else "does not hold",
    )


def _growth(key: str, form: str, wanted: float):
    """Whether ``-log(1 - P)`` grows at least as a power of the weight."""

    def judge(metrics: Metrics) -> Judgement:
        found = metrics["bounds"][key]
        flow, w = found["flow"], metrics["bounds"]["w"]
        power = found["flow_growth"]["power"]
        return Judgement(
            f"weights w = scale - 1 from {w[0]:g} to {w[-1]:g}, exact denoisers",
            f"-log(1 - P) goes from {flow[0]:.2f} to {flow[-1]:.2f}, as w^{power:.2f} "
            f"({form} asks for w^{wanted:g}); the tilted law's from "
            f"{found['tilted'][0]:.2f} to {found['tilted'][-1]:.2f}.",
            "",
            # The bound's constants are not stated: a slower growth here may belong to
            # another constant before sqrt(w).
            "holds" if power > 0.8 * wanted else "undecided",
        )

    return judge


def _coverage(metrics: Metrics) -> Judgement:
    panels = metrics["panels"]
    plain, cfg, auto = (
        panels[name]["nn_recall"] for name in ("unguided", "cfg", "autoguidance")
    )
    exact = panels["exact/cfg"]["nn_recall"]
    loss, low, high = paired(cfg, auto)
    return Judgement(
        "tree mixture; mean distance from a true sample to the nearest generated one",
        f"{plain['mean']:.4f} without guidance, {cfg['mean']:.4f} with CFG "
        f"({exact['mean']:.4f} with exact denoisers), {auto['mean']:.4f} with "
        f"AutoGuidance: CFG is farther by {loss:.4f}.",
        interval(low, high, 4),
        "holds" if low > 0 else "does not hold" if high < 0 else "undecided",
    )


def _outliers(metrics: Metrics) -> Judgement:
    panels = metrics["panels"]
    words, good, bad, ends = [], [], [], []
    for name, title in (("outside", "share outside"), ("nll_p99", "99 % NLL")):
        plain, auto = panels["unguided"][name], panels["autoguidance"][name]
        change, low, high = paired(auto, plain)
        good.append(high < 0)
        bad.append(low > 0)
        words.append(
            f"{title} {plain['mean']:.3g} without guidance, {auto['mean']:.3g} with "
            f"AutoGuidance ({change:+.3g})"
        )
        ends.append(f"{title} {interval(low, high)}")
    return Judgement(
        "tree mixture, networks of one training run each",
        "; ".join(words) + ".",
        "; ".join(ends),
        from_regimes(good, bad),
    )


def _s2_on_the_tree(metrics: Metrics) -> Judgement:
    panels = metrics["panels"]
    change, low, high = paired(panels["s2"]["sliced_w2"], panels["cfg"]["sliced_w2"])
    exact = panels["exact/cfg"]["sliced_w2"]["mean"]
    return Judgement(
        "tree mixture, CFG scale 4",
        f"Sliced W2 {panels['cfg']['sliced_w2']['mean']:.3f} with CFG (exact denoisers "
        f"{exact:.3f}), {change:+.3f} with the S² term.",
        interval(low, high),
        "holds" if high < 0 else "does not hold" if low > 0 else "undecided",
    )


def _cfg_zero(variant: str):
    def judge(metrics: Metrics) -> Judgement:
        good, bad, words, where = [], [], [], []
        for scale, result in metrics["scales"].items():
            for steps in metrics["steps"]:
                change = result["paired"][f"{steps}/{variant}"]
                low, high = change["interval_95"]
                good.append(high < 0)
                bad.append(low > 0)
                if high < 0:
                    where.append(f"{steps} steps at λ = {scale}")
                words.append(f"{steps} steps, λ = {scale}: {change['mean']:+.3f}")
        return Judgement(
            "holds for " + ", ".join(where) if where else "all training lengths",
            f"Change of sliced W2 against CFG: {'; '.join(words)}.",
            "each by its own interval over seeds",
            from_regimes(good, bad),
        )

    return judge


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "CFG does not sample the tilted law p(x) p(label | x)^scale.",
        "Bradley & Nakkiran, arXiv 2408.09000",
        "repair",
        _not_tilted,
    ),
    Claim(
        "Feynman-Kac weights on CFG's own scores do sample it.",
        "Skreta et al., arXiv 2503.02819",
        "repair",
        _repair,
    ),
    Claim(
        "Guidance at high noise harms; a limited interval is better than all levels.",
        "Kynkäänniemi et al., arXiv 2404.07724",
        "guidance_windows",
        _middle_of_the_noise,
    ),
    Claim(
        "Guidance in the right interval is better than no guidance.",
        "Kynkäänniemi et al., arXiv 2404.07724",
        "guidance_windows",
        _better_than_none,
    ),
    Claim(
        "On the tree at scale 4 most of CFG's error is present with perfect scores; "
        "networks add theirs at low noise.",
        "the toy of Karras et al., arXiv 2406.02507, re-measured",
        "error_budget",
        _bias_dominates,
    ),
    Claim(
        "The best weights of guidance corrections can be read off data.",
        "least squares on x0 - D_c, this project",
        "calibration",
        _data_coefficients,
    ),
    Claim(
        "Calibrated guidance is closer to p(x | label) than the best constant CFG.",
        "this project's first measurements",
        "calibration",
        _calibrated_beats_grid,
    ),
    Claim(
        "The variance of CFG's flow on two Gaussians is 2^(1 - scale).",
        "Bradley & Nakkiran, arXiv 2408.09000",
        "power_distribution",
        _flow_variance,
    ),
    Claim(
        "On two unit Gaussians at -1 and 1, P(x >= 0) >= 1 - exp(-Omega(w^2)).",
        "Chidambaram et al., arXiv 2409.13074",
        "power_distribution",
        _growth("zero", "the bound", 2.0),
    ),
    Claim(
        "On the same pair, P(x >= sqrt(w)) >= 1 - exp(-Omega(w)).",
        "Chidambaram et al., arXiv 2409.13074",
        "power_distribution",
        _growth("root", "the bound", 1.0),
    ),
    Claim(
        "CFG loses branches of the data that AutoGuidance keeps.",
        "Karras et al., arXiv 2406.02507, Fig. 1",
        "autoguidance_toy",
        _coverage,
    ),
    Claim(
        "AutoGuidance removes outliers.",
        "Karras et al., arXiv 2406.02507, Fig. 1",
        "autoguidance_toy",
        _outliers,
    ),
    Claim(
        "S² brings CFG's samples on the tree closer to the truth.",
        "the S² claim on the AutoGuidance toy",
        "autoguidance_toy",
        _s2_on_the_tree,
    ),
    Claim(
        "The optimised scale of CFG-Zero* helps, most of all early in training.",
        "Fan et al., arXiv 2503.18886, Fig. 3",
        "cfg_zero_toy",
        _cfg_zero("optimised"),
    ),
    Claim(
        "Zero velocity in the first step helps an under-trained flow.",
        "Fan et al., arXiv 2503.18886, Fig. 3",
        "cfg_zero_toy",
        _cfg_zero("zero"),
    ),
)
