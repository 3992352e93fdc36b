"""CFG, CFG repaired exactly, and S² against the tilted distribution.

CFG is often said to sample ``p(x) p(label | x)^scale``. Its density family misses the
diffusion equation by ``scale (scale - 1) / 2 |grad log p(label | x)|^2``; particles
weighted by that defect sample this tilted distribution from the very same scores. S²
leaves the defect alone: it changes what the network got wrong. Shown are distances to
the tilted distribution and to ``p(x | label)``, and where on the line the pointwise
errors are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment, check_among
from toy_experiments.common.mixtures import (
    MIXTURE_TITLES,
    MixtureName,
    balanced_start,
    make_mixture,
    relative_schedule,
)
from toy_experiments.common.records import (
    Metrics,
    Record,
    Tables,
    exact_value,
    over_seeds,
    select,
    single,
)
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.style import (
    COLORS,
    PAGE_WIDTH,
    SEQUENTIAL,
    TRUTH,
    draw_measurements,
    legend_below,
    plain_ticks,
)
from toy_experiments.common.sweep import AnalysisConfig, draw_samples_of

#: Kinds of samples with their look: title, color, line.
KINDS = {
    "cfg_exact": ("CFG, exact", COLORS["cfg"], "-"),
    "cfg_repaired": ("CFG repaired", COLORS["autoguidance"], "-"),
    "tilted_flow": ("tilted flow", TRUTH, "--"),
    "cfg_trained": ("CFG, trained", COLORS["cfg"], ":"),
    "s2_trained": ("S², trained", COLORS["s2"], "-"),
}
_MIXTURES: tuple[MixtureName, ...] = ("overlap", "two_modes")
_LABEL = 1
_TRUE_SAMPLES = 1 << 16


@dataclasses.dataclass(frozen=True)
class RepairConfig(AnalysisConfig):
    """Configuration of ``repair``.

    Attributes:
        seeds: training seeds, and repeats of the particles, at least 2.
        num_samples: samples of the deterministic rules: quantiles, without noise.
        num_steps: steps of the deterministic sampler; the particles take eight times as
            many.
        budgets: training length and network; the last length is used.
        scales: total CFG scales.
        s2_scale: the paper's omega.
        num_particles: particles of the weighted sampler.
        drawn: the scale whose densities and maps are drawn.
    """

    num_samples: int = 2000
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    s2_scale: float = 0.25
    num_particles: int = 8192
    drawn: float = 4.0

    QUICK = AnalysisConfig.QUICK | {
        "num_samples": 500,
        "scales": (1.0, 2.0, 4.0),
        "num_particles": 2048,
    }

    def __post_init__(self):
        super().__post_init__()
        if min(self.scales) < 1:
            raise ValueError(f"scales must be at least 1, got {self.scales}.")
        check_among(self.scales, "scales", drawn=self.drawn)


def compute(config: RepairConfig, store: Store) -> tuple[Tables, Arrays]:
    """Distances of each sampler, densities and maps at one scale."""
    tables: Tables = {"samples": [], "scales": []}
    data: Arrays = {}
    for name in _MIXTURES:
        run = config.networks(store, name)
        networks = [run.denoiser(s).network for s in range(config.seeds)]
        with store.reporter.task(f"repair, {name}", len(config.scales)) as task:
            for scale in config.scales:
                found = store.cell(
                    draw_samples, name, networks, scale, config.s2_scale,
                    config.num_samples, config.num_particles, config.num_steps,
                )  # fmt: skip
                place = {"mixture": name, "scale": scale}
                for kind in KINDS:
                    distances = _distances(name, found["tilted"], found[kind])
                    tables["samples"].append(place | {"kind": kind} | distances)
                tables["scales"].append(place | _exact_numbers(name, scale, found))
                if scale == config.drawn:
                    data |= {f"{name}/{key}": values for key, values in found.items()}
                    data |= _maps(name, scale)
                task.advance(detail=f"scale {scale:g}")
    return tables, data


def draw_samples(
    context: Context,
    name: MixtureName,
    networks: list[Any],
    scale: float,
    s2_scale: float,
    num_samples: int,
    num_particles: int,
    num_steps: int,
) -> Arrays:
    """Samples of every kind at one scale; those of networks and particles by seed."""
    mixture = make_mixture(name)
    schedule = relative_schedule(name, num_steps)
    tilted = gg.exact.TiltedTarget(mixture, _LABEL, scale)
    _, start = balanced_start(mixture, schedule, 2 * num_samples, 0)
    start = start[::2]  # the quantiles of one label
    labels = np.full(len(start), _LABEL, np.int32)

    def draw(model: Any, rule: gg.GuidanceRule, seed: int = 0) -> np.ndarray:
        key = jax.random.key(1000 + seed)
        return draw_samples_of(model, rule, schedule, key, labels, start, context.mesh)[
            :, 0
        ]

    cfg, s2 = gg.CFG(scale), gg.S2Guidance(scale, s2_scale)
    repaired, ess = [], []
    for seed in range(len(networks)):
        particles = gg.exact.repaired_sample(
            jax.random.key(40 + seed),
            mixture,
            _LABEL,
            scale,
            num_particles,
            relative_schedule(name, 8 * num_steps),
        )
        repaired.append(np.asarray(particles.resample(jax.random.key(60 + seed))[:, 0]))
        ess.append(np.asarray(particles.ess).min() / num_particles)
    flow = draw_samples_of(
        tilted, gg.Unguided(), schedule, jax.random.key(0), labels, start
    )
    return {
        "tilted": np.asarray(tilted.sample(jax.random.key(5), _TRUE_SAMPLES))[:, 0],
        "floor": np.asarray(tilted.sample(jax.random.key(6), num_particles))[:, 0],
        "tilted_flow": flow[:, 0],
        "cfg_exact": draw(gg.ExactDenoiser(mixture), cfg),
        "cfg_repaired": np.stack(repaired),
        "cfg_trained": np.stack([draw(n, cfg) for n in networks]),
        "s2_trained": np.stack([draw(n, s2, k) for k, n in enumerate(networks)]),
        "ess": np.array(ess),
    }


def _distances(name: MixtureName, tilted: np.ndarray, samples: np.ndarray) -> Record:
    """W2 of one kind to the tilted distribution and to ``p(x | label)``."""
    mixture, w2 = make_mixture(name), gg.metrics.wasserstein_1d
    rows = [
        {"w2_to_tilted": w2(x, tilted), "w2_to_class": w2(x, mixture, _LABEL)}
        for x in np.atleast_2d(samples)
    ]
    if len(rows) > 1:
        return over_seeds(rows)
    return {key: exact_value(value) for key, value in rows[0].items()}


def _exact_numbers(name: MixtureName, scale: float, found: Arrays) -> Record:
    """The floor, the particles, and exact CFG without sampling noise."""
    mixture = make_mixture(name)
    tilted = gg.exact.TiltedTarget(mixture, _LABEL, scale)
    line = gg.exact.line_distribution(
        gg.ExactDenoiser(mixture),
        _LABEL,
        guidance=gg.CFG(scale),
        schedule=relative_schedule(name, 64),
    )
    accepted, _ = tilted.acceptance(jax.random.key(8), 4096)
    return {
        "floor": gg.metrics.wasserstein_1d(found["floor"], found["tilted"]),
        "smallest_effective_fraction": float(found["ess"].min()),
        "cfg_entropy": float(line.entropy()),
        "cfg_kl_to_class": float(
            line.kl_divergence(lambda x: mixture.log_prob(x, label=_LABEL))
        ),
        "cfg_kl_to_tilted": float(line.kl_divergence(lambda x: tilted.log_prob(x))),
        "rejection_acceptance": float(accepted),
    }


def _maps(name: MixtureName, scale: float) -> Arrays:
    """Defect, Jensen gap and bias over the line and the noise levels."""
    mixture = make_mixture(name)
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
        f"{name}/x": x,
        f"{name}/sigmas": sigmas,
        # Per unit of log variance, in which levels are drawn.
        f"{name}/defect": np.array(defect) * sigmas[:, None] ** 2,
        f"{name}/gap": np.array(gap),
        f"{name}/bias": np.array(bias) / sigmas[:, None],
    }


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Distances and densities; pointwise maps."""
    return {
        "figure": _draw_distances(metrics, data),
        "figure_maps": _draw_maps(metrics, data),
    }


def _draw_distances(metrics: Metrics, data: Arrays) -> Figure:
    figure, axes = plt.subplots(2, 3, figsize=(PAGE_WIDTH, 4.4))
    config = metrics["config"]
    scales = config["scales"]
    targets = {"w2_to_tilted": "p(x) p(label | x)^λ", "w2_to_class": "p(x | label)"}
    for row, name in enumerate(_MIXTURES):
        for column, (key, target) in enumerate(targets.items()):
            ax = axes[row, column]
            for kind, (title, color, line) in KINDS.items():
                records = select(metrics, "samples", mixture=name, kind=kind)
                entries = [r[key] for r in records]
                draw_measurements(
                    ax, scales, entries, color=color, linestyle=line, label=title
                )
            if column == 0:
                floor = [r["floor"] for r in select(metrics, "scales", mixture=name)]
                ax.plot(scales, floor, color="black", linewidth=0.6, label="floor")
            ax.set(yscale="log", xlabel="CFG scale λ")
            plain_ticks(ax.yaxis)
            if row == 0:
                ax.set_title(f"W2 to {target}")
        axes[row, 0].set_ylabel(MIXTURE_TITLES[name])
        _draw_densities(axes[row, 2], data, name)
        if row == 0:
            axes[row, 2].set_title(f"densities at λ = {config['drawn']:g}")
    legend_below(axes[0, 0], 6)
    return figure


def _draw_densities(ax: Axes, data: Arrays, name: MixtureName) -> None:
    low = min(np.quantile(data[f"{name}/{kind}"], 0.002) for kind in KINDS)
    high = max(np.quantile(data[f"{name}/{kind}"], 0.998) for kind in KINDS)
    bins = np.linspace(low, high, 61)
    density, _ = np.histogram(data[f"{name}/tilted"], bins, density=True)
    ax.stairs(density, bins, color=TRUTH, alpha=0.6, fill=True)
    for kind in ("cfg_exact", "cfg_repaired", "s2_trained"):
        _, color, line = KINDS[kind]
        density, _ = np.histogram(data[f"{name}/{kind}"], bins, density=True)
        ax.stairs(density, bins, color=color, linestyle=line, linewidth=1.0)
    ax.set_xlabel("x  (gray: the tilted distribution)")
    ax.set_yticks([])


def _draw_maps(metrics: Metrics, data: Arrays) -> Figure:
    figure, axes = plt.subplots(2, 3, figsize=(PAGE_WIDTH, 4.4), sharex="row")
    titles = (
        "Fokker-Planck defect\nper unit of log σ²",
        "Jensen gap J",
        "bias of CFG's denoiser / σ",
    )
    for row, mixture in enumerate(_MIXTURES):
        x, sigmas = data[f"{mixture}/x"], data[f"{mixture}/sigmas"]
        for column, name in enumerate(("defect", "gap", "bias")):
            ax, values = axes[row, column], data[f"{mixture}/{name}"]
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
        axes[row, 0].set_ylabel(f"{MIXTURE_TITLES[mixture]}\nnoise level σ")
    drawn = metrics["config"]["drawn"]
    figure.suptitle(
        f"Where exact CFG errs against the tilted distribution, λ = {drawn:g}",
        fontsize=8,
    )
    return figure


def summarize(metrics: Metrics) -> list[str]:
    """Distance to the tilted distribution at the scale drawn."""
    lines = []
    drawn = metrics["config"]["drawn"]
    for exact in select(metrics, "scales", scale=drawn):
        place = {"mixture": exact["mixture"], "scale": drawn}
        found = [single(metrics, "samples", kind=kind, **place) for kind in KINDS]
        shown = ", ".join(
            f"{KINDS[r['kind']][0]} {r['w2_to_tilted']['mean']:.3f}" for r in found
        )
        lines.append(
            f"{MIXTURE_TITLES[exact['mixture']]}, scale {drawn:g}: W2 to the tilted "
            f"distribution: {shown}; floor {exact['floor']:.3f}; KL of exact CFG to it "
            f"{exact['cfg_kl_to_tilted']:.3f}; smallest effective fraction of "
            f"particles {exact['smallest_effective_fraction']:.0%}"
        )
    return lines


EXPERIMENT = Experiment(
    "repair",
    "related",
    "CFG, CFG repaired exactly by weights, and S² against the tilted distribution",
    RepairConfig,
    compute,
    draw,
    summarize,
)
