"""CFG, CFG repaired exactly, and S² side by side, against the tilted law.

CFG is often said to sample ``p(x) p(label | x)^scale``. Its density family misses the
diffusion equation by ``scale (scale - 1) / 2 |grad log p(label | x)|^2``; particles
weighted by that defect sample this tilted law from the very same scores. S² leaves the
defect alone: it changes what the network got wrong. Shown are distances to the tilted
law and to ``p(x | label)``, and where on the line the pointwise errors sit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment, Metrics, over_seeds
from toy_experiments.common.style import (
    COLOURS,
    PAGE_WIDTH,
    SEQUENTIAL,
    TRUTH,
    plain_ticks,
)
from toy_experiments.common.sweeps import sample_traced
from toy_experiments.common.toys import (
    TOY_TITLES,
    Budgets,
    ToyName,
    make_toy,
    toy_schedule,
    toy_start,
    train_toy,
)
from toy_experiments.common.workspace import Arrays, Workspace

_TOYS: tuple[ToyName, ...] = ("overlap", "two_modes")
_LABEL = 1
_TRUE_SAMPLES = 1 << 16


@dataclasses.dataclass(frozen=True)
class RepairConfig:
    """Configuration.

    Attributes:
        seeds: training seeds, and repeats of the particles, at least 2.
        budgets: training length and network; the last length is used.
        scales: total CFG scales.
        s2_scale: the paper's omega.
        num_particles: of the weighted sampler.
        num_steps: steps of the deterministic sampler; the particles take eight times as
            many.
        num_samples: samples of the deterministic rules: quantiles, without noise.
        drawn: the scale whose densities and maps are drawn.
    """

    seeds: int = 5
    budgets: Budgets = Budgets()
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    s2_scale: float = 0.25
    num_particles: int = 8192
    num_steps: int = 24
    num_samples: int = 2000
    drawn: float = 4.0

    def __post_init__(self):
        if self.seeds < 2:
            raise ValueError(
                f"seeds must be at least 2, since intervals are over seeds, got "
                f"{self.seeds}."
            )
        if self.drawn not in self.scales or min(self.scales) < 1:
            raise ValueError(
                f"scales must be at least 1 and contain the one drawn, got "
                f"{self.scales} and {self.drawn}."
            )

    @classmethod
    def quick(cls) -> RepairConfig:
        """Two seeds, three scales, fewer particles."""
        return cls(
            seeds=2,
            budgets=Budgets(steps=(50, 300), batch_size=256),
            scales=(1.0, 2.0, 4.0),
            num_particles=2048,
            num_steps=16,
            num_samples=500,
        )


def compute(config: RepairConfig, workspace: Workspace) -> tuple[Metrics, Arrays]:
    """Distances of each sampler, densities and maps at one scale."""
    metrics: Metrics = {
        "scales": list(config.scales),
        "drawn": config.drawn,
        "s2_scale": config.s2_scale,
        "steps": config.budgets.steps[-1],
        "toys": {},
    }
    data: Arrays = {}
    for toy in _TOYS:
        run = train_toy(workspace, toy, config.budgets.training(), config.seeds)
        result: Metrics = {}
        with workspace.reporter.task(f"repair, {toy}", len(config.scales)) as task:
            for scale in config.scales:
                found = _cell(config, workspace, toy, run, scale)
                result[f"{scale:g}"] = _numbers(toy, scale, found)
                if scale == config.drawn:
                    for name, values in found.items():
                        data[f"{toy}/{name}"] = values
                    data |= _maps(toy, scale)
                task.advance(detail=f"scale {scale:g}")
        metrics["toys"][toy] = result
    return metrics, data


def _cell(config, workspace, toy: ToyName, run, scale: float) -> Arrays:
    """Samples of every kind at one scale."""
    mixture = make_toy(toy)
    schedule = toy_schedule(toy, config.num_steps)

    def compute() -> Arrays:
        exact = gg.ExactDenoiser(mixture)
        tilted = gg.exact.TiltedTarget(mixture, _LABEL, scale)
        _, start = toy_start(toy, schedule, 2 * config.num_samples, 0)
        start = start[::2]  # the quantiles of one label
        labels = np.full(len(start), _LABEL, np.int32)

        def draw(model: Any, rule: gg.GuidanceRule, seed: int = 0) -> np.ndarray:
            key = jax.random.key(1000 + seed)
            found = sample_traced(
                model, rule, schedule, key, labels, start, workspace.mesh
            )
            return found[:, 0]

        cfg, s2 = gg.CFG(scale), gg.S2Guidance(scale, config.s2_scale)
        networks = [run.denoiser(s).network for s in range(config.seeds)]
        repaired, ess = [], []
        for seed in range(config.seeds):
            particles = gg.exact.repaired_sample(
                jax.random.key(40 + seed),
                mixture,
                _LABEL,
                scale,
                config.num_particles,
                toy_schedule(toy, 8 * config.num_steps),
            )
            repaired.append(particles.resample(jax.random.key(60 + seed))[:, 0])
            ess.append(np.asarray(particles.ess).min() / config.num_particles)
        flow = sample_traced(
            tilted, gg.Unguided(), schedule, jax.random.key(0), labels, start
        )
        return {
            "tilted": np.asarray(tilted.sample(jax.random.key(5), _TRUE_SAMPLES))[:, 0],
            "floor": np.asarray(tilted.sample(jax.random.key(6), config.num_particles)),
            "tilted flow": flow[:, 0],
            "CFG, exact": draw(exact, cfg),
            "CFG repaired": np.stack([np.asarray(r) for r in repaired]),
            "CFG, trained": np.stack([draw(n, cfg) for n in networks]),
            "S², trained": np.stack([draw(n, s2, k) for k, n in enumerate(networks)]),
            "ess": np.array(ess),
        }

    description = {
        "toy": toy,
        "training": repr(run.config),
        "scale": scale,
        "config": repr(dataclasses.replace(config, scales=(config.drawn,))),
    }
    return workspace.cell("repair", description, compute)


KINDS = ("CFG, exact", "CFG repaired", "tilted flow", "CFG, trained", "S², trained")


def _numbers(toy: ToyName, scale: float, found: Arrays) -> Metrics:
    """W2 of each kind to the tilted law and to ``p(x | label)``."""
    mixture, w2 = make_toy(toy), gg.metrics.wasserstein_1d
    result: Metrics = {}
    for kind in KINDS:
        sets = np.atleast_2d(found[kind])
        rows = [
            {"to tilted": w2(x, found["tilted"]), "to p(x | label)": w2(x, mixture, 1)}
            for x in sets
        ]
        if len(rows) > 1:
            result[kind] = over_seeds(rows)
        else:
            result[kind] = {
                k: {"mean": v, "standard_error": 0.0} for k, v in rows[0].items()
            }
    result["floor"] = w2(found["floor"][:, 0], found["tilted"])
    result["smallest effective share of particles"] = float(found["ess"].min())
    tilted = gg.exact.TiltedTarget(mixture, _LABEL, scale)
    law = gg.exact.line_law(
        gg.ExactDenoiser(mixture),
        _LABEL,
        guidance=gg.CFG(scale),
        schedule=toy_schedule(toy, 64),
    )
    result["law of exact CFG, without sampling noise"] = {
        "entropy": float(law.entropy()),
        "KL to p(x | label)": float(
            law.kl_divergence(lambda x: mixture.log_prob(x, label=_LABEL))
        ),
        "KL to tilted": float(law.kl_divergence(lambda x: tilted.log_prob(x))),
    }
    accepted, _ = tilted.acceptance(jax.random.key(8), 4096)
    result["acceptance of the rejection sampler"] = float(accepted)
    return result


def _maps(toy: ToyName, scale: float) -> Arrays:
    """Defect, Jensen gap and bias over the line and the noise levels."""
    mixture = make_toy(toy)
    width = float(mixture.scale)
    x = np.linspace(-3 * width, 3 * width, 181, dtype=np.float32)
    sigmas = width * np.geomspace(0.02, 10.0, 61)
    points = jnp.asarray(x[:, None])
    defect, gap, bias = [], [], []
    for sigma in sigmas.astype(np.float32):
        arguments = (mixture, points, sigma, _LABEL, scale)
        defect.append(gg.exact.fokker_planck_defect(*arguments))
        gap.append(gg.exact.jensen_gap(*arguments))
        bias.append(gg.exact.rule_bias(*arguments)[:, 0])
    return {
        f"{toy}/x": x,
        f"{toy}/sigmas": sigmas,
        # Per unit of log variance, in which levels are drawn.
        f"{toy}/defect": np.array(defect) * sigmas[:, None] ** 2,
        f"{toy}/gap": np.array(gap),
        f"{toy}/bias": np.array(bias) / sigmas[:, None],
    }


_LOOKS = {
    "CFG, exact": (COLOURS["cfg"], "-"),
    "CFG repaired": (COLOURS["autoguidance"], "-"),
    "tilted flow": (TRUTH, "--"),
    "CFG, trained": (COLOURS["cfg"], ":"),
    "S², trained": (COLOURS["s2"], "-"),
}


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Distances and densities; pointwise maps."""
    return {
        "figure": _draw_distances(metrics, data),
        "figure_maps": _draw_maps(metrics, data),
    }


def _draw_distances(metrics: Metrics, data: Arrays) -> Figure:
    figure, axes = plt.subplots(2, 3, figsize=(PAGE_WIDTH, 4.4))
    scales = metrics["scales"]
    for row, toy in enumerate(_TOYS):
        result = metrics["toys"][toy]
        for column, key in enumerate(("to tilted", "to p(x | label)")):
            ax = axes[row, column]
            for kind, (colour, style) in _LOOKS.items():
                entries = [result[f"{s:g}"][kind][key] for s in scales]
                ax.errorbar(
                    scales,
                    [e["mean"] for e in entries],
                    yerr=[e["standard_error"] for e in entries],
                    color=colour,
                    linestyle=style,
                    label=kind,
                    capsize=1.5,
                )
            if column == 0:
                floor = [result[f"{s:g}"]["floor"] for s in scales]
                ax.plot(scales, floor, color="black", linewidth=0.6, label="floor")
            ax.set(yscale="log", xlabel="CFG scale λ")
            plain_ticks(ax)
            if row == 0:
                target = "p(x) p(label | x)^λ" if column == 0 else "p(x | label)"
                ax.set_title(f"W2 to {target}")
        axes[row, 0].set_ylabel(TOY_TITLES[toy])
        _draw_densities(axes[row, 2], data, toy)
        if row == 0:
            axes[row, 2].set_title(f"densities at λ = {metrics['drawn']:g}")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6
    )
    return figure


def _draw_densities(ax, data: Arrays, toy: ToyName) -> None:
    tilted = data[f"{toy}/tilted"]
    low = min(np.quantile(data[f"{toy}/{kind}"], 0.002) for kind in KINDS)
    high = max(np.quantile(data[f"{toy}/{kind}"], 0.998) for kind in KINDS)
    bins = np.linspace(low, high, 61)
    density, _ = np.histogram(tilted, bins, density=True)
    ax.stairs(density, bins, color=TRUTH, alpha=0.6, fill=True)
    for kind, (colour, style) in _LOOKS.items():
        if kind in ("tilted flow", "CFG, trained"):
            continue
        density, _ = np.histogram(data[f"{toy}/{kind}"], bins, density=True)
        ax.stairs(density, bins, color=colour, linestyle=style, linewidth=1.0)
    ax.set_xlabel("x  (grey: the tilted law)")
    ax.set_yticks([])


def _draw_maps(metrics: Metrics, data: Arrays) -> Figure:
    figure, axes = plt.subplots(2, 3, figsize=(PAGE_WIDTH, 4.4), sharex="row")
    titles = (
        "Fokker-Planck defect\nper unit of log σ²",
        "Jensen gap J",
        "bias of CFG's denoiser / σ",
    )
    for row, toy in enumerate(_TOYS):
        x, sigmas = data[f"{toy}/x"], data[f"{toy}/sigmas"]
        for column, name in enumerate(("defect", "gap", "bias")):
            ax, values = axes[row, column], data[f"{toy}/{name}"]
            signed = name == "bias"
            top = np.quantile(np.abs(values), 0.995)
            image = ax.pcolormesh(
                x, sigmas, values,
                cmap="PuOr" if signed else SEQUENTIAL,
                vmin=-top if signed else 0.0, vmax=top, rasterized=True,
            )  # fmt: skip
            ax.set_yscale("log")
            figure.colorbar(image, ax=ax, pad=0.02)
            if row == 0:
                ax.set_title(titles[column])
            if row == 1:
                ax.set_xlabel("x")
        axes[row, 0].set_ylabel(f"{TOY_TITLES[toy]}\nnoise level σ")
    figure.suptitle(
        f"Where exact CFG errs against the tilted law, λ = {metrics['drawn']:g}",
        fontsize=8,
    )
    return figure


def summarise(metrics: Metrics) -> list[str]:
    """Distance to the tilted law at the scale drawn."""
    lines = []
    for toy, result in metrics["toys"].items():
        row = result[f"{metrics['drawn']:g}"]
        shown = ", ".join(
            f"{kind} {row[kind]['to tilted']['mean']:.3f}" for kind in KINDS
        )
        lines.append(
            f"{TOY_TITLES[toy]}, scale {metrics['drawn']:g}: W2 to the tilted law: "
            f"{shown}; floor {row['floor']:.3f}; KL of exact CFG to it "
            f"{row['law of exact CFG, without sampling noise']['KL to tilted']:.3f}; "
            f"smallest effective share of particles "
            f"{row['smallest effective share of particles']:.0%}"
        )
    return lines


EXPERIMENT = Experiment(
    "repair",
    "CFG, CFG repaired exactly by weights, and S² against the tilted law",
    RepairConfig,
    compute,
    draw,
    summarise,
)
