"""Claims of related work about guidance on mixtures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from toy_experiments.claims.ledger import (
    Claim,
    Comparison,
    Judgement,
    all_or_some,
    compare,
    judge,
    of_entry,
)
from toy_experiments.common.mixtures import MIXTURE_TITLES
from toy_experiments.common.records import Metrics, Record, select, single


def _case(record: Record) -> str:
    """Mixture and training length, in words."""
    steps = record["steps"]
    length = "exact" if steps is None else f"{steps} steps"
    return f"{MIXTURE_TITLES[record['mixture']]} {length}"


def _tilted_distances(metrics: Metrics) -> list[tuple[str, dict[str, Record], float]]:
    """Title, distance to the tilted distribution by kind, and floor, by mixture."""
    drawn = metrics["config"]["drawn"]
    result = []
    for exact in select(metrics, "scales", scale=drawn):
        samples = select(metrics, "samples", mixture=exact["mixture"], scale=drawn)
        distances = {r["kind"]: r["w2_to_tilted"] for r in samples}
        result.append((MIXTURE_TITLES[exact["mixture"]], distances, exact["floor"]))
    return result


def _repair(metrics: Metrics) -> Judgement:
    words, good, ends = [], [], []
    for title, distances, floor in _tilted_distances(metrics):
        cfg, fixed = distances["cfg_exact"]["mean"], distances["cfg_repaired"]
        good.append(fixed["interval_95"][1] < 0.25 * cfg)
        words.append(
            f"{title}: W2 to the tilted distribution {cfg:.3f} for CFG, "
            f"{fixed['mean']:.3f} repaired (floor {floor:.3f})"
        )
        ends.append(of_entry(fixed))
    return Judgement(
        f"exact denoisers, scale {metrics['config']['drawn']:g}",
        "; ".join(words) + ".",
        "; ".join(ends),
        "holds" if all(good) else "does not hold",
    )


def _not_tilted(metrics: Metrics) -> Judgement:
    words, good = [], []
    for title, distances, floor in _tilted_distances(metrics):
        cfg, flow = (distances[k]["mean"] for k in ("cfg_exact", "tilted_flow"))
        good.append(cfg > 10 * floor)
        words.append(
            f"{title}: W2 {cfg:.3f} for CFG, {flow:.3f} for the flow of the tilted "
            f"distribution itself, floor {floor:.3f}"
        )
    return Judgement(
        f"exact denoisers, scale {metrics['config']['drawn']:g}",
        "; ".join(words) + ".",
        "",
        "holds" if all(good) else "does not hold",
    )


def _middle_of_the_noise(metrics: Metrics) -> Judgement:
    words, good = [], []
    for record in metrics["tables"]["windows"]:
        against = record["best_minus_always"]
        is_below = record["best_to"] < metrics["config"]["ends"][-1]
        good.append(against["interval_95"][1] < 0 and is_below)
        words.append(
            f"{_case(record)}: best in ({record['best_from']:g}, "
            f"{record['best_to']:g}], W2 {record['best']['mean']:.3f} against "
            f"{record['always']['mean']:.3f} always"
        )
    return Judgement(
        f"CFG scale {metrics['config']['scale']:g}, levels in standard deviations of "
        "the data",
        "; ".join(words) + ".",
        "each by its own interval over seeds",
        all_or_some(good),
    )


def _better_than_none(metrics: Metrics) -> Judgement:
    return judge(
        [
            Comparison.of(_case(r), r["best_minus_no_guidance"])
            for r in metrics["tables"]["windows"]
        ],
        "Change of W2 against no guidance",
        "fidelity to p(x | label); the best of all windows",
        digits=4,
        each=False,
    )


def _bias_dominates(metrics: Metrics) -> Judgement:
    records = select(metrics, "budgets", mixture="tree", points="noised")
    crossings = [r["crossing_sigma"] for r in records]
    words = [f"{r['steps']} steps: {r['crossing_sigma']['mean']:.3f}" for r in records]
    return Judgement(
        f"tree mixture, scale {metrics['config']['scale']:g}",
        f"The bias of exact CFG dominates above sigma ({', '.join(words)}); the "
        f"learned error below.",
        "; ".join(of_entry(c) for c in crossings),
        all_or_some([c["mean"] < 0.5 for c in crossings]),
    )


def _data_coefficients(metrics: Metrics) -> Judgement:
    records = metrics["tables"]["networks"]
    worst = [v for r in records for v in r["smallest_fraction_at_a_level"]["seeds"]]
    fractions = [r["removed_fraction"]["mean"] for r in records]
    return Judgement(
        "all mixtures and widths, all training lengths",
        f"Coefficients from data alone remove {min(fractions):.0%} to "
        f"{max(fractions):.0%} of the squared denoising error; the worst change at any "
        f"level of {len(worst)} networks is {min(worst):+.1%}.",
        "measured against the closed form",
        "holds" if min(worst) > -0.05 else "does not hold",
    )


def _calibrated_beats_grid(metrics: Metrics) -> Judgement:
    found, relative = [], []
    for record in select(metrics, "rules", rule="calibrated_all"):
        place = {k: record[k] for k in ("mixture", "width", "steps")}
        best = single(metrics, "rules", rule="best_cfg", **place)
        case = f"{_case(record)} width {record['width']}"
        found.append(Comparison.of(case, record["minus_best_cfg"]))
        relative.append(found[-1].change / best["distance"]["mean"])
    better, worse = sum(c.is_better for c in found), sum(c.is_worse for c in found)
    effect = (
        f"Closer than the best constant CFG in {better}, farther in {worse} of "
        f"{len(found)} cases; relative change of W2 from {min(relative):+.0%} to "
        f"{max(relative):+.0%}, median {np.median(relative):+.0%}."
    )
    return judge(found, effect, "all cases", each=False)


def _flow_variance(metrics: Metrics) -> Judgement:
    rows = select(metrics, "pair", kind="flow")
    worst = max(abs(r["variance"] / 2.0 ** (1.0 - r["scale"]) - 1.0) for r in rows)
    return Judgement(
        f"N(m, 1) against N(0, 2), scales up to {rows[-1]['scale']:g}",
        f"The variance of the flow's output is within {worst:.1%} of 2^(1 - scale).",
        "",
        "holds" if worst < 0.02 else "does not hold",
    )


def _growth(bound: str, wanted: float) -> Callable[[Metrics], Judgement]:
    """Whether ``-log(1 - P)`` grows at least as a power of the weight."""

    def decide(metrics: Metrics) -> Judgement:
        rows = select(metrics, "bounds", bound=bound)
        first, last = rows[0], rows[-1]
        power = single(metrics, "growth", bound=bound, kind="flow")["power"]
        return Judgement(
            f"weights w = scale - 1 from {first['w']:g} to {last['w']:g}, exact "
            "denoisers",
            f"-log(1 - P) goes from {first['flow']:.2f} to {last['flow']:.2f}, as "
            f"w^{power:.2f} (the bound asks for w^{wanted:g}); that of the tilted "
            f"distribution from {first['tilted']:.2f} to {last['tilted']:.2f}.",
            "",
            # The bound's constants are not stated: a slower growth here may belong to
            # another constant before sqrt(w).
            "holds" if power > 0.8 * wanted else "undecided",
        )

    return decide


def _tree(metrics: Metrics, rule: str, network: str = "trained") -> Record:
    return single(metrics, "samples", network=network, rule=rule)


def _coverage(metrics: Metrics) -> Judgement:
    name = "coverage_distance"
    cfg, auto = _tree(metrics, "cfg"), _tree(metrics, "autoguidance")
    plain, exact = _tree(metrics, "unguided"), _tree(metrics, "cfg", "exact")
    effect = (
        f"{plain[name]['mean']:.4f} without guidance, {cfg[name]['mean']:.4f} with CFG "
        f"({exact[name]['mean']:.4f} with exact denoisers), {auto[name]['mean']:.4f} "
        "with AutoGuidance."
    )
    regime = "tree mixture; mean distance from a true sample to the nearest one"
    return judge([compare("", auto, cfg, name)], effect, regime, digits=4)


def _outliers(metrics: Metrics) -> Judgement:
    plain, auto = _tree(metrics, "unguided"), _tree(metrics, "autoguidance")
    found, words = [], []
    for name, title in (("outside", "fraction outside"), ("nll_p99", "99 % NLL")):
        found.append(compare(title, auto, plain, name))
        words.append(
            f"{title} {plain[name]['mean']:.3g} without guidance, "
            f"{auto[name]['mean']:.3g} with AutoGuidance ({found[-1].change:+.3g})"
        )
    regime = "tree mixture, networks of one training run each"
    return judge(found, "; ".join(words) + ".", regime)


def _s2_on_the_tree(metrics: Metrics) -> Judgement:
    change = compare("", _tree(metrics, "s2"), _tree(metrics, "cfg"), "sliced_w2")
    cfg, exact = (_tree(metrics, "cfg", n)["sliced_w2"] for n in ("trained", "exact"))
    effect = (
        f"Sliced W2 {cfg['mean']:.3f} with CFG (exact denoisers {exact['mean']:.3f}), "
        f"{change.change:+.3f} with the S² term."
    )
    return judge([change], effect, "tree mixture, CFG scale 4")


def _cfg_zero(rule: str) -> Callable[[Metrics], Judgement]:
    def decide(metrics: Metrics) -> Judgement:
        found = [
            Comparison.of(f"{r['steps']} steps at λ = {r['scale']:g}", r["minus_cfg"])
            for r in select(metrics, "samples", rule=rule)
            if r["steps"] is not None
        ]
        effect = "Change of sliced W2 against CFG"
        return judge(found, effect, "all training lengths", each=False)

    return decide


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "CFG does not sample the tilted distribution p(x) p(label | x)^scale.",
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
        "The best weights of guidance corrections can be estimated from data.",
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
        _growth("zero", 2.0),
    ),
    Claim(
        "On the same pair, P(x >= sqrt(w)) >= 1 - exp(-Omega(w)).",
        "Chidambaram et al., arXiv 2409.13074",
        "power_distribution",
        _growth("root", 1.0),
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
        "The optimized scale of CFG-Zero* helps, most of all early in training.",
        "Fan et al., arXiv 2503.18886, Fig. 3",
        "cfg_zero_toy",
        _cfg_zero("optimized"),
    ),
    Claim(
        "Zero velocity in the first step helps an under-trained flow.",
        "Fan et al., arXiv 2503.18886, Fig. 3",
        "cfg_zero_toy",
        _cfg_zero("zero"),
    ),
)
