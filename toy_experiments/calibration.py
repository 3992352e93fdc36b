"""Guidance coefficients read off data, against a grid search.

For each mixture, width, training length and seed: the coefficients that data alone give
beside those of the closed form; the error removed on held-out data as predicted without
the truth and as really found; and samples of the calibrated rules beside no guidance
and the best constant CFG and S² of a grid.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from gmm_guidance.analysis.calibration import Calibration
from gmm_guidance.guidance.calibrated import feature_name
from toy_experiments.common.experiment import Experiment, Metrics, over_seeds
from toy_experiments.common.style import (
    COLOURS,
    PAGE_WIDTH,
    TRUTH,
    plain_ticks,
    step_axis,
)
from toy_experiments.common.sweeps import (
    METRICS,
    Grid,
    measure_rule,
    over_two_threads,
    sweep_cell,
)
from toy_experiments.common.toys import (
    TOY_TITLES,
    TOYS,
    Budgets,
    ToyName,
    make_toy,
    toy_schedule,
    train_toy,
)
from toy_experiments.common.workspace import Arrays, Workspace

_DISTANCE = METRICS.index("distance")
RULES = (
    "no guidance",
    "calibrated CFG",
    "calibrated S²",
    "calibrated, 2 passes",
    "calibrated, 3 passes",
    "calibrated, all blocks",
)
GRID_RULES = ("best CFG", "best S²")


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """Configuration.

    Attributes:
        seeds: training seeds, at least 2.
        budgets: training lengths and network; those of the phase diagram.
        wide: width of a second network, on the first mixture; 0 for none.
        grid: the grid search, and how samples are drawn.
        num_samples: samples of a calibration at each noise level.
    """

    seeds: int = 5
    budgets: Budgets = Budgets()
    wide: int = 64
    grid: Grid = Grid()
    num_samples: int = 16384

    def __post_init__(self):
        if self.seeds < 2:
            raise ValueError(
                f"seeds must be at least 2, since intervals are over seeds, got "
                f"{self.seeds}."
            )

    @classmethod
    def quick(cls) -> CalibrationConfig:
        """Two seeds, two training lengths, a coarse grid: the phase diagram's."""
        return cls(
            seeds=2,
            budgets=Budgets(steps=(50, 300), batch_size=256),
            wide=0,
            grid=Grid((1.0, 2.0), (0.0, 0.25), num_samples=512, num_steps=16),
            num_samples=2048,
        )

    def grid_of(self, width: int) -> Grid:
        """The grid search; that of the wide network is CFG and one omega."""
        if width == self.budgets.width:
            return self.grid
        omegas = [w for w in self.grid.s2_scales if w]
        omega = 0.25 if 0.25 in omegas else omegas[0]
        return dataclasses.replace(self.grid, s2_scales=(0.0, omega))

    def cases(self) -> list[tuple[ToyName, int, tuple[int, ...]]]:
        """Mixture, width and training lengths."""
        steps = self.budgets.steps
        cases = [(toy, self.budgets.width, steps) for toy in TOYS]
        if self.wide:
            # The lengths that the phase diagram trains its wide network for.
            cases.append((TOYS[0], self.wide, tuple(s for s in steps if s <= 1000)))
        return cases


def compute(config: CalibrationConfig, workspace: Workspace) -> tuple[Metrics, Arrays]:
    """Calibrate each network, and sample with what was found."""
    metrics: Metrics = {"cases": {}}
    data: Arrays = {}
    for toy, width, steps in config.cases():
        training = config.budgets.training(snapshots=steps, width=width)
        run = train_toy(workspace, toy, training, config.seeds)
        items = [(step, seed) for step in steps for seed in range(config.seeds)]
        name = f"{toy}, width {width}"
        with workspace.reporter.task(f"calibration, {name}", len(items)) as task:

            def one(item, toy=toy, run=run, task=task):
                found = _one(config, workspace, toy, run, *item)
                task.advance(detail=f"{item[0]} steps, seed {item[1]}")
                return found

            first = one(items[0])
            found = [first, *over_two_threads(one, items[1:])]
        result: Metrics = {}
        for step in steps:
            own = [f for f, item in zip(found, items, strict=True) if item[0] == step]
            result[f"{step} steps"] = _numbers(own)
            for key in own[0]["arrays"]:
                data[f"{name}/{step}/{key}"] = np.stack([f["arrays"][key] for f in own])
        metrics["cases"][name] = result
        data[f"{name}/floor"] = np.array(
            sweep_cell(workspace, toy, None, 0, 0, config.grid)[0, 0, _DISTANCE]
        )
    return metrics, data


def _one(config, workspace, toy: ToyName, run, step: int, seed: int) -> dict[str, Any]:
    network = run.denoiser(seed, step).network
    identity = {
        "toy": toy,
        "training": repr(run.config),
        "seeds": run.num_seeds,
        "step": step,
        "seed": seed,
        "num_samples": config.num_samples,
    }
    found = _calibrated(workspace, identity, network, toy, config, seed)
    rules = _rules(found)
    costs = _costs(config, rules, toy, network.num_blocks)

    def compute() -> Arrays:
        values = [
            measure_rule(
                toy,
                network,
                _widened(rule, found),
                config.grid,
                seed,
                mesh=workspace.mesh,
            )
            for rule in rules.values()
        ]
        return {"metrics": np.array(values)}

    cell = workspace.cell("calibrated", identity | {"grid": repr(config.grid)}, compute)
    distances = dict(zip(rules, cell["metrics"][:, _DISTANCE].tolist(), strict=True))
    grid = config.grid_of(run.config.width)
    sweep = sweep_cell(workspace, toy, run, step, seed, grid)[..., _DISTANCE]
    return {
        "distances": distances,
        "costs": costs,
        "sweep": sweep,
        "grid": grid,
        "calibration": found,
        "arrays": _arrays(found),
    }


def _calibrated(workspace, identity, network, toy, config, seed) -> Calibration:
    path = workspace.cell_path("calibration", identity, ".json")
    if workspace.is_stored(path):
        try:
            return Calibration.load(path)
        except ValueError:
            path.unlink()  # damaged: measure again
    found = gg.calibrate(
        network,
        make_toy(toy),
        jax.random.key(900 + seed),
        num_samples=config.num_samples,
    )
    found.save(path)
    workspace.mark_made(path)
    return found


def _rules(found: Calibration) -> dict[str, gg.GuidanceRule]:
    return {
        "no guidance": gg.Unguided(),
        "calibrated CFG": found.rule(features=("cfg",)),
        "calibrated S²": found.s2_rule(),
        "calibrated, 2 passes": found.rule(max_passes=2),
        "calibrated, 3 passes": found.rule(max_passes=3),
        "calibrated, all blocks": found.rule(),
    }


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


def _costs(config, rules, toy, num_blocks) -> dict[str, float]:
    """Forward passes per step."""
    schedule = toy_schedule(toy, config.grid.num_steps)
    return {
        name: gg.expected_cost(rule, schedule, num_blocks, solver="dpmpp_2m").shared
        / config.grid.num_steps
        for name, rule in rules.items()
    }


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


def _numbers(found: list[dict[str, Any]]) -> Metrics:
    """Distances, costs and error removed, over seeds."""
    result: Metrics = {
        "distance": over_seeds([f["distances"] for f in found]),
        "passes per step": over_seeds([f["costs"] for f in found]),
    }
    sweep = np.stack([f["sweep"] for f in found])  # [seeds, scales, s2_scales]
    grid: Grid = found[0]["grid"]
    # The best of the grid on average over seeds; then its distance at each seed.
    cfg_at = int(sweep[..., grid.zero].mean(0).argmin())
    s2_only = np.delete(sweep, grid.zero, axis=2)
    s2_scales = [w for w in grid.s2_scales if w]
    s2_at = np.unravel_index(s2_only.mean(0).argmin(), s2_only.shape[1:])
    best_cfg, best_s2 = sweep[:, cfg_at, grid.zero], s2_only[:, s2_at[0], s2_at[1]]
    result["distance"] |= over_seeds(
        [{"best CFG": a, "best S²": b} for a, b in zip(best_cfg, best_s2, strict=True)]
    )
    result["best CFG scale"] = grid.scales[cfg_at]
    result["best S² scale"] = grid.scales[s2_at[0]]
    result["best S² omega"] = s2_scales[s2_at[1]]
    result["change against best CFG"] = over_seeds(
        [
            {name: f["distances"][name] - a for name in RULES}
            for f, a in zip(found, best_cfg, strict=True)
        ]
    )
    removed = []
    for f in found:
        a, c = f["arrays"], f["calibration"]
        weights = c.weights
        removed.append(
            {
                "predicted": float(weights @ a["predicted"]),
                "found": float(weights @ a["removed"]),
                "share": float(weights @ a["removed"] / (weights @ a["error"])),
                "smallest share at a level": float((a["removed"] / a["error"]).min()),
            }
        )
    result["squared error removed by all blocks"] = over_seeds(removed)
    result["first ranked features"] = [
        feature_name(f["calibration"].ranking()[0][0]) for f in found
    ]
    result["features of 3 passes"] = [
        [feature_name(x) for x in f["calibration"].pareto(3)[-1].features]
        for f in found
    ]
    return json.loads(json.dumps(result))


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Distances, coefficients both ways, error removed both ways."""
    return {
        "figure_distance": _draw_distance(metrics, data),
        "figure_coefficients": _draw_coefficients(metrics, data),
        "figure_removed": _draw_removed(metrics, data),
    }


_LOOKS = {
    "no guidance": ("#000000", "o"),
    "best CFG": (COLOURS["cfg"], "s"),
    "best S²": (COLOURS["s2"], "s"),
    "calibrated CFG": (COLOURS["cfg"], "^"),
    "calibrated S²": (COLOURS["s2"], "^"),
    "calibrated, 2 passes": (COLOURS["autoguidance"], "v"),
    "calibrated, 3 passes": (COLOURS["autoguidance"], "D"),
    "calibrated, all blocks": (COLOURS["naive_s2"], "P"),
}


def _draw_distance(metrics: Metrics, data: Arrays) -> Figure:
    cases = list(metrics["cases"])
    columns = 2
    rows = -(-len(cases) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(PAGE_WIDTH, 2.3 * rows + 0.6), squeeze=False
    )
    for ax in axes.flat[len(cases) :]:
        ax.set_axis_off()
    for ax, case in zip(axes.flat, cases, strict=False):
        result = metrics["cases"][case]
        steps = [int(k.split()[0]) for k in result]
        for j, (name, (colour, marker)) in enumerate(_LOOKS.items()):
            entries = [r["distance"][name] for r in result.values()]
            shifted = np.array(steps) * 1.04 ** (j - len(_LOOKS) / 2)
            ax.errorbar(
                shifted,
                [e["mean"] for e in entries],
                yerr=[e["standard_error"] for e in entries],
                color=colour,
                marker=marker,
                markersize=3,
                linewidth=0.6,
                alpha=0.9,
                label=name,
            )
        ax.axhline(float(data[f"{case}/floor"]), color=TRUTH, label="exact denoiser")
        toy, width = case.split(", ")
        ax.set_title(f"{TOY_TITLES[toy]}, {width}")
        step_axis(ax, steps)
        ax.set_yscale("log")
        plain_ticks(ax)
        ax.set_ylabel("W2 to p(x | label)")
    for ax in axes[-1]:
        ax.set_xlabel("training steps")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3
    )
    return figure


def _draw_coefficients(metrics: Metrics, data: Arrays) -> Figure:
    """CFG and S² coefficients from data and from the closed form, first seed."""
    cases = [c for c in metrics["cases"]][: len(TOYS)]
    figure, axes = plt.subplots(
        2, len(cases), figsize=(PAGE_WIDTH, 3.8), sharex="col", squeeze=False
    )
    for column, case in enumerate(cases):
        lengths = [int(k.split()[0]) for k in metrics["cases"][case]]
        shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(lengths)))
        for shade, step in zip(shades, lengths, strict=True):
            prefix = f"{case}/{step}"
            sigmas = data[f"{prefix}/sigmas"][0]
            for row in (0, 1):
                ax = axes[row, column]
                own = data[f"{prefix}/s2"][0][:, row]
                error = data[f"{prefix}/s2_error"][0][:, row]
                ax.errorbar(
                    sigmas, own, yerr=error, color=shade, linewidth=0.8,
                    label=f"{step} steps",
                )  # fmt: skip
                ax.plot(
                    sigmas, data[f"{prefix}/s2_exact"][0][:, row], "x",
                    color=shade, markersize=3.5,
                )  # fmt: skip
                ax.set_xscale("log")
                ax.axhline(0.0, color="black", linewidth=0.5)
        axes[0, column].set_title(TOY_TITLES[case.split(", ")[0]])
        axes[1, column].set_xlabel("noise level σ")
    axes[0, 0].set_ylabel("λ*(σ) − 1")
    axes[1, 0].set_ylabel("ω*(σ)")
    figure.suptitle(
        "Calibrated S²: lines from data (± standard error), crosses from the closed "
        "form; first seed",
        fontsize=8,
    )
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5
    )
    return figure


def _draw_removed(metrics: Metrics, data: Arrays) -> Figure:
    cases = list(metrics["cases"])
    figure, axes = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 3.2), width_ratios=(1, 1.15))
    ax = axes[0]
    markers = ("o", "s", "^", "D")
    values = []
    for marker, case in zip(markers, cases, strict=False):
        for key in metrics["cases"][case]:
            prefix = f"{case}/{key.split()[0]}"
            predicted, found = data[f"{prefix}/predicted"], data[f"{prefix}/removed"]
            shown = found > 0
            ax.plot(
                found[shown], np.maximum(predicted[shown], 1e-9), marker,
                markersize=2, alpha=0.5, color=COLOURS["autoguidance"],
            )  # fmt: skip
            values.append(found[shown])
    every = np.concatenate(values)
    ends = [every.min(), every.max()]
    ax.plot(ends, ends, color="black", linewidth=0.7)
    ax.set(xscale="log", yscale="log", ylim=(ends[0] / 3, ends[1] * 3))
    ax.set_xlabel("squared error removed, closed form")
    ax.set_ylabel("predicted from held-out data")
    ax = axes[1]
    for case, marker in zip(reversed(cases), markers, strict=False):
        result = metrics["cases"][case]
        steps = [int(k.split()[0]) for k in result]
        entries = [
            r["squared error removed by all blocks"]["share"] for r in result.values()
        ]
        toy, width = case.split(", ")
        ax.errorbar(
            steps,
            [e["mean"] for e in entries],
            yerr=[e["standard_error"] for e in entries],
            marker=marker,
            markersize=3,
            capsize=2,
            label=f"{TOY_TITLES[toy]}, {width}",
        )
    ax.axhline(0.0, color="black", linewidth=0.5)
    step_axis(ax, steps)
    ax.set(ylim=(-0.1, 1.05), xlabel="training steps")
    ax.set_ylabel("share of the squared error removed")
    ax.legend(fontsize=6)
    return figure


def summarise(metrics: Metrics) -> list[str]:
    """Distances of the calibrated rules beside the best of the grid."""
    lines = []
    for case, result in metrics["cases"].items():
        for key, row in result.items():
            shown = ", ".join(
                f"{name} {row['distance'][name]['mean']:.3f}"
                for name in (*GRID_RULES, *RULES)
            )
            lines.append(f"{case}, {key}: W2 {shown}")
    return lines


EXPERIMENT = Experiment(
    "calibration",
    "guidance coefficients read off data, against a grid search",
    CalibrationConfig,
    compute,
    draw,
    summarise,
)
