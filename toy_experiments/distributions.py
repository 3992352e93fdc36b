"""The paper's toy figure, with the exact answer and with numbers.

Fig. 3 of arXiv 2508.12880 shows final samples of a network under no guidance, CFG,
AutoGuidance, Naive S² and S², without numbers and without saying how long the network
was trained. Here each rule is run with the exact denoiser, with an under-trained and
with a well-trained network, over training seeds; and with a paper-like network at the
larger scales of practice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment
from toy_experiments.common.mixtures import MIXTURE_TITLES, balanced_labels
from toy_experiments.common.paper import (
    NETWORK_TITLES,
    NETWORKS,
    PAPER_MIXTURES,
    PaperConfig,
    Setting,
    line_density,
)
from toy_experiments.common.records import (
    Metrics,
    Record,
    Tables,
    exact_value,
    over_seeds,
    paired_change,
    plus_minus,
    select,
    single,
)
from toy_experiments.common.rules import (
    COLUMNS,
    METHODS,
    RULE_COLORS,
    RULE_TITLES,
    exact_name,
)
from toy_experiments.common.store import Arrays, Store
from toy_experiments.common.style import PAGE_WIDTH, TRUTH

_BINS = np.linspace(-9.0, 9.0, 109)
_LIMIT = 8.5  # of the axes in 2-D
_DRAWN = 800  # points drawn in a 2-D panel, all of the first seed
_DISTANCES = {"two_modes": ("w2", "W2"), "four_corners": ("sliced_w2", "sliced W2")}


def compute(config: PaperConfig, store: Store) -> tuple[Tables, Arrays]:
    """Samples and metrics of each rule, denoiser and mixture."""
    tables: Tables = {"samples": [], "paper_like": [], "floor": []}
    data: Arrays = {"bins": _BINS}
    settings = dict(
        zip(
            PAPER_MIXTURES,
            config.settings(store, *PAPER_MIXTURES, paper_like=True),
            strict=True,
        )
    )
    panels = _panels(config)

    def sample_and_measure(name, panel, seed):
        samples = _sample(store, settings[name], panel, seed)
        labels = balanced_labels(settings[name].mixture, len(samples))
        return samples, gg.metrics.summarize(samples, labels, settings[name].mixture)

    items = [
        (name, panel, seed)
        for panel in panels
        for name, setting in settings.items()
        # On a line, where noise is quantiles, the exact denoiser needs no seeds.
        for seed in range(
            1 if panel.network == "exact" and setting.mixture.dim == 1 else config.seeds
        )
    ]
    measured = store.map(
        "distributions",
        sample_and_measure,
        items,
        program=lambda item: (item[0], item[1].program),
        show=lambda name, panel, seed: f"{name}, {panel.key}, seed {seed}",
    )
    for name, setting in settings.items():
        labels = balanced_labels(setting.mixture, setting.num_samples)
        floor = gg.metrics.truth_floor(jax.random.key(7), setting.mixture, labels)
        tables["floor"].append({"mixture": name, **floor})
        for panel in panels:
            found = [measured[item] for item in items if item[:2] == (name, panel)]
            samples = [one for one, _ in found]
            numbers = _over_seeds([values for _, values in found])
            place: Record = {"mixture": name, "network": panel.network}
            place |= {"steps": panel.steps}
            place["rule"] = panel.method
            if panel.scale is None:
                tables["samples"].append(place | numbers)
            else:
                place["scale"] = panel.scale
                tables["paper_like"].append(place | numbers)
            if not panel.high:
                data[f"{name}/{panel.key}"] = (
                    np.stack([_density(s) for s in samples])
                    if setting.mixture.dim == 1
                    else samples[0][:_DRAWN].astype(np.float32)
                )
    return tables, data


class _Panel(NamedTuple):
    """What is sampled.

    Attributes:
        network: the denoiser.
        steps: its training length.
        method: the rule.
        scale: the scale of CFG in the paper-like rows, ``None`` in the others.
        high: whether it is the second scale, in the numbers alone.
    """

    network: str
    steps: int | None
    method: str
    scale: float | None = None
    high: bool = False

    @property
    def key(self) -> str:
        """Name of its array."""
        row = "paper_like_exact" if self.is_paper_like_exact else self.network
        return f"{row}/{self.steps}/{self.method}"

    @property
    def is_paper_like_exact(self) -> bool:
        """Whether the exact denoiser is sampled as the paper-like network is."""
        return self.network == "exact" and self.scale is not None

    @property
    def program(self) -> Any:
        """What tells its compiled program from others."""
        is_exact = self.network == "exact"
        kind = exact_name(self.method) if is_exact else self.method
        return is_exact, self.scale is None, kind.removesuffix("_strong")


def _panels(config: PaperConfig) -> list[_Panel]:
    """Panels of the figure, and those in the numbers alone."""
    own = config.paper_like
    panels: list[_Panel] = []
    for network, steps in config.rows():
        scale = own.cfg_scale if network == "paper_like" else None
        panels += [_Panel(network, steps, m, scale) for m in COLUMNS]
        if network == "paper_like":
            panels += [
                _Panel(network, steps, m, own.high_cfg_scale, True)
                for m in ("cfg", "s2", "s2_strong")
            ]
    for high, scale in enumerate((own.cfg_scale, own.high_cfg_scale)):
        panels.append(_Panel("exact", None, "cfg", scale, bool(high)))
    return panels


def _sample(store: Store, setting: Setting, panel: _Panel, seed: int) -> np.ndarray:
    """Final samples, ``[n, d]``."""
    if panel.is_paper_like_exact:
        rule: gg.GuidanceRule = gg.CFG(panel.scale)  # type: ignore[arg-type]
        sampler = "paper_like"
        return setting.paths(store, "exact", rule, seed, sampler=sampler)[-1]
    rule = setting.rule(panel.network, panel.method, seed, panel.steps, panel.high)
    return setting.samples(store, panel.network, rule, seed, steps=panel.steps)


def _over_seeds(values: list[dict[str, float]]) -> Record:
    """Metrics over seeds; of the exact denoiser on a line without noise."""
    if len(values) == 1:
        # The energy distance is against random samples; its noise is not the rule's.
        values[0].pop("energy_distance")
        return {k: exact_value(v) for k, v in values[0].items()}
    return over_seeds(values)


def _density(samples: np.ndarray) -> np.ndarray:
    return np.histogram(samples, bins=_BINS, density=True)[0]


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """One figure for each mixture, and an overview of one corner."""
    figures = {
        f"figure_{dim}d": _draw(dim, name, metrics, data)
        for dim, name in enumerate(PAPER_MIXTURES, start=1)
    }
    return {"overview": _draw_overview(metrics, data)} | figures


def _draw_overview(metrics: Metrics, data: Arrays) -> Figure:
    """Corner (4, 4): CFG with exact scores, and what S² changes in two networks."""
    own, paper_like = metrics["config"]["guidance"], metrics["config"]["paper_like"]
    well = metrics["config"]["networks"]["well_steps"]
    steps = max(paper_like["steps"])
    panels: list[tuple[str, Record, tuple[str, ...]]] = [
        (
            "exact scores",
            {"network": "exact", "steps": None},
            ("unguided", "cfg"),
        ),
        (
            f"pre-normalized blocks,\nEDM prediction, {well:,} steps",
            {"network": "well", "steps": well},
            ("cfg", "s2_strong"),
        ),
        (
            f"plain blocks,\nnoise prediction, {steps:,} steps",
            {"network": "paper_like", "steps": steps, "scale": paper_like["cfg_scale"]},
            ("cfg", "s2_strong"),
        ),
    ]
    figure, axes = plt.subplots(
        1, 3, figsize=(PAGE_WIDTH, 3.3), sharex=True, sharey=True
    )
    for ax, (title, place, rules) in zip(axes, panels, strict=True):
        for radius, alpha in ((2, 0.35), (1, 0.5)):
            ax.add_patch(Circle((4, 4), radius, color=TRUTH, alpha=alpha, lw=0))
        notes, records = [], []
        for rule in rules:
            key = f"four_corners/{place['network']}/{place['steps']}/{rule}"
            labels = np.arange(len(data[key])) % 4
            points, color = data[key][labels == 3], RULE_COLORS[rule]
            ax.plot(*points.T, ".", color=color, ms=2, alpha=0.45, rasterized=True)
            center, spread = points.mean(axis=0), points.std(axis=0).mean()
            circle = Circle(center, spread, fill=False, color=color, lw=1.4)
            ax.add_patch(circle)
            ax.plot(*center, "+", color=color, ms=7, mew=1.4)
            table = "paper_like" if "scale" in place else "samples"
            record = single(metrics, table, mixture="four_corners", rule=rule, **place)
            shown = RULE_TITLES | {"s2_strong": "S²"}
            notes.append(
                f"{shown[rule]}: shift {plus_minus(record['mode_shift'], 2)}, "
                f"width × {plus_minus(record['mode_width_ratio'], 2)}"
            )
            records.append(record)
            ax.plot([], [], ".", color=color, label=shown[rule])
        if rules[-1] != "cfg":
            change = paired_change(records[1], records[0], "mode_shift")
            low, high = change["interval_95"]
            text = f"{change['mean']:.2f} ({low:.2f} to {high:.2f})".replace("-", "−")
            notes.append(f"shift by S²: {text}, {_direction(low, high)}")
        notes += [""] * (3 - len(notes))
        ax.set_title(title, fontsize=7.5)
        ax.set_xlabel("\n".join(notes), fontsize=6.2)
        ax.legend(loc="upper left", frameon=False, handletextpad=0.1)
        ax.set(xlim=(0.5, 9.5), ylim=(0.5, 9.5), aspect="equal")
        ax.set(xticks=[2, 4, 6, 8], yticks=[2, 4, 6, 8])
    figure.supxlabel(
        "one of four classes; gray: the truth to 1 and 2 standard deviations; circles: "
        "mean and standard deviation of the samples of the first seed;\nscale of CFG "
        f"{own['cfg_scale']:g}, {own['cfg_scale']:g} and {paper_like['cfg_scale']:g}; "
        f"ω = {own['strong_s2_scale']:g}; numbers: all classes, ± standard error and "
        f"95 % intervals over {metrics['seeds']} training seeds",
        fontsize=6.2,
    )
    return figure


def _direction(low: float, high: float) -> str:
    """What an interval of a change of the outward shift says."""
    if low > 0.0:
        return "outward"
    return "inward" if high < 0.0 else "undecided"


def _draw(dim: int, name: str, metrics: Metrics, data: Arrays) -> Figure:
    config = metrics["config"]
    rows: list[tuple[str, int | None]] = [
        (r["network"], r["steps"])
        for table in ("samples", "paper_like")
        for r in select(metrics, table, mixture=name, rule="unguided")
    ]
    figure, axes = plt.subplots(
        len(rows),
        len(COLUMNS),
        figsize=(PAGE_WIDTH, (0.4 if dim == 1 else 0.6) + 1.5 * len(rows)),
        sharex=True,
        sharey=True,
    )
    for row, (network, steps) in enumerate(rows):
        paper_like = network == "paper_like"
        for column, method in enumerate(COLUMNS):
            ax, color = axes[row, column], RULE_COLORS[method]
            panel = data[f"{name}/{network}/{steps}/{method}"]
            if dim == 1:
                _draw_line(ax, config["std"], data["bins"], panel, color)
            else:
                _draw_plane(ax, config["std"], panel, color)
            place: Record = {"network": network, "steps": steps, "rule": method}
            if paper_like:
                place["scale"] = config["paper_like"]["cfg_scale"]
            table = "paper_like" if paper_like else "samples"
            record = single(metrics, table, mixture=name, **place)
            ax.set_xlabel(_numbers(record, dim), fontsize=5.6)
            if row == 0:
                strong = config["guidance"]["strong_s2_scale"]
                title_of = RULE_TITLES | {"s2_strong": f"S², ω = {strong:g}"}
                ax.set_title(title_of[method], color=color)
        axes[row, 0].set_ylabel(_row_title(config, network, steps), fontsize=6.5)
    field, title = _DISTANCES[name]
    floor = single(metrics, "floor", mixture=name)[field]["mean"]
    figure.supxlabel(
        f"gray: the truth p(x | label); {title} of as many independent "
        f"true samples: {floor:.3f}; "
        f"shift outwards in mode standard deviations;\n"
        f"± standard error over {metrics['seeds']} training seeds; ω = "
        f"{config['guidance']['s2_scale']:g} where none is given",
        fontsize=6.2,
    )
    return figure


def _row_title(config: Record, network: str, steps: int | None) -> str:
    scale = config["paper_like" if network == "paper_like" else "guidance"]["cfg_scale"]
    length = f"{steps:,} steps, " if steps else ""
    return f"{NETWORK_TITLES[network]}\n{length}λ = {scale:g}"


def _draw_line(ax: Axes, std: float, bins: Any, panel: np.ndarray, color: str) -> None:
    x = np.linspace(bins[0], bins[-1], 400)
    truth = line_density(x, std)
    ax.fill_between(x, truth, color=TRUTH, alpha=0.55, linewidth=0)
    for density in panel if len(panel) > 1 else ():
        ax.stairs(density, bins, color=color, alpha=0.25, linewidth=0.5)
    ax.stairs(panel.mean(axis=0), bins, color=color, linewidth=1.2)
    ax.set_ylim(0.0, 2.2 * truth.max())
    ax.set_xlim(bins[0], bins[-1])
    ax.set_xticks([-8, -4, 0, 4, 8])
    ax.set_yticks([])


def _draw_plane(ax: Axes, std: float, panel: np.ndarray, color: str) -> None:
    for mean in ((-4, -4), (-4, 4), (4, -4), (4, 4)):
        for radius, alpha in ((3, 0.25), (2, 0.35), (1, 0.5)):
            ax.add_patch(Circle(mean, radius * std, color=TRUTH, alpha=alpha, lw=0))
    ax.plot(*panel.T, ".", color=color, markersize=1.1, alpha=0.7, rasterized=True)
    ax.set(xlim=(-_LIMIT, _LIMIT), ylim=(-_LIMIT, _LIMIT), aspect="equal")
    ax.set_xticks([-4, 0, 4])
    ax.set_yticks([-4, 0, 4])


def _numbers(record: Record, dim: int) -> str:
    """The lines beneath a panel."""
    distance, label = ("w2", "W2") if dim == 1 else ("sliced_w2", "SW2")
    return (
        f"{label} {plus_minus(record[distance], 3)}\n"
        f"shift {plus_minus(record['mode_shift'], 2)}\n"
        f"width × {plus_minus(record['mode_width_ratio'], 2)}"
    )


def summarize(metrics: Metrics) -> list[str]:
    """Distance to the truth of each rule."""
    lines = []
    for name, (field, title) in _DISTANCES.items():
        for network in NETWORKS:
            place = {"mixture": name, "network": network}
            values = ", ".join(
                f"{RULE_TITLES[m]} "
                f"{single(metrics, 'samples', rule=m, **place)[field]['mean']:.3f}"
                for m in METHODS
            )
            lines.append(
                f"{MIXTURE_TITLES[name]}, {NETWORK_TITLES[network]}: {title} {values}"
            )
        for cfg in select(
            metrics, "paper_like", network="paper_like", mixture=name, rule="cfg"
        ):
            same = {k: cfg[k] for k in ("mixture", "network", "steps", "scale")}
            changes = []
            for method in ("s2", "s2_strong"):
                record = single(metrics, "paper_like", rule=method, **same)
                low, high = paired_change(record, cfg, field)["interval_95"]
                changes.append(f"{RULE_TITLES[method]} {low:+.3f} to {high:+.3f}")
            lines.append(
                f"{MIXTURE_TITLES[name]}, paper-like, {cfg['steps']} steps, λ = "
                f"{cfg['scale']:g}: {title} of CFG {cfg[field]['mean']:.3f}; change of "
                f"{', '.join(changes)}"
            )
    return lines


EXPERIMENT = Experiment(
    "distributions",
    "paper",
    "final samples of each rule: exact, under-trained and well-trained, 1-D and 2-D",
    PaperConfig,
    compute,
    draw,
    summarize,
)
