"""What ``- omega D_weak`` does, in x0 and in noise space, against the centered form.

The first versions of the paper (and its appendix) subtract the weak prediction without
adding the conditional one back. The coefficients then sum to ``1 - omega``: the result
depends on the space and shrinks or swells the samples, with exact denoisers too.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from gmm_guidance.guidance.weak import Form, WeakTerm
from toy_experiments.common.experiment import (
    Config,
    Experiment,
    Metrics,
    over_seeds,
    plus_minus,
)
from toy_experiments.common.laboratory import (
    REGIME_TITLES,
    REGIMES,
    balanced_labels,
    make_mixture,
    sample_cell,
    trained,
)
from toy_experiments.common.style import COLOURS, PAGE_WIDTH, TRUTH
from toy_experiments.common.workspace import Arrays, Workspace

FORMS: tuple[Form, ...] = ("centered", "subtract", "subtract_eps")
ROWS = ("exact", *REGIMES)
_TITLES = {
    "centered": "centered: + ω (D − D̂)",
    "subtract": "subtracted, x0 space: − ω D̂",
    "subtract_eps": "subtracted, noise space: − ω ε̂",
}
_COLOURS = {
    "centered": COLOURS["s2"],
    "subtract": COLOURS["cfg"],
    "subtract_eps": COLOURS["autoguidance"],
}
_BINS = np.linspace(-14.0, 14.0, 141)


@gg.guidance_rule
class RedundantBlocks(WeakTerm):
    """S² of a network whose dropped blocks are redundant: ``D_weak = D_c``."""

    scale: Any
    s2_scale: Any
    form: Form = gg.static_field()
    window: Any = gg.static_field(default=None)

    @property
    def weak_scale(self) -> Any:
        """Weight of the term."""
        return self.s2_scale

    def draw_masks(self, random: Any) -> Any:
        """Nothing is dropped."""
        return (None,)


def compute(config: Config, workspace: Workspace) -> tuple[Metrics, Arrays]:
    """Samples and numbers of each form and denoiser, on the line."""
    mixture = make_mixture(1, config.std)
    run = trained(workspace, 1, config.std, config.networks, config.seeds)
    metrics: Metrics = {"panels": {}}
    data: Arrays = {"bins": _BINS}
    exact = gg.ExactDenoiser(mixture)
    g = config.guidance
    total = len(FORMS) * len(ROWS) * config.seeds
    with workspace.reporter.task("subtract_form", total) as task:
        for form in FORMS:
            for row in ROWS:
                values, panel = [], []
                for seed in range(config.seeds):
                    denoiser: Any
                    rule: gg.GuidanceRule
                    if row == "exact":
                        denoiser = exact
                        rule = RedundantBlocks(g.cfg_scale, g.s2_scale, form)
                        identity = {"exact": f"{form} {g}", "std": config.std}
                    else:
                        steps, _ = config.networks.steps(row)
                        denoiser = run.denoiser(seed, steps)
                        rule = gg.S2Guidance(
                            g.cfg_scale,
                            g.s2_scale,
                            g.num_dropped,
                            form=form,
                            window=None,
                        )
                        identity = {
                            "training": repr(run.config),
                            "steps": steps,
                            "seeds": run.num_seeds,
                            "rule": repr(rule),
                            "std": config.std,
                        }
                    samples = sample_cell(
                        workspace,
                        mixture,
                        denoiser,
                        rule,
                        identity=identity,
                        seed=seed,
                        num_samples=config.num_samples,
                        schedule=config.schedule(),
                    )["samples"]
                    labels = balanced_labels(mixture, len(samples))
                    summary = gg.metrics.summarise(samples, labels, mixture)
                    upper = samples[labels == 1]
                    summary |= {"mean": float(upper.mean()), "std": float(upper.std())}
                    values.append(summary)
                    panel.append(np.histogram(samples, bins=_BINS, density=True)[0])
                    task.advance(detail=f"{row}, {form}")
                metrics["panels"][f"{row}/{form}"] = over_seeds(values)
                data[f"{row}/{form}"] = np.stack(panel)
    return metrics, data


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Densities by form (columns) and denoiser (rows)."""
    figure, axes = plt.subplots(
        len(ROWS), len(FORMS), figsize=(PAGE_WIDTH, 4.7), sharex=True, sharey=True
    )
    bins, std = data["bins"], metrics["std"]
    x = np.linspace(bins[0], bins[-1], 500)
    truth = sum(np.exp(-0.5 * ((x - m) / std) ** 2) for m in (-4.0, 4.0))
    truth = truth / (2.0 * std * np.sqrt(2.0 * np.pi))
    for row, regime in enumerate(ROWS):
        for column, form in enumerate(FORMS):
            ax = axes[row, column]
            panel = data[f"{regime}/{form}"]
            ax.fill_between(x, truth, color=TRUTH, alpha=0.55, linewidth=0)
            ax.stairs(panel.mean(axis=0), bins, color=_COLOURS[form], linewidth=1.1)
            numbers = metrics["panels"][f"{regime}/{form}"]
            ax.set_xlabel(
                f"upper mode: mean {plus_minus(numbers['mean'], 2)}\n"
                f"std {plus_minus(numbers['std'], 2)},  "
                f"W2 {plus_minus(numbers['w2'], 2)}",
                fontsize=6.5,
            )
            if row == 0:
                ax.set_title(_TITLES[form], color=_COLOURS[form])
        axes[row, 0].set_ylabel(REGIME_TITLES[regime])
    axes[0, 0].set(ylim=(0.0, 2.5 * truth.max()), xlim=(bins[0], bins[-1]))
    axes[0, 0].set_yticks([])
    config = metrics["config"]["guidance"]
    figure.supxlabel(
        f"grey: the truth (modes at ±4, std {std:g}); CFG scale "
        f"{config['cfg_scale']:g}, ω = {config['s2_scale']:g}, no window; exact row: "
        "the weak\nprediction equals the conditional one; peaks above the axis are "
        f"cut; ± standard error over {metrics['seeds']} seeds",
        fontsize=6.2,
    )
    return {"figure": figure}


def summarise(metrics: Metrics) -> list[str]:
    """Mean and width of the upper mode."""
    lines = []
    for row in ROWS:
        values = "; ".join(
            f"{form}: mean {metrics['panels'][f'{row}/{form}']['mean']['mean']:.2f}, "
            f"std {metrics['panels'][f'{row}/{form}']['std']['mean']:.2f}"
            for form in FORMS
        )
        lines.append(f"{REGIME_TITLES[row]}: {values}")
    return lines


EXPERIMENT = Experiment(
    "subtract_form",
    "the first versions' - omega D_weak, in x0 and noise space, against the centered",
    Config,
    compute,
    draw,
    summarise,
)
