"""Guidance rules on a real network on real images: handwritten digits.

A transformer on a rectified flow, trained on the 8 x 8 digits that scikit-learn ships.
It asks of images what the toys ask of mixtures: does S² bring samples closer to the
data than CFG does at its best scale? Each rule is measured at every setting of a grid;
its best setting is chosen with one sampling key and scored with another.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gmm_guidance as gg
from full_models import DiTConfig, export_weights
from full_models.models.dit.config import SIT
from full_models.training import DiTTraining
from gmm_guidance._runtime.tables import markdown
from toy_experiments.common.experiment import (
    Config,
    Experiment,
    check_among,
    check_at_least,
)
from toy_experiments.common.images import (
    MEASURES,
    Classifier,
    ImageData,
    Reference,
    draw_sheet,
    measured_samples,
    measures,
    places_by_class,
    trained_transformers,
)
from toy_experiments.common.records import (
    Metrics,
    Record,
    Tables,
    distinct,
    measurement,
    over_seeds,
    plus_minus,
    select,
    single,
    verdict,
)
from toy_experiments.common.rules import RULE_COLORS, RULE_TITLES, make_rule
from toy_experiments.common.store import Arrays, Store
from toy_experiments.common.style import (
    PAGE_WIDTH,
    TRUTH,
    draw_measurements,
    legend_below,
    plain_ticks,
    shades,
)

NUM_CLASSES = 10
HELD_OUT = 540
#: Rules that add a weighted term to CFG.
WITH_TERM = ("skip_layer", "naive_s2", "s2")
RULES = ("unguided", "cfg", "autoguidance", *WITH_TERM)
CHOOSING, SCORING = 0, 1  # sampling keys
_SHEET_ROWS = 2


def load_digits() -> ImageData:
    """The digits, split once and for all with equal fractions of each class.

    1,797 images of 8 x 8 pixels, 540 of them held out, from the UCI repository's
    "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998), as distributed
    with scikit-learn; nothing is downloaded.

    Raises:
        ImportError: without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn; pip install 'gmm-guidance[digits]'."
        ) from error
    found = load()
    images = (found.images.astype(np.float32) / 8.0 - 1.0)[..., None]
    labels = found.target.astype(np.int32)
    train, held = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, random_state=0, stratify=labels
    )
    return ImageData(images[train], labels[train], images[held], labels[held])


_NETWORK = DiTConfig(
    input_size=8,
    patch_size=2,
    in_channels=1,
    width=96,
    depth=8,
    num_heads=4,
    num_labels=NUM_CLASSES,
    learn_sigma=False,
    **SIT,
)


@dataclasses.dataclass(frozen=True)
class DigitsConfig(Config):
    """Configuration of ``digits``.

    Attributes:
        num_samples: samples of each rule and network, 100 to 540: they have the classes
            of as many held-out images.
        network: shape of the networks.
        training: their training; each length is one of its kept steps.
        shown: training lengths that are evaluated, among the kept ones; all if empty.
        solver: solver of the sampler.
        scales: total scales of CFG and AutoGuidance, with 1 (off) among them.
        s2_scales: weights of the terms of S², Naive S² and SkipLayer, > 0.
        num_masks: weak passes of Naive S² at a step.
        sheet_scale: scale of the sheet of samples, among ``scales``.
        sheet_s2_scale: weight in the sheet and in the figure over scales, among
            ``s2_scales``.
    """

    seeds: int = 3
    num_samples: int = HELD_OUT
    num_steps: int = 10
    network: DiTConfig = _NETWORK
    training: DiTTraining = DiTTraining(snapshots=(150, 400, 1000))
    shown: tuple[int, ...] = ()
    solver: Literal["dpmpp_2m", "unipc", "heun"] = "dpmpp_2m"
    scales: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 3.0)
    s2_scales: tuple[float, ...] = (0.1, 0.25, 0.5)
    num_masks: int = 4
    sheet_scale: float = 1.5
    sheet_s2_scale: float = 0.25

    QUICK = Config.QUICK | {
        "num_samples": 180,
        "num_steps": 8,
        "network": dataclasses.replace(_NETWORK, width=48, depth=4),
        "training": DiTTraining(snapshots=(75, 300), batch_size=64),
        "shown": (300,),
        "scales": (1.0, 1.5),
        "s2_scales": (0.25,),
    }

    def __post_init__(self):
        super().__post_init__()
        check_at_least(100, num_samples=self.num_samples)
        if self.num_samples > HELD_OUT:
            raise ValueError(
                f"num_samples must be at most {HELD_OUT}, the number of held-out "
                f"images, got {self.num_samples}."
            )
        check_at_least(2, num_steps=self.num_steps)
        check_at_least(1, num_masks=self.num_masks)
        if 1.0 not in self.scales or len(set(self.scales)) < len(self.scales):
            raise ValueError(
                f"scales must have 1 (off) among them and each once, got {self.scales}."
            )
        if not self.s2_scales or min(self.s2_scales) <= 0:
            raise ValueError(f"s2_scales must be > 0, got {self.s2_scales}.")
        check_among(self.scales, "scales", sheet_scale=self.sheet_scale)
        check_among(self.s2_scales, "s2_scales", sheet_s2_scale=self.sheet_s2_scale)
        check_among(self.kept, "the kept steps", shown=self.lengths)

    @property
    def kept(self) -> tuple[int, ...]:
        """Training lengths after which networks are kept."""
        return self.training.snapshots

    @property
    def lengths(self) -> tuple[int, ...]:
        """Training lengths that are evaluated."""
        return self.shown or self.kept


class Setting(NamedTuple):
    """One rule with its numbers.

    Attributes:
        rule: one of ``RULES``.
        scale: total scale of CFG or AutoGuidance; 1 = off.
        s2_scale: weight of the term that the rule adds to CFG, 0 without one.
    """

    rule: str
    scale: float = 1.0
    s2_scale: float = 0.0

    def __str__(self) -> str:
        return f"{self.rule}, scale {self.scale:g}, weight {self.s2_scale:g}"

    def build(self, depth: int, num_masks: int, weak_model: Any) -> gg.GuidanceRule:
        """The guidance rule, for a network of ``depth`` blocks.

        At scale 1 terms are added to the conditional prediction alone, without a pass
        of weight zero. All terms act in the window of S²; SkipLayer skips the middle
        block.
        """
        base: Any = self.scale
        if self.rule in WITH_TERM and self.scale == 1.0:
            base = gg.Unguided()
        return make_rule(
            self.rule,
            base,
            self.s2_scale,
            weak_model=weak_model,
            num_masks=num_masks,
            skipped=depth // 2,
        )


def settings(
    scales: tuple[float, ...], s2_scales: tuple[float, ...], has_weak_model: bool
) -> dict[str, list[Setting]]:
    """The settings of each rule.

    Scale 1 of CFG and of AutoGuidance is no guidance, the same setting for both.
    AutoGuidance needs a network of a shorter training.
    """
    off = Setting("unguided")
    grid = {"unguided": [off]}
    for rule in ("cfg", "autoguidance") if has_weak_model else ("cfg",):
        grid[rule] = [off if s == 1.0 else Setting(rule, s) for s in scales]
    for rule in WITH_TERM:
        grid[rule] = [Setting(rule, s, w) for s in scales for w in s2_scales]
    return grid


Values = dict[Setting, list[dict[str, float]]]  # measures of each seed


def compute(config: DigitsConfig, store: Store) -> tuple[Tables, Arrays]:
    """Train, sample every rule, measure and compare."""
    data = load_digits()
    reference = Reference(
        data,
        Classifier.fit(data.train_images, data.train_labels, 64),
        config.num_samples,
    )
    networks = [trained(config, store, data, seed) for seed in range(config.seeds)]
    exported: list[Record] = [
        {"seed": seed, "steps": step, "weights": _export(store, network, seed, step)}
        for seed, kept in enumerate(networks)
        for step, network in kept.items()
    ]
    store.reporter.say(f"  trained: {store.root / exported[-1]['weights']}")
    tables: Tables = {"floors": [reference.floors()], "networks": exported}
    tables |= {"settings": [], "best": []}
    for steps in config.lengths:

        def cell(setting: Setting, seed: int, key: int, steps: int = steps) -> Arrays:
            network, weak = (networks[seed][s] for s in (steps, config.kept[0]))
            rule = setting.build(network.num_blocks, config.num_masks, weak)
            schedule = gg.FlowSteps(config.num_steps)
            return store.cell(
                measured_samples, network, rule, reference, schedule, config.solver, key
            )

        def fill(wanted: list[Setting], key: int, steps: int = steps) -> Values:
            wanted = list(dict.fromkeys(wanted))
            found = store.map(
                f"digits, {steps} steps, {'scoring' if key else 'choosing'}",
                lambda *item: measures(cell(*item)),
                [(s, seed, key) for s in wanted for seed in range(config.seeds)],
                program=lambda item: (item[0].rule, item[0].scale == 1.0),
            )
            return {
                s: [found[s, seed, key] for seed in range(config.seeds)] for s in wanted
            }

        grid = settings(config.scales, config.s2_scales, steps > config.kept[0])
        place = {"steps": steps}
        values = fill([s for row in grid.values() for s in row], CHOOSING)
        tables["settings"] += [place | r for r in setting_records(grid, values)]
        best = best_settings(grid, values)
        values = fill(list(best.values()), SCORING)
        tables["best"] += [place | r for r in best_records(best, values)]
    names, sheet = ["held-out\nimages"], [data.held_images]
    for rule, row in settings(
        (1.0, config.sheet_scale), (config.sheet_s2_scale,), steps > config.kept[0]
    ).items():
        names.append(RULE_TITLES[rule])
        sheet.append(cell(row[-1], 0, CHOOSING)["images"])
    places = places_by_class(reference.labels, _SHEET_ROWS)
    return tables, {
        "sheet": np.stack([images[places] for images in sheet]),
        "sheet_names": np.array(names),
    }


def trained(
    config: DigitsConfig, store: Store, data: ImageData, seed: int
) -> dict[int, gg.ProcessStack]:
    """The networks of a seed by training length."""
    return trained_transformers(store, data, config.network, config.training, seed)


def _export(store: Store, network: gg.ProcessStack, seed: int, step: int) -> str:
    """Write the weights for ``full-models``; the path inside the results folder."""
    path = store.folder("digits") / "weights" / f"seed-{seed}-step-{step}.safetensors"
    path.parent.mkdir(exist_ok=True)
    export_weights(network, path, "native")
    return path.relative_to(store.root).as_posix()


def setting_records(grid: dict[str, list[Setting]], values: Values) -> list[Record]:
    """Every setting; rules with a term also minus CFG at the same scale."""
    cfg = {setting.scale: values[setting] for setting in grid["cfg"]}
    return [
        setting._asdict()
        | {"rule": rule}
        | over_seeds(values[setting])
        | (minus_cfg(values[setting], cfg[setting.scale]) if rule in WITH_TERM else {})
        for rule, row in grid.items()
        for setting in row
    ]


def best_settings(grid: dict[str, list[Setting]], values: Values) -> dict[str, Setting]:
    """The setting of each rule with the least mean Fréchet distance over the seeds."""

    def distance(setting: Setting) -> float:
        return float(np.mean([v["frechet"] for v in values[setting]]))

    return {rule: min(row, key=distance) for rule, row in grid.items()}


def best_records(best: dict[str, Setting], values: Values) -> list[Record]:
    """Each rule at its best setting, and minus CFG at its own best.

    ``values`` are of other samples than those that chose the settings.
    """
    result = []
    for rule, setting in best.items():
        record: Record = setting._asdict() | {"rule": rule}  # not "unguided", if off
        record |= over_seeds(values[setting])
        if setting != best["cfg"]:  # both may be no guidance: nothing to compare
            record |= minus_cfg(values[setting], values[best["cfg"]])
        result.append(record)
    return result


def minus_cfg(values: list[dict[str, float]], cfg: list[dict[str, float]]) -> Record:
    """Paired changes of Fréchet distance and accuracy, and what they say."""
    changes = {
        f"{name}_minus_cfg": measurement(
            [a[name] - b[name] for a, b in zip(values, cfg, strict=True)]
        )
        for name in ("frechet", "accuracy")
    }
    return changes | {"verdict": verdict(changes["frechet_minus_cfg"])}


# -- figures ---------------------------------------------------------------------------


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Over the scale, over the weight of S², a trade-off, and a sheet of samples."""
    config = metrics["config"]
    steps = distinct(metrics["tables"]["best"], "steps")[-1]
    title = (
        f"{steps} training steps, scale {config['sheet_scale']:g}, weight "
        f"{config['sheet_s2_scale']:g}"
    )
    return {
        "figure_scales": _draw_scales(metrics),
        "figure_weights": _draw_weights(metrics),
        "figure_tradeoff": _draw_tradeoff(metrics),
        "sheet": draw_sheet(
            [str(name) for name in data["sheet_names"]],
            data["sheet"],
            NUM_CLASSES,
            title,
        ),
    }


def _draw_scales(metrics: Metrics) -> Figure:
    """Each rule over the scale, terms at one weight."""
    weight = metrics["config"]["sheet_s2_scale"]
    figure, panels = _panels(metrics)
    for ax, steps, name in panels:
        for rule in _rules(metrics, steps):
            if rule != "unguided":
                line = _line(metrics, steps, rule, weight)
                _plot(ax, line, name, RULE_COLORS[rule], RULE_TITLES[rule])
        _finish(ax, metrics, steps, name)
    terms = ", ".join(RULE_TITLES[rule] for rule in WITH_TERM)
    figure.suptitle(f"Terms of {terms} at weight {weight:g}", fontsize=8)
    return figure


def _draw_weights(metrics: Metrics) -> Figure:
    """S² at each weight, and CFG."""
    weights = metrics["config"]["s2_scales"]
    figure, panels = _panels(metrics)
    for ax, steps, name in panels:
        cfg = _line(metrics, steps, "cfg", 0.0)
        _plot(ax, cfg, name, RULE_COLORS["cfg"], "CFG")
        for weight, color in zip(weights, shades(len(weights), 0.1), strict=True):
            line = _line(metrics, steps, "s2", weight)
            _plot(ax, line, name, color, f"S², weight {weight:g}")
        _finish(ax, metrics, steps, name)
    return figure


def _draw_tradeoff(metrics: Metrics) -> Figure:
    """Accuracy against Fréchet distance along the scales of each rule."""
    weight = metrics["config"]["sheet_s2_scale"]
    lengths = distinct(metrics["tables"]["settings"], "steps")
    figure, axes = plt.subplots(
        1, len(lengths), figsize=(_width(lengths), 2.5), squeeze=False
    )
    (floor,) = metrics["tables"]["floors"]
    for ax, steps in zip(axes[0], lengths, strict=True):
        for rule in _rules(metrics, steps):
            line = _line(metrics, steps, rule, weight)
            ax.plot(
                [r["frechet"]["mean"] for r in line],
                [r["accuracy"]["mean"] for r in line],
                marker="o",
                markersize=3.0,
                color=RULE_COLORS[rule],
                zorder=4 if rule == "unguided" else 2,
                label=RULE_TITLES[rule],
            )
        real = (floor["frechet"], floor["accuracy"])
        ax.plot(*real, "s", ms=4.0, color=TRUTH, label="held-out images")
        ax.set_xscale("log")
        plain_ticks(ax.xaxis)
        ax.set_xlabel("Fréchet distance (lower is better)")
        ax.set_title(f"{steps} training steps")
    axes[0, 0].set_ylabel("accuracy of the class")
    legend_below(axes[0, -1], 4)
    scales = ", ".join(f"{s:g}" for s in metrics["config"]["scales"])
    figure.suptitle(
        f"Along the scales {scales}; terms at weight {weight:g}", fontsize=8
    )
    return figure


def _panels(metrics: Metrics) -> tuple[Figure, Iterator[tuple[Axes, int, str]]]:
    """A column for each length, Fréchet distance above accuracy."""
    lengths = distinct(metrics["tables"]["settings"], "steps")
    titles = {"frechet": "Fréchet distance", "accuracy": "accuracy of the class"}
    figure, axes = plt.subplots(
        2, len(lengths), figsize=(_width(lengths), 3.9), sharex=True, squeeze=False
    )

    def panels() -> Iterator[tuple[Axes, int, str]]:
        for row, (name, title) in enumerate(titles.items()):
            for ax, steps in zip(axes[row], lengths, strict=True):
                yield ax, steps, name
            axes[row, 0].set_ylabel(title)
        for ax, steps in zip(axes[0], lengths, strict=True):
            ax.set_yscale("log")
            plain_ticks(ax.yaxis)
            ax.set_title(f"{steps} training steps")
        for ax in axes[-1]:
            ax.set_xlabel("scale")
        legend_below(axes[0, -1], 4)

    return figure, panels()


def _width(lengths: list[int]) -> float:
    return min(PAGE_WIDTH, 1.4 + 2.1 * len(lengths))


def _rules(metrics: Metrics, steps: int) -> list[str]:
    return distinct(select(metrics, "settings", steps=steps), "rule")


def _line(metrics: Metrics, steps: int, rule: str, weight: float) -> list[Record]:
    """The settings of a rule over the scales, at one weight if it has any."""
    s2_scale = weight if rule in WITH_TERM else 0.0
    return select(metrics, "settings", steps=steps, rule=rule, s2_scale=s2_scale)


def _plot(ax: Axes, line: list[Record], name: str, color: Any, label: str) -> None:
    style = {"marker": "o", "markersize": 2.5, "elinewidth": 0.7}
    scales, entries = [r["scale"] for r in line], [r[name] for r in line]
    draw_measurements(ax, scales, entries, color=color, label=label, **style)


def _finish(ax: Axes, metrics: Metrics, steps: int, name: str) -> None:
    """No guidance, and the floor of real images."""
    unguided = single(metrics, "settings", steps=steps, rule="unguided")
    color, mean = RULE_COLORS["unguided"], unguided[name]["mean"]
    ax.plot(1.0, mean, "D", ms=4.0, zorder=5, color=color, label="no guidance")
    (floor,) = metrics["tables"]["floors"]
    ax.axhline(floor[name], color=TRUTH, linewidth=0.9, label="held-out images")


# -- text ------------------------------------------------------------------------------

_DECIMALS = {"frechet": 3, "accuracy": 3}


def summarize(metrics: Metrics) -> list[str]:
    """A line for each training length."""
    lines = []
    for steps in distinct(metrics["tables"]["best"], "steps"):
        parts = [
            f"{RULE_TITLES[r['rule']]} {r['frechet']['mean']:.2f}"
            + (f" ({r['verdict']})" if "verdict" in r else "")
            for r in select(metrics, "best", steps=steps)
        ]
        lines.append(f"{steps} steps, Fréchet at best: {', '.join(parts)}")
    return lines


def page(metrics: Metrics) -> str:
    """Findings, figures and tables in Markdown."""
    lengths = distinct(metrics["tables"]["best"], "steps")
    parts = [_finding(metrics, steps) for steps in lengths]
    parts += [
        "![Fréchet distance and accuracy over the scale](figures/digits_scales.png)",
        "![Accuracy against Fréchet distance](figures/digits_tradeoff.png)",
        "![The same noise under each rule](figures/digits_sheet.png)",
        "### Tables",
        _note(metrics),
    ]
    for steps in lengths:
        parts += [f"#### {steps} training steps", _best_table(metrics, steps)]
        for rule in reversed(WITH_TERM):
            parts += [
                f"{RULE_TITLES[rule]} minus CFG at the same scale, Fréchet distance "
                "with 95 % interval:",
                _same_scale_table(metrics, steps, rule),
            ]
    parts.append("Every number with its value for each seed is in `metrics.json`.")
    return "\n\n".join(parts)


def _finding(metrics: Metrics, steps: int) -> str:
    best = {r["rule"]: r for r in select(metrics, "best", steps=steps)}
    cfg, s2 = best["cfg"], best["s2"]
    text = (
        f"**{steps} training steps.** CFG is best {_at(cfg)}: "
        f"{plus_minus(cfg['frechet'])}, accuracy {plus_minus(cfg['accuracy'])}. S² is "
        f"best {_at(s2)}: {plus_minus(s2['frechet'])}, accuracy "
        f"{plus_minus(s2['accuracy'])}. S² minus CFG is "
        f"{_change(s2, 3)}: {s2['verdict']}."
    )
    others = [
        f"{RULE_TITLES[rule]} {_change(record, 3)}, {record['verdict']}"
        for rule, record in best.items()
        if rule not in ("unguided", "cfg", "s2") and "verdict" in record
    ]
    if "verdict" not in best.get("autoguidance", {"verdict": None}):
        others.append("AutoGuidance is best switched off too")
    text += f" The other rules at their best, against CFG: {'; '.join(others)}."
    cells = select(metrics, "settings", steps=steps, rule="s2")
    for guided, title in ((False, "Without CFG"), (True, "On top of CFG")):
        chosen = [c for c in cells if (c["scale"] > 1.0) == guided]
        if chosen:
            counts = Counter(c["verdict"] for c in chosen)
            text += (
                f" {title}, at the same scale, the S² term brings samples closer in "
                f"{counts['closer']} of {len(chosen)} settings and moves them away in "
                f"{counts['farther']}; {counts['undecided']} are undecided."
            )
    return text


def _at(record: Record) -> str:
    weight = f", weight {record['s2_scale']:g}" if record["s2_scale"] else ""
    if record["scale"] == 1.0:
        return f"without CFG (scale 1{weight})" if weight else "switched off (scale 1)"
    return f"at scale {record['scale']:g}{weight}"


def _change(record: Record, decimals: int = 2) -> str:
    """The change of Fréchet distance against CFG with its interval."""
    change = record["frechet_minus_cfg"]
    low, high = change["interval_95"]
    d = f"+.{decimals}f"
    text = f"{change['mean']:{d}} [{low:{d}}, {high:{d}}]"
    return text.replace("-", "−")


def _note(metrics: Metrics) -> str:
    config = metrics["config"]
    network, seeds = config["network"], metrics["seeds"]
    return (
        f"Networks of width {network['width']} and depth {network['depth']}, batches "
        f"of {config['training']['batch_size']}, {seeds} training seeds. "
        f"{config['num_samples']} "
        f"samples of each rule and network, {config['solver']}, {config['num_steps']} "
        f"steps. Mean ± standard error over the training seeds; differences are paired "
        f"by seed, with 95 % intervals by Student's t of {seeds - 1} degrees of "
        f"freedom. *closer* and *farther*: the interval lies on one side of zero.\n\n"
        "The setting of each rule is the one with the least mean Fréchet distance with "
        "one sampling key; all numbers of the first table of a length are of samples "
        "with another key, so that a rule with more settings to choose from gains "
        "nothing by chance of sampling. The networks are the same for both. Tables at "
        "the same scale use the first key.\n\n"
        "The Fréchet distance is to the 1,257 training images, in 64 features of a "
        "classifier; precision to coverage compare with as many held-out images, of "
        "the same classes; the nearest training image is in pixels of [-1, 1]. *Real "
        "images* are held-out images in place of samples (for precision to coverage, "
        "training images)."
    )


def _best_table(metrics: Metrics, steps: int) -> str:
    """Each rule at its best setting, real images first."""
    (floor,) = metrics["tables"]["floors"]
    head = ["rule", "scale", "weight", *MEASURES.values()]
    head += ["Fréchet minus CFG, 95 %", "verdict"]
    values = [f"{floor[name]:.{_DECIMALS.get(name, 2)}f}" for name in MEASURES]
    rows = [["real images", "", "", *values, "", ""]]
    for record in select(metrics, "best", steps=steps):
        scale = f"{record['scale']:g}" + " (off)" * (record["scale"] == 1.0)
        # The best of CFG and of another rule may be no guidance: nothing to compare.
        last = [_change(record), record["verdict"]] if "verdict" in record else ["", ""]
        rows.append(
            [
                RULE_TITLES[record["rule"]],
                "" if record["rule"] == "unguided" else scale,
                f"{record['s2_scale']:g}" if record["s2_scale"] else "",
                *(plus_minus(record[n], _DECIMALS.get(n, 2)) for n in MEASURES),
                *last,
            ]
        )
    return markdown(head, rows)


def _same_scale_table(metrics: Metrics, steps: int, rule: str) -> str:
    """Differences of a rule from CFG: a row for a scale, a column for a weight."""
    records = select(metrics, "settings", steps=steps, rule=rule)
    weights = distinct(records, "s2_scale")
    rows = [
        [f"{scale:g}" + " (CFG off)" * (scale == 1.0)]
        + [f"{_change(r)} {r['verdict']}" for r in records if r["scale"] == scale]
        for scale in distinct(records, "scale")
    ]
    return markdown(["scale", *(f"weight {w:g}" for w in weights)], rows)


EXPERIMENT = Experiment(
    "digits",
    "images",
    "six rules on a transformer trained on handwritten digits, against real images",
    DigitsConfig,
    compute,
    draw,
    summarize,
    page,
    needs=("sklearn", "digits"),
)
