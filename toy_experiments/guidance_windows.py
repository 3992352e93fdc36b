"""Where in the noise CFG should act: every window of levels, exact and trained.

CFG at a fixed scale inside ``lo < sigma <= hi`` and no guidance outside (Kynkäänniemi
et al., arXiv 2404.07724), for all windows whose ends are on a coarse grid.
"""

from __future__ import annotations

import dataclasses
import itertools

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment, Metrics, over_seeds
from toy_experiments.common.style import SEQUENTIAL
from toy_experiments.common.sweeps import METRICS, Grid, measure_rule, over_two_threads
from toy_experiments.common.toys import (
    TOY_TITLES,
    TOYS,
    Budgets,
    make_toy,
    toy_schedule,
    train_toy,
)
from toy_experiments.common.workspace import Arrays, Workspace

_METRICS = [METRICS.index(name) for name in ("distance", "outside")]


@dataclasses.dataclass(frozen=True)
class GuidanceWindowsConfig:
    """Configuration.

    Attributes:
        seeds: training seeds, at least 2.
        budgets: training lengths and network; the networks of the phase diagram.
        shown: the training lengths examined.
        scale: total CFG scale inside the window.
        ends: ends of windows, ascending, in units of the data's standard deviation.
        num_samples: samples of each window.
        num_steps: steps of the sampler.
    """

    seeds: int = 5
    budgets: Budgets = Budgets()
    shown: tuple[int, ...] = (300, 3000)
    scale: float = 2.0
    ends: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 100.0)
    num_samples: int = 1024
    num_steps: int = 24

    def __post_init__(self):
        if self.seeds < 2:
            raise ValueError(
                f"seeds must be at least 2, since intervals are over seeds, got "
                f"{self.seeds}."
            )
        if len(self.ends) < 2 or list(self.ends) != sorted(set(self.ends)):
            raise ValueError(f"ends must be ascending, got {self.ends}.")
        missing = set(self.shown) - set(self.budgets.steps)
        if missing:
            raise ValueError(
                f"shown must be among budgets.steps {self.budgets.steps}, got "
                f"{sorted(missing)}."
            )

    @classmethod
    def quick(cls) -> GuidanceWindowsConfig:
        """Two seeds, one training length, four ends."""
        return cls(
            seeds=2,
            budgets=Budgets(steps=(50, 300), batch_size=256),
            shown=(300,),
            ends=(0.0, 0.1, 1.0, 100.0),
            num_samples=256,
            num_steps=16,
        )

    def windows(self) -> list[tuple[float, float]]:
        """All windows, the whole range among them."""
        return list(itertools.combinations(self.ends, 2))


def window_curve(
    levels: np.ndarray, scale: float, lo: float, hi: float
) -> gg.SigmaCurve:
    """The scale at each level of a schedule: that of a window ``lo < sigma <= hi``.

    As a curve, whose values are traced, all windows share one program.
    """
    ascending = np.sort(levels[levels > 0])
    inside = (ascending > lo) & (ascending <= hi)
    return gg.SigmaCurve(ascending, np.where(inside, scale, 1.0))


def compute(
    config: GuidanceWindowsConfig, workspace: Workspace
) -> tuple[Metrics, Arrays]:
    """Distance and outliers for each window, exact and trained."""
    windows = config.windows()
    metrics: Metrics = {
        "ends": list(config.ends),
        "shown": list(config.shown),
        "scale": config.scale,
        "toys": {},
    }
    data: Arrays = {}
    for toy in TOYS:
        run = train_toy(workspace, toy, config.budgets.training(), config.seeds)
        items = [(0, seed) for seed in range(config.seeds)]
        items += [(step, s) for step in config.shown for s in range(config.seeds)]
        with workspace.reporter.task(f"windows, {TOY_TITLES[toy]}", len(items)) as task:

            def one(item, toy=toy, run=run, task=task):
                found = _cell(config, workspace, toy, run, *item)
                task.advance(detail=f"{item[0]} steps, seed {item[1]}")
                return found

            # The exact denoiser needs no seeds on a line, where noise is quantiles.
            found = {items[0]: one(items[0])}
            rest = items[1:]
            if make_toy(toy).dim == 1:
                found |= {item: found[items[0]] for item in rest if item[0] == 0}
                rest = [item for item in rest if item[0] != 0]
            found |= dict(zip(rest, over_two_threads(one, rest), strict=True))
        result: Metrics = {}
        for step in (0, *config.shown):
            name = f"{step} steps" if step else "exact"
            values = np.stack([found[step, s] for s in range(config.seeds)])
            data[f"{toy}/{name}"] = values
            result[name] = _numbers(config, windows, values[..., 0])
        metrics["toys"][toy] = result
    return metrics, data


def _cell(config, workspace, toy, run, step, seed) -> np.ndarray:
    """``[windows + 1, metric]``, the last without guidance."""
    mixture = make_toy(toy)
    scale = float(mixture.scale)
    levels = toy_schedule(toy, config.num_steps).sigmas()
    grid = Grid(num_samples=config.num_samples, num_steps=config.num_steps)

    def compute() -> Arrays:
        model = run.denoiser(seed, step).network if step else gg.ExactDenoiser(mixture)
        rows = [
            measure_rule(
                toy,
                model,
                gg.CFG(window_curve(levels, config.scale, lo * scale, hi * scale)),
                grid,
                seed,
                mesh=workspace.mesh,
            )
            for lo, hi in [*config.windows(), (0.0, 0.0)]
        ]
        return {"metrics": np.array(rows)[:, _METRICS]}

    description = {
        "toy": toy,
        "training": repr(run.config) if step else None,
        "seeds": run.num_seeds if step else None,
        "step": step,
        "seed": seed,
        "scale": config.scale,
        "ends": config.ends,
        "grid": repr(grid),
    }
    return workspace.cell("windows", description, compute)["metrics"]


def _numbers(config, windows, distances: np.ndarray) -> Metrics:
    """The best window, the whole range and no guidance, ``[seeds, windows + 1]``."""
    always = windows.index((config.ends[0], config.ends[-1]))
    best = int(distances[:, :-1].mean(0).argmin())
    rows = [
        {
            "no guidance": row[-1],
            "always": row[always],
            "best window": row[best],
            "best window minus no guidance": row[best] - row[-1],
            "best window minus always": row[best] - row[always],
        }
        for row in distances.tolist()
    ]
    return over_seeds(rows) | {"window": list(windows[best])}


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """A triangle of windows for each toy, exact and trained."""
    ends = metrics["ends"]
    names = ["exact", *(f"{s} steps" for s in metrics["shown"])]
    figure, axes = plt.subplots(
        len(TOYS),
        len(names),
        figsize=(1.0 + 1.9 * len(names), 1.75 * len(TOYS) + 0.3),
        squeeze=False,
    )
    count = len(ends) - 1
    windows = list(itertools.combinations(range(len(ends)), 2))
    for row, toy in enumerate(TOYS):
        for column, name in enumerate(names):
            ax = axes[row, column]
            distances = data[f"{toy}/{name}"][..., 0].mean(0)
            ratio = np.full((count, count), np.nan)
            for (lo, hi), value in zip(windows, distances[:-1], strict=True):
                ratio[hi - 1, lo] = value / distances[-1]
            image = ax.imshow(
                np.log2(ratio), origin="lower", cmap=SEQUENTIAL, vmin=-1, vmax=2
            )
            for (lo, hi), value in zip(windows, distances[:-1], strict=True):
                relative = value / distances[-1]
                ax.text(
                    lo, hi - 1, f"{relative:.2g}", ha="center", va="center",
                    fontsize=5.5, color="white" if relative < 1.6 else "black",
                )  # fmt: skip
            ax.set_xticks(range(count), [f"{e:g}" for e in ends[:-1]])
            labels = [f"{e:g}" if e < 100 else "∞" for e in ends[1:]]
            ax.set_yticks(range(count), labels)
            if row == 0:
                ax.set_title("exact denoiser" if name == "exact" else f"{name}")
            if column == 0:
                ax.set_ylabel(f"{TOY_TITLES[toy]}\nto σ =")
    figure.supxlabel(
        f"CFG at λ = {metrics['scale']:g} from σ = … (standard deviations of the data);"
        f" W2 divided by that without guidance",
        fontsize=7,
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.01)
    bar.set_label("log₂ of the ratio")
    return {"figure": figure}


def summarise(metrics: Metrics) -> list[str]:
    """The best window of each toy, exact and trained."""
    lines = []
    for toy, result in metrics["toys"].items():
        for name, row in result.items():
            lo, hi = row["window"]
            lines.append(
                f"{TOY_TITLES[toy]}, {name}: no guidance "
                f"{row['no guidance']['mean']:.4f}, CFG always "
                f"{row['always']['mean']:.4f}, best in ({lo:g}, {hi:g}] "
                f"{row['best window']['mean']:.4f}"
            )
    return lines


EXPERIMENT = Experiment(
    "guidance_windows",
    "CFG in every window of noise levels, exact and trained",
    GuidanceWindowsConfig,
    compute,
    draw,
    summarise,
)
