"""Guidance coefficients estimated from data, against a grid search.

For each mixture, width, training length and seed: the coefficients that data alone give
and those of the closed form; the error removed on held-out data, predicted without the
truth and measured; and samples of the calibrated rules, of no guidance
and the best constant CFG and S² of a grid.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from gmm_guidance.analysis.calibration import Calibration
from gmm_guidance.guidance.calibrated import feature_name
from toy_experiments.common.experiment import Experiment
from toy_experiments.common.mixtures import (
    MIXTURE_TITLES,
    MIXTURES,
    MixtureName,
    make_mixture,
    relative_schedule,
)
from toy_experiments.common.records import (
    Metrics,
    Record,
    Tables,
    distinct,
    measurement,
    over_seeds,
    select,
    single,
)
from toy_experiments.common.store import Arrays, Context, Format, Store
from toy_experiments.common.style import (
    COLORS,
    PAGE_WIDTH,
    TRUTH,
    draw_measurements,
    legend_below,
    plain_ticks,
    shades,
    step_axis,
)
from toy_experiments.common.sweep import (
    DISTANCE,
    AnalysisConfig,
    Grid,
    measure_grid,
    measure_rules,
)

#: Rules with their look: title, color, marker.
RULES = {
    "unguided": ("no guidance", "#000000", "o"),
    "best_cfg": ("best CFG", COLORS["cfg"], "s"),
    "best_s2": ("best S²", COLORS["s2"], "s"),
    "calibrated_cfg": ("calibrated CFG", COLORS["cfg"], "^"),
    "calibrated_s2": ("calibrated S²", COLORS["s2"], "^"),
    "calibrated_2": ("calibrated, 2 passes", COLORS["autoguidance"], "v"),
    "calibrated_3": ("calibrated, 3 passes", COLORS["autoguidance"], "D"),
    "calibrated_all": ("calibrated, all blocks", COLORS["naive_s2"], "P"),
}
_CALIBRATION = Format(
    ".json", save=lambda path, found: found.save(path), load=Calibration.load
)


@dataclasses.dataclass(frozen=True)
class CalibrationConfig(AnalysisConfig):
    """Configuration of ``calibration``.

    Attributes:
        wide: width of a second network, on the first mixture; 0 for none.
        grid: the grid search; the phase diagram's.
        calibration_samples: samples of a calibration at each noise level.
    """

    num_samples: int = 2048
    wide: int = 64
    grid: Grid = Grid()
    calibration_samples: int = 16384

    QUICK = AnalysisConfig.QUICK | {
        "num_samples": 512,
        "wide": 0,
        "grid": Grid((1.0, 2.0), (0.0, 0.25)),
        "calibration_samples": 2048,
    }

    def grid_of(self, width: int) -> Grid:
        """The grid search; that of the wide network is CFG and one omega."""
        if width == self.budgets.width:
            return self.grid
        omegas = self.grid.omegas
        omega = 0.25 if 0.25 in omegas else omegas[0]
        return dataclasses.replace(self.grid, s2_scales=(0.0, omega))

    def cases(self) -> list[tuple[MixtureName, int, tuple[int, ...]]]:
        """Mixture, width and training lengths."""
        steps = self.budgets.steps
        cases = [(name, self.budgets.width, steps) for name in MIXTURES]
        if self.wide:
            # The lengths that the phase diagram trains its wide network for.
            cases.append((MIXTURES[0], self.wide, tuple(s for s in steps if s <= 1000)))
        return cases


@dataclasses.dataclass(frozen=True)
class _Found:
    """What was found for one network.

    Attributes:
        calibration: the calibration.
        distances: distance of each rule outside the grid.
        costs: their forward passes per step.
        grid: distances of the grid search, ``[scales, s2_scales]``.
        arrays: what the figures show.
    """

    calibration: Calibration
    distances: dict[str, float]
    costs: dict[str, float]
    grid: np.ndarray
    arrays: Arrays


def compute(config: CalibrationConfig, store: Store) -> tuple[Tables, Arrays]:
    """Calibrate each network, and sample with what was found."""
    tables: Tables = {"rules": [], "networks": [], "exact": []}
    data: Arrays = {}
    for name, width, steps in config.cases():
        run = config.networks(store, name, snapshots=steps, width=width)
        grid = config.grid_of(width)

        def one(step, seed, name=name, run=run, grid=grid) -> _Found:
            network = run.denoiser(seed, step).network
            return _one(config, store, name, network, grid, seed)

        items = [(step, seed) for step in steps for seed in range(config.seeds)]
        found = store.map(f"calibration, {name}, width {width}", one, items)
        for step in steps:
            own = [found[step, seed] for seed in range(config.seeds)]
            place = {"mixture": name, "width": width, "steps": step}
            tables["rules"] += [place | row for row in _rule_records(grid, own)]
            tables["networks"].append(place | _network_record(own))
            for key in own[0].arrays:
                stacked = np.stack([f.arrays[key] for f in own])
                data[f"{name}/{width}/{step}/{key}"] = stacked
    cfg = Grid(config.grid.scales, (0.0,))
    for name in MIXTURES:
        exact = gg.ExactDenoiser(make_mixture(name))
        floor = measure_grid(store, name, exact, cfg, config, 0)[0, 0, DISTANCE]
        tables["exact"].append({"mixture": name, "distance": float(floor)})
    return tables, data


def _one(
    config: CalibrationConfig,
    store: Store,
    name: MixtureName,
    network: Any,
    grid: Grid,
    seed: int,
) -> _Found:
    found = store.cell(
        calibrate, network, name, config.calibration_samples, seed, format=_CALIBRATION
    )
    rules = {
        "unguided": gg.Unguided(),
        "calibrated_cfg": found.rule(features=("cfg",)),
        "calibrated_s2": found.s2_rule(),
        "calibrated_2": found.rule(max_passes=2),
        "calibrated_3": found.rule(max_passes=3),
        "calibrated_all": found.rule(),
    }
    schedule = relative_schedule(name, config.num_steps)
    costs = {
        key: gg.expected_cost(
            rule, schedule, network.num_blocks, solver="dpmpp_2m"
        ).shared
        / config.num_steps
        for key, rule in rules.items()
    }
    values = measure_rules(
        store,
        name,
        network,
        [_widened(rule, found) for rule in rules.values()],
        config.num_samples,
        config.num_steps,
        seed,
    )[:, DISTANCE]
    return _Found(
        found,
        dict(zip(rules, values.tolist(), strict=True)),
        costs,
        measure_grid(store, name, network, grid, config, seed)[..., DISTANCE],
        _arrays(found),
    )


def calibrate(
    context: Context, network: Any, name: MixtureName, num_samples: int, seed: int
) -> Calibration:
    """Calibrate a network on its mixture."""
    return gg.calibrate(
        network, make_mixture(name), jax.random.key(900 + seed), num_samples=num_samples
    )


def _widened(rule: gg.GuidanceRule, found: Calibration) -> gg.GuidanceRule:
    """The same rule with zeros for the other features: one program for all of them."""
    if not isinstance(rule, gg.CalibratedGuidance):
        return rule
    coefficients = np.zeros((len(found.sigmas), len(found.features)))
    for k, feature in enumerate(rule.features):
        coefficients[:, found.features.index(feature)] = np.asarray(rule.coefficients)[
            :, k
        ]
    return gg.CalibratedGuidance(found.sigmas, coefficients, found.features)


def _arrays(found: Calibration) -> Arrays:
    """What the figures show: coefficients both ways, error removed both ways."""
    data_fit, exact_fit = found.fit(), found.fit(target="exact")
    s2_data = found.fit_random_block()
    s2_exact = found.fit_random_block(target="exact")
    really, _ = found.removed(data_fit.coefficients, found.features, "exact")
    return {
        "sigmas": found.sigmas,
        "error": found.error,
        "predicted": data_fit.removed,
        "predicted_error": data_fit.removed_error,
        "removed": really,
        "coefficients": data_fit.coefficients,
        "coefficients_error": data_fit.standard_error,
        "exact_coefficients": exact_fit.coefficients,
        "s2": s2_data.coefficients,
        "s2_error": s2_data.standard_error,
        "s2_exact": s2_exact.coefficients,
    }


def _rule_records(grid: Grid, found: list[_Found]) -> list[Record]:
    """Distance of each rule over seeds, and its change against the best CFG."""
    sweep = np.stack([f.grid for f in found])  # [seeds, scales, s2_scales]
    # The best of the grid on average over seeds; then its distance at each seed.
    cfg_at = int(sweep[..., grid.zero].mean(0).argmin())
    s2_only = np.delete(sweep, grid.zero, axis=2)
    a, b = np.unravel_index(s2_only.mean(0).argmin(), s2_only.shape[1:])
    best_cfg = sweep[:, cfg_at, grid.zero]
    records: list[Record] = [
        {"rule": "best_cfg", "scale": grid.scales[cfg_at], "s2_scale": 0.0}
        | {"distance": measurement(best_cfg)},
        {"rule": "best_s2", "scale": grid.scales[a], "s2_scale": grid.omegas[b]}
        | {"distance": measurement(s2_only[:, a, b])},
    ]
    for rule in found[0].distances:
        distance = np.array([f.distances[rule] for f in found])
        records.append(
            {
                "rule": rule,
                "distance": measurement(distance),
                "minus_best_cfg": measurement(distance - best_cfg),
                "passes_per_step": measurement([f.costs[rule] for f in found]),
            }
        )
    return records


def _network_record(found: list[_Found]) -> Record:
    """Squared error removed by all blocks, over seeds, and the features chosen."""
    removed = []
    for f in found:
        a, weights = f.arrays, f.calibration.weights
        total = float(weights @ a["error"])
        removed.append(
            {
                "removed_predicted": float(weights @ a["predicted"]),
                "removed": float(weights @ a["removed"]),
                "removed_fraction": float(weights @ a["removed"]) / total,
                "smallest_fraction_at_a_level": float(
                    (a["removed"] / a["error"]).min()
                ),
            }
        )
    return over_seeds(removed) | {
        "first_ranked_features": [
            feature_name(f.calibration.ranking()[0][0]) for f in found
        ],
        "features_of_3_passes": [
            [feature_name(x) for x in f.calibration.pareto(3)[-1].features]
            for f in found
        ],
    }


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Distances, coefficients both ways, error removed both ways."""
    return {
        "figure_distance": _draw_distance(metrics),
        "figure_coefficients": _draw_coefficients(metrics, data),
        "figure_removed": _draw_removed(metrics, data),
    }


def _cases(metrics: Metrics) -> list[tuple[str, int]]:
    records = metrics["tables"]["networks"]
    return list(dict.fromkeys((r["mixture"], r["width"]) for r in records))


def _draw_distance(metrics: Metrics) -> Figure:
    cases = _cases(metrics)
    columns = 2
    rows = -(-len(cases) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(PAGE_WIDTH, 2.3 * rows + 0.6), squeeze=False
    )
    for ax in axes.flat[len(cases) :]:
        ax.set_axis_off()
    for ax, (name, width) in zip(axes.flat, cases, strict=False):
        for j, (rule, (title, color, marker)) in enumerate(RULES.items()):
            records = select(metrics, "rules", mixture=name, width=width, rule=rule)
            steps = distinct(records, "steps")
            draw_measurements(
                ax,
                np.array(steps) * 1.04 ** (j - len(RULES) / 2),
                [r["distance"] for r in records],
                color=color,
                marker=marker,
                markersize=3,
                linewidth=0.6,
                alpha=0.9,
                capsize=0,
                label=title,
            )
        floor = single(metrics, "exact", mixture=name)["distance"]
        ax.axhline(floor, color=TRUTH, label="exact denoiser")
        ax.set_title(f"{MIXTURE_TITLES[name]}, width {width}")
        step_axis(ax, steps)
        ax.set_yscale("log")
        plain_ticks(ax.yaxis)
        ax.set_ylabel("W2 to p(x | label)")
    for ax in axes[-1]:
        ax.set_xlabel("training steps")
    legend_below(axes[0, 0], 3)
    return figure


def _draw_coefficients(metrics: Metrics, data: Arrays) -> Figure:
    """CFG and S² coefficients from data and from the closed form, first seed."""
    cases = _cases(metrics)[: len(MIXTURES)]
    figure, axes = plt.subplots(
        2, len(cases), figsize=(PAGE_WIDTH, 3.8), sharex="col", squeeze=False
    )
    for column, (name, width) in enumerate(cases):
        records = select(metrics, "networks", mixture=name, width=width)
        lengths = distinct(records, "steps")
        for color, step in zip(shades(len(lengths)), lengths, strict=True):
            prefix = f"{name}/{width}/{step}"
            sigmas = data[f"{prefix}/sigmas"][0]
            for row in (0, 1):
                ax = axes[row, column]
                ax.errorbar(
                    sigmas,
                    data[f"{prefix}/s2"][0][:, row],
                    yerr=data[f"{prefix}/s2_error"][0][:, row],
                    color=color,
                    linewidth=0.8,
                    label=f"{step} steps",
                )
                exact = data[f"{prefix}/s2_exact"][0][:, row]
                ax.plot(sigmas, exact, "x", color=color, markersize=3.5)
                ax.set_xscale("log")
                ax.axhline(0.0, color="black", linewidth=0.5)
        axes[0, column].set_title(MIXTURE_TITLES[name])
        axes[1, column].set_xlabel("noise level σ")
    axes[0, 0].set_ylabel("λ*(σ) − 1")
    axes[1, 0].set_ylabel("ω*(σ)")
    figure.suptitle(
        "Calibrated S²: lines from data (± standard error), crosses from the closed "
        "form; first seed",
        fontsize=8,
    )
    legend_below(axes[0, 0], 5)
    return figure


def _draw_removed(metrics: Metrics, data: Arrays) -> Figure:
    cases = _cases(metrics)
    figure, axes = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 3.2), width_ratios=(1, 1.15))
    markers = ("o", "s", "^", "D")
    values = []
    for marker, (name, width) in zip(markers, cases, strict=False):
        records = select(metrics, "networks", mixture=name, width=width)
        steps = distinct(records, "steps")
        for step in steps:
            prefix = f"{name}/{width}/{step}"
            predicted, found = data[f"{prefix}/predicted"], data[f"{prefix}/removed"]
            shown = found > 0
            axes[0].plot(
                found[shown],
                np.maximum(predicted[shown], 1e-9),
                marker,
                markersize=2,
                alpha=0.5,
                color=COLORS["autoguidance"],
            )
            values.append(found[shown])
        draw_measurements(
            axes[1],
            steps,
            [r["removed_fraction"] for r in records],
            marker=marker,
            markersize=3,
            label=f"{MIXTURE_TITLES[name]}, width {width}",
        )
    every = np.concatenate(values)
    ends = [every.min(), every.max()]
    axes[0].plot(ends, ends, color="black", linewidth=0.7)
    axes[0].set(xscale="log", yscale="log", ylim=(ends[0] / 3, ends[1] * 3))
    axes[0].set_xlabel("squared error removed, closed form")
    axes[0].set_ylabel("predicted from held-out data")
    axes[1].axhline(0.0, color="black", linewidth=0.5)
    step_axis(axes[1], metrics["config"]["budgets"]["steps"])
    axes[1].set(ylim=(-0.1, 1.05), xlabel="training steps")
    axes[1].set_ylabel("fraction of the squared error removed")
    axes[1].legend(fontsize=6)
    return figure


def summarize(metrics: Metrics) -> list[str]:
    """Distances of the calibrated rules and of the best of the grid."""
    lines = []
    for record in metrics["tables"]["networks"]:
        place = {k: record[k] for k in ("mixture", "width", "steps")}
        found = {r["rule"]: r for r in select(metrics, "rules", **place)}
        shown = ", ".join(
            f"{title} {found[rule]['distance']['mean']:.3f}"
            for rule, (title, _, _) in RULES.items()
        )
        lines.append(
            f"{MIXTURE_TITLES[record['mixture']]}, width {record['width']}, "
            f"{record['steps']} steps: W2 {shown}"
        )
    return lines


EXPERIMENT = Experiment(
    "calibration",
    "analysis",
    "guidance coefficients estimated from data, against a grid search",
    CalibrationConfig,
    compute,
    draw,
    summarize,
)
