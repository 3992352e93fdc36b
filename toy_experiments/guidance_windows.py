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
from toy_experiments.common.experiment import Experiment, check_among, check_ascending
from toy_experiments.common.mixtures import (
    MIXTURE_TITLES,
    MIXTURES,
    make_mixture,
    relative_schedule,
)
from toy_experiments.common.records import Metrics, Record, Tables, over_seeds
from toy_experiments.common.store import Arrays, Store
from toy_experiments.common.style import SEQUENTIAL
from toy_experiments.common.sweep import DISTANCE, AnalysisConfig, measure_rules


@dataclasses.dataclass(frozen=True)
class GuidanceWindowsConfig(AnalysisConfig):
    """Configuration of ``guidance_windows``.

    Attributes:
        shown: the training lengths examined.
        scale: total CFG scale inside the window.
        ends: ends of windows, ascending, in units of the data's standard deviation.
    """

    shown: tuple[int, ...] = (300, 3000)
    scale: float = 2.0
    ends: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 100.0)

    QUICK = AnalysisConfig.QUICK | {"shown": (300,), "ends": (0.0, 0.1, 1.0, 100.0)}

    def __post_init__(self):
        super().__post_init__()
        check_ascending(ends=self.ends)
        check_among(self.budgets.steps, "budgets.steps", shown=self.shown)

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


def compute(config: GuidanceWindowsConfig, store: Store) -> tuple[Tables, Arrays]:
    """Distance for each window, exact (training length ``None``) and trained."""
    tables: Tables = {"windows": []}
    data: Arrays = {}
    seeds = range(config.seeds)
    for name in MIXTURES:
        mixture = make_mixture(name)
        levels = relative_schedule(name, config.num_steps).sigmas()
        ends = [(lo, hi) for lo, hi in [*config.windows(), (0.0, 0.0)]]
        width = float(mixture.scale)
        rules = [
            gg.CFG(window_curve(levels, config.scale, lo * width, hi * width))
            for lo, hi in ends
        ]
        run = config.networks(store, name)

        def one(step, seed, name=name, mixture=mixture, run=run, rules=rules):
            exact = gg.ExactDenoiser(mixture)
            model = exact if step is None else run.denoiser(seed, step).network
            return measure_rules(
                store, name, model, rules, config.num_samples, config.num_steps, seed
            )[:, DISTANCE]

        items = [
            (step, seed)
            for step in (None, *config.shown)
            for seed in seeds
            # On a line, where noise is quantiles, the exact denoiser needs no seeds.
            if not (mixture.dim == 1 and step is None and seed)
        ]
        found = store.map(
            f"windows, {name}", one, items, program=lambda item: item[0] is None
        )
        for step in (None, *config.shown):
            distances = np.stack([found.get((step, s), found[step, 0]) for s in seeds])
            data[f"{name}/{step}"] = distances
            place = {"mixture": name, "steps": step}
            tables["windows"].append(place | _best(config, distances))
    return tables, data


def _best(config: GuidanceWindowsConfig, distances: np.ndarray) -> Record:
    """The best window, the whole range and no guidance, of ``[seeds, windows + 1]``."""
    windows = config.windows()
    always = windows.index((config.ends[0], config.ends[-1]))
    best = int(distances[:, :-1].mean(0).argmin())
    rows = [
        {
            "no_guidance": row[-1],
            "always": row[always],
            "best": row[best],
            "best_minus_no_guidance": row[best] - row[-1],
            "best_minus_always": row[best] - row[always],
        }
        for row in distances.tolist()
    ]
    return {"best_from": windows[best][0], "best_to": windows[best][1]} | over_seeds(
        rows
    )


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """A triangle of windows for each mixture, exact and trained."""
    config = metrics["config"]
    ends = config["ends"]
    steps = [None, *config["shown"]]
    figure, axes = plt.subplots(
        len(MIXTURES),
        len(steps),
        figsize=(1.0 + 1.9 * len(steps), 1.75 * len(MIXTURES) + 0.3),
        squeeze=False,
    )
    count = len(ends) - 1
    windows = list(itertools.combinations(range(len(ends)), 2))
    for row, name in enumerate(MIXTURES):
        for column, step in enumerate(steps):
            ax = axes[row, column]
            distances = data[f"{name}/{step}"].mean(0)
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
                ax.set_title(_title(step))
            if column == 0:
                ax.set_ylabel(f"{MIXTURE_TITLES[name]}\nto σ =")
    figure.supxlabel(
        f"CFG at λ = {config['scale']:g} from σ = … (standard deviations of the data);"
        f" W2 divided by that without guidance",
        fontsize=7,
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.01)
    bar.set_label("log₂ of the ratio")
    return {"figure": figure}


def _title(step: int | None) -> str:
    return "exact denoiser" if step is None else f"{step} training steps"


def summarize(metrics: Metrics) -> list[str]:
    """The best window of each mixture, exact and trained."""
    return [
        f"{MIXTURE_TITLES[r['mixture']]}, {_title(r['steps'])}: no guidance "
        f"{r['no_guidance']['mean']:.4f}, CFG always {r['always']['mean']:.4f}, best "
        f"in ({r['best_from']:g}, {r['best_to']:g}] {r['best']['mean']:.4f}"
        for r in metrics["tables"]["windows"]
    ]


EXPERIMENT = Experiment(
    "guidance_windows",
    "analysis",
    "CFG in every window of noise levels, exact and trained",
    GuidanceWindowsConfig,
    compute,
    draw,
    summarize,
)
