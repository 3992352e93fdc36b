"""What the interactive panels of the report need: fields and outputs, precomputed.

Guided predictions are affine in the two scales,

    D = D_u + scale (D_c - D_u) + omega (D_c - D_weak),

so the three parts on a grid of points and noise levels give the guided score at any
scale and omega. ``D_weak`` is the mean over all masks. Outputs of the sampler are not
affine in the scales: they are computed on a grid of scales, as quantiles on a line,
between which quantiles may be interpolated. Of the trained networks the first seed is
shown: a mean over seeds would hide learning error.
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
from toy_experiments.common.experiment import (
    Experiment,
    check_ascending,
    check_at_least,
)
from toy_experiments.common.paper import (
    NETWORK_TITLES,
    NETWORKS,
    PAPER_MIXTURES,
    REGIMES,
    PaperConfig,
    Setting,
)
from toy_experiments.common.records import Metrics, Record, Tables, select
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.style import COLORS, PAGE_WIDTH, TRUTH

PARTS = ("uncond", "cond", "weak")
LABELS = {1: 1, 2: 3}  # by dimension: the mode +4, the corner (+4, +4)
_SHOWN_SIGMA = 2.0  # of the static figure and of the sliders at first


@dataclasses.dataclass(frozen=True)
class ExplorerConfig(PaperConfig):
    """Configuration of ``explorer``; it takes no random samples.

    Attributes:
        limit: fields cover ``[-limit, limit]`` along each axis.
        line_points: points of the field on a line.
        line_levels: noise levels there, log-spaced.
        plane_points: points of the field in the plane, along each axis.
        plane_levels: noise levels there, log-spaced.
        lowest_level: lowest noise level of the fields.
        highest_level: highest.
        scales: CFG scales of the outputs, ascending.
        omegas: S² scales of the outputs, ascending.
        num_quantiles: quantiles of each output.
    """

    limit: float = 9.0
    line_points: int = 161
    line_levels: int = 25
    plane_points: int = 25
    plane_levels: int = 10
    lowest_level: float = 0.02
    highest_level: float = 20.0
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    omegas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    num_quantiles: int = 400

    QUICK = PaperConfig.QUICK | {
        "line_points": 91,
        "line_levels": 10,
        "plane_points": 17,
        "plane_levels": 4,
        "scales": (1.0, 2.0, 4.0, 8.0),
        "omegas": (0.0, 0.25, 1.0),
        "num_quantiles": 200,
    }

    def __post_init__(self):
        super().__post_init__()
        if not self.limit > 0:
            raise ValueError(f"limit must be > 0, got {self.limit}.")
        if not 0 < self.lowest_level < self.highest_level:
            raise ValueError(
                f"0 < lowest_level < highest_level must hold, got {self.lowest_level} "
                f"and {self.highest_level}."
            )
        check_at_least(
            2,
            line_points=self.line_points,
            line_levels=self.line_levels,
            plane_points=self.plane_points,
            plane_levels=self.plane_levels,
        )
        check_ascending(scales=self.scales, omegas=self.omegas)
        check_at_least(16, num_quantiles=self.num_quantiles)


def compute(config: ExplorerConfig, store: Store) -> tuple[Tables, Arrays]:
    """Fields on a line and in the plane, and outputs on the line."""
    axis = np.linspace(-config.limit, config.limit, config.line_points)
    side = np.linspace(-config.limit, config.limit, config.plane_points)
    ends = (config.lowest_level, config.highest_level)
    data: Arrays = {
        "line/points": axis[:, None],
        "line/sigmas": np.geomspace(*ends, config.line_levels),
        "plane/points": np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2),
        "plane/sigmas": np.geomspace(*ends, config.plane_levels),
        "outputs/scales": np.array(config.scales),
        "outputs/omegas": np.array(config.omegas),
    }
    settings = {
        dim: config.setting(store, name) for dim, name in enumerate(PAPER_MIXTURES, 1)
    }
    with store.reporter.task("explorer", 3 * len(NETWORKS)) as task:
        for row in NETWORKS:
            for dim, name in ((1, "line"), (2, "plane")):
                parts = _fields(
                    _denoiser(settings[dim], row),
                    data[f"{name}/points"],
                    data[f"{name}/sigmas"],
                    LABELS[dim],
                    config.guidance.num_dropped,
                )
                data |= {f"{name}/{row}/{p}": f for p, f in parts.items()}
                mean = settings[dim].mixture.mean(LABELS[dim])
                data[f"{name}/mode"] = np.asarray(mean)
                task.advance(detail=f"{row}, fields in {dim}-D")
            data[f"outputs/{row}"] = _outputs(config, store, settings[1], row)
            task.advance(detail=f"{row}, outputs")
    levels = (np.arange(config.num_quantiles) + 0.5) / config.num_quantiles
    data["outputs/truth"] = gg.metrics.quantile(settings[1].mixture, levels, LABELS[1])
    data = {k: np.asarray(v, np.float32) for k, v in data.items()}
    return {"outputs": [r for row in NETWORKS for r in _numbers(data, row)]}, data


def _denoiser(setting: Setting, row: str) -> Any:
    # The first seed, and the bare network without its training length: one program
    # for all lengths.
    denoiser = setting.denoiser(row, 0)
    return denoiser if row == "exact" else denoiser.network


def _fields(
    denoiser: Any, points: np.ndarray, sigmas: np.ndarray, label: int, dropped: int
) -> Arrays:
    """The parts of the guided prediction, ``[level, point, d]`` each."""
    x = jnp.asarray(np.tile(points, (len(sigmas), 1)), jnp.float32)
    sigma = jnp.asarray(np.repeat(sigmas, len(points)), jnp.float32)
    parts = _parts(denoiser, x, sigma, jnp.full(x.shape[:1], label, jnp.int32), dropped)
    shape = (len(sigmas), *points.shape)
    return {p: np.asarray(f).reshape(shape) for p, f in zip(PARTS, parts, strict=True)}


def _parts(denoiser, x, sigma, label, dropped) -> tuple[jax.Array, ...]:
    if isinstance(denoiser, gg.ExactDenoiser):
        # The sub-network of a perfect network is perfect at best.
        uncond, cond = denoiser.denoise_rows(x, sigma, [None, label])
        return uncond, cond, cond
    masks = gg.drop.FixedCount(dropped).all_masks(denoiser.num_blocks)
    return _network_parts(denoiser, x, sigma, label, [jnp.asarray(m) for m in masks])


@jax.jit
def _network_parts(denoiser, x, sigma, label, masks) -> tuple[jax.Array, ...]:
    weak = [gg.Pass(label, drop=mask) for mask in masks]
    uncond, cond, weak = gg.evaluate_passes(
        denoiser, x, sigma, (gg.Pass(None), gg.Pass(label), weak)
    )
    return uncond, cond, jnp.mean(jnp.stack(weak), axis=0)


def _outputs(
    config: ExplorerConfig, store: Store, setting: Setting, row: str
) -> np.ndarray:
    """Quantiles of the sampler's output, ``[scale, omega, quantile]``, ascending."""
    # With exact denoisers the S² term vanishes: one omega stands for all.
    omegas = config.omegas[:1] if row == "exact" else config.omegas
    rules = [_rule(config, row, s, w) for s in config.scales for w in omegas]
    quantiles = store.cell(
        output_quantile_table,
        _denoiser(setting, row),
        rules,
        config.schedule(),
        config.num_quantiles,
    )["quantiles"].reshape(len(config.scales), len(omegas), config.num_quantiles)
    return np.broadcast_to(
        quantiles, (len(config.scales), len(config.omegas), config.num_quantiles)
    )


def output_quantile_table(
    context: Context,
    denoiser: Any,
    rules: list[gg.GuidanceRule],
    schedule: gg.Karras,
    num_quantiles: int,
) -> Arrays:
    """Quantiles of the sampler's output under each rule, ``[rule, quantile]``."""
    quantiles = [
        gg.quantile_map(
            denoiser,
            LABELS[1],
            guidance=rule,
            schedule=schedule,
            num_points=num_quantiles,
        )
        for rule in rules
    ]
    # Large scales and coarse steps can swap neighbors.
    return {"quantiles": np.sort(np.stack(quantiles), axis=-1)}


def _rule(config, row: str, scale: float, omega: float) -> gg.GuidanceRule:
    # Traced scales: one program for all of them.
    if row == "exact":
        return gg.CFG(jnp.float32(scale))
    return gg.S2Guidance(
        jnp.float32(scale),
        jnp.float32(omega),
        config.guidance.num_dropped,
        num_masks="all",
    )


def _numbers(data: Arrays, row: str) -> list[Record]:
    """Mean, width and distance to the truth of each output."""
    truth = data["outputs/truth"].astype(np.float64)
    return [
        {
            "network": row,
            "scale": float(scale),
            "s2_scale": float(omega),
            "mean": float(quantiles.mean()),
            "std": float(quantiles.std()),
            "w2": float(np.sqrt(np.mean((quantiles - truth) ** 2))),
        }
        for i, scale in enumerate(data["outputs/scales"])
        for j, omega in enumerate(data["outputs/omegas"])
        for quantiles in [data[f"outputs/{row}"][i, j].astype(np.float64)]
    ]


def guided_field(
    data: Arrays, name: str, row: str, level: int, scale: float, omega: float
) -> np.ndarray:
    """Sigma times the guided score at a level of ``line`` or ``plane``: ``[n, d]``."""
    uncond, cond, weak = (
        data[f"{name}/{row}/{part}"][level].astype(np.float64) for part in PARTS
    )
    guided = uncond + scale * (cond - uncond) + omega * (cond - weak)
    return (guided - data[f"{name}/points"]) / data[f"{name}/sigmas"][level]


def binned_density(quantiles: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Density over bins, from a distribution function linear between quantiles.

    Beyond the first and the last quantile it extrapolates as between their neighbors.
    """
    q = np.asarray(quantiles, np.float64)
    nodes = np.concatenate([[1.5 * q[0] - 0.5 * q[1]], q, [1.5 * q[-1] - 0.5 * q[-2]]])
    levels = np.concatenate([[0.0], (np.arange(len(q)) + 0.5) / len(q), [1.0]])
    return np.diff(np.interp(bins, nodes, levels)) / np.diff(bins)


def density_bins(data: Arrays) -> np.ndarray:
    """Bins of the drawn densities, an eighth of the truth's standard deviation wide.

    They hold nearly all of every output, within 16 standard deviations of the truth.
    """
    truth = data["outputs/truth"].astype(np.float64)
    center, width = truth.mean(), truth.std()
    outputs = np.stack([data[f"outputs/{row}"] for row in NETWORKS])
    low, high = np.quantile(outputs, [0.01, 0.99], axis=-1)
    first = max(-16, np.floor((min(low.min(), truth[0]) - center) / width) - 1)
    last = min(16, np.ceil((max(high.max(), truth[-1]) - center) / width) + 1)
    return center + width * np.arange(8 * first, 8 * last + 1) / 8


def start_level(data: Arrays, name: str) -> int:
    """The noise level of ``line`` or ``plane`` that is shown at first."""
    return int(np.argmin(np.abs(np.log(data[f"{name}/sigmas"] / _SHOWN_SIGMA))))


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """The panels on a line as they are at first, at the nearest computed scales."""
    guidance = metrics["config"]["guidance"]
    level = start_level(data, "line")
    x, bins = data["line/points"][:, 0], density_bins(data)
    i, j = (
        int(np.argmin(np.abs(data[f"outputs/{name}"] - guidance[field])))
        for name, field in (("scales", "cfg_scale"), ("omegas", "s2_scale"))
    )
    scale, omega = data["outputs/scales"][i], data["outputs/omegas"][j]
    truth = guided_field(data, "line", "exact", level, 1.0, 0.0)
    figure, axes = plt.subplots(
        2, len(NETWORKS), figsize=(PAGE_WIDTH, 3.8), sharex="row"
    )
    for (top, bottom), row in zip(axes.T, NETWORKS, strict=True):
        top.set_title(NETWORK_TITLES[row])
        top.plot(x, truth, color=TRUTH, lw=3.0, label="truth")
        bottom.stairs(
            binned_density(data["outputs/truth"], bins), bins, color=TRUTH, fill=True
        )
        # CFG is wider: it shows beneath S².
        for label, color, width, at, output in (
            ("no guidance", "unguided", 0.7, (1.0, 0.0), None),
            ("CFG", "cfg", 2.4, (scale, 0.0), data[f"outputs/{row}"][i, 0]),
            ("S²", "s2", 1.1, (scale, omega), data[f"outputs/{row}"][i, j]),
        ):
            style = {"color": COLORS[color], "lw": width}
            field = guided_field(data, "line", row, level, *at)
            top.plot(x, field, label=label, **style)
            if output is not None:
                bottom.stairs(binned_density(output, bins), bins, **style)
        bottom.set(xlabel="x", yticks=[])
    axes[0, 0].set_ylabel(f"σ × score at σ = {data['line/sigmas'][level]:.2g}")
    axes[1, 0].set_ylabel("density of the output")
    axes[0, 0].legend(fontsize=6)
    figure.supxlabel(
        f"CFG scale {scale:g}, ω = {omega:g}, mean over all masks; trained networks: "
        f"first of {metrics['seeds']} training seeds;\noutputs with the S² term in "
        "steps 10 to 90 %; gray: the truth p(x | label)",
        fontsize=6.2,
    )
    return {"figure": figure}


def summarize(metrics: Metrics) -> list[str]:
    """What it is for, and the scales whose output is nearest to the truth."""
    lines = ["to move the sliders: toy-experiments report"]
    for row in REGIMES:
        outputs = select(metrics, "outputs", network=row)
        best = min(outputs, key=lambda r: r["w2"])
        lines.append(
            f"{NETWORK_TITLES[row]}, first seed: of {len(outputs)} outputs the nearest "
            f"to the truth has scale {best['scale']:g}, omega {best['s2_scale']:g}: W2 "
            f"{best['w2']:.3f}"
        )
    return lines


EXPERIMENT = Experiment(
    "explorer",
    "analysis",
    "precomputed fields and outputs for the report's interactive panels",
    ExplorerConfig,
    compute,
    draw,
    summarize,
)
