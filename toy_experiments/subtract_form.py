"""What ``- omega D_weak`` does, in x0 and in noise space, against the centered form.

The first versions of the paper (and its appendix) subtract the weak prediction without
adding the conditional one back. The coefficients then sum to ``1 - omega``: the result
depends on the space and shrinks or swells the samples, with exact denoisers too.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment
from toy_experiments.common.mixtures import balanced_labels
from toy_experiments.common.paper import (
    NETWORK_TITLES,
    NETWORKS,
    PaperConfig,
    Setting,
    line_density,
)
from toy_experiments.common.records import (
    Metrics,
    Tables,
    exact_value,
    over_seeds,
    plus_minus,
    single,
)
from toy_experiments.common.store import Arrays, Store
from toy_experiments.common.style import COLORS, PAGE_WIDTH, TRUTH

FORMS = ("centered", "subtract", "subtract_eps")
_TITLES = {
    "centered": "centered: + ω (D − D̂)",
    "subtract": "subtracted, x0 space: − ω D̂",
    "subtract_eps": "subtracted, noise space: − ω ε̂",
}
_COLORS = {
    "centered": COLORS["s2"],
    "subtract": COLORS["cfg"],
    "subtract_eps": COLORS["autoguidance"],
}
_BINS = np.linspace(-14.0, 14.0, 141)


@gg.guidance_rule
class RedundantSubnetwork(gg.GuidanceRule):
    """S² where the weak prediction is the conditional one: what each form leaves."""

    scale: float
    of_denoised: float
    of_noise: float
    needs_label = True

    def passes(self, label, draws):
        """The unconditional and the conditional prediction."""
        return gg.Pass(None), gg.Pass(label)

    def combine(self, outputs, x, sigma, state):
        """CFG and the rest of the term."""
        uncond, cond = outputs
        guided = uncond + self.scale * (cond - uncond)
        # eps = (x - D) / sigma
        return guided - self.of_denoised * cond + self.of_noise * (x - cond), state


def _rule(config: PaperConfig, network: str, form: str) -> gg.GuidanceRule:
    g = config.guidance
    if network == "exact":
        weights = (g.s2_scale * (form == f) for f in ("subtract", "subtract_eps"))
        return RedundantSubnetwork(g.cfg_scale, *weights)
    return gg.S2Guidance(
        g.cfg_scale,
        g.s2_scale,
        g.num_dropped,
        form=form,  # type: ignore[arg-type]
        window=None,
    )


def compute(config: PaperConfig, store: Store) -> tuple[Tables, Arrays]:
    """Samples and numbers of each form and denoiser, on the line."""
    setting = config.setting(store, "two_modes")
    tables: Tables = {"samples": []}
    data: Arrays = {"bins": _BINS}
    cases = [(form, network) for form in FORMS for network in NETWORKS]
    with store.reporter.task("subtract_form", len(cases)) as task:
        for form, network in cases:
            rule = _rule(config, network, form)
            # On a line, where noise is quantiles, the exact denoiser needs no seeds.
            seeds = range(1 if network == "exact" else config.seeds)
            samples = [setting.samples(store, network, rule, seed) for seed in seeds]
            values = [_numbers(setting, s) for s in samples]
            numbers = (
                {k: exact_value(v) for k, v in values[0].items()}
                if network == "exact"
                else over_seeds(values)
            )
            tables["samples"].append({"network": network, "form": form} | numbers)
            data[f"{network}/{form}"] = np.stack(
                [np.histogram(s, bins=_BINS, density=True)[0] for s in samples]
            )
            task.advance(detail=f"{network}, {form}")
    return tables, data


def _numbers(setting: Setting, samples: np.ndarray) -> dict[str, float]:
    labels = balanced_labels(setting.mixture, len(samples))
    upper = samples[labels == 1]
    summary = gg.metrics.summarize(samples, labels, setting.mixture)
    return summary | {"mean": float(upper.mean()), "std": float(upper.std())}


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Densities by form (columns) and denoiser (rows)."""
    figure, axes = plt.subplots(
        len(NETWORKS), len(FORMS), figsize=(PAGE_WIDTH, 4.7), sharex=True, sharey=True
    )
    bins, std = data["bins"], metrics["config"]["std"]
    x = np.linspace(bins[0], bins[-1], 500)
    truth = line_density(x, std)
    for row, network in enumerate(NETWORKS):
        for column, form in enumerate(FORMS):
            ax = axes[row, column]
            panel = data[f"{network}/{form}"]
            ax.fill_between(x, truth, color=TRUTH, alpha=0.55, linewidth=0)
            ax.stairs(panel.mean(axis=0), bins, color=_COLORS[form], linewidth=1.1)
            record = single(metrics, "samples", network=network, form=form)
            ax.set_xlabel(
                f"upper mode: mean {plus_minus(record['mean'], 2)}\n"
                f"std {plus_minus(record['std'], 2)},  "
                f"W2 {plus_minus(record['w2'], 2)}",
                fontsize=6.5,
            )
            if row == 0:
                ax.set_title(_TITLES[form], color=_COLORS[form])
        axes[row, 0].set_ylabel(NETWORK_TITLES[network])
    axes[0, 0].set(ylim=(0.0, 2.5 * truth.max()), xlim=(bins[0], bins[-1]))
    axes[0, 0].set_yticks([])
    config = metrics["config"]["guidance"]
    figure.supxlabel(
        f"gray: the truth (modes at ±4, std {std:g}); CFG scale "
        f"{config['cfg_scale']:g}, ω = {config['s2_scale']:g}, no window; exact row: "
        "the weak\nprediction equals the conditional one; peaks above the axis are "
        f"cut; ± standard error over {metrics['seeds']} seeds",
        fontsize=6.2,
    )
    return {"figure": figure}


def summarize(metrics: Metrics) -> list[str]:
    """Mean and width of the upper mode."""
    lines = []
    for network in NETWORKS:
        found = [single(metrics, "samples", network=network, form=f) for f in FORMS]
        values = "; ".join(
            f"{r['form']}: mean {r['mean']['mean']:.2f}, std {r['std']['mean']:.2f}"
            for r in found
        )
        lines.append(f"{NETWORK_TITLES[network]}: {values}")
    return lines


EXPERIMENT = Experiment(
    "subtract_form",
    "paper",
    "the first versions' - omega D_weak, in x0 and noise space, against the centered",
    PaperConfig,
    compute,
    draw,
    summarize,
)
