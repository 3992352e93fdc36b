"""What the interactive panels of the report need: fields and outputs, precomputed.

Guided predictions are affine in the two scales,

    D = D_u + scale (D_c - D_u) + omega (D_c - D_weak),

so the three parts on a grid of points and noise levels give the guided score at any
scale and omega. ``D_weak`` is the mean over all masks. Outputs of the sampler are not
affine in the scales: they are computed on a grid of scales, as quantiles on a line. Of
the trained networks the first seed is shown: a mean over seeds would hide learning
error.
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
from toy_experiments.common.mixtures import MixtureName
from toy_experiments.common.paper import (
    NETWORK_TITLES,
    NETWORKS,
    REGIMES,
    PaperConfig,
)
from toy_experiments.common.records import Metrics, Record, Tables, select
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.style import COLORS, PAGE_WIDTH, TRUTH

#: Fields by name: their mixture and label, the mode +4 and the corner (+4, +4).
FIELDS: dict[str, tuple[MixtureName, int]] = {
    "line": ("two_modes", 1),
    "plane": ("four_corners", 3),
}
_SHOWN_SIGMA = 2.0  # of the figure, and of the sliders at first


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
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0)
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
        if self.omegas[0] != 0:
            raise ValueError(
                f"omegas must begin with 0, which is CFG, got {self.omegas}."
            )
        check_at_least(16, num_quantiles=self.num_quantiles)


def compute(config: ExplorerConfig, store: Store) -> tuple[Tables, Arrays]:
    """Fields on a line and in the plane, and outputs on the line."""
    data: Arrays = {
        "outputs/scales": np.array(config.scales),
        "outputs/omegas": np.array(config.omegas),
    }
    for name, (mixture, label) in FIELDS.items():
        setting = config.setting(store, mixture)
        dim = setting.mixture.dim
        count, levels = (
            getattr(config, f"{name}_{size}") for size in ("points", "levels")
        )
        axis = np.linspace(-config.limit, config.limit, count)
        points = np.stack(np.meshgrid(*[axis] * dim), axis=-1).reshape(-1, dim)
        sigmas = np.geomspace(config.lowest_level, config.highest_level, levels)
        data |= {f"{name}/points": points, f"{name}/sigmas": sigmas}
        data[f"{name}/mode"] = np.asarray(setting.mixture.mean(label))
        with store.reporter.task(f"explorer, {name}", len(NETWORKS)) as task:
            for row in NETWORKS:
                denoiser = setting.denoiser(row, 0)  # the first seed
                data[f"{name}/{row}"] = _field_parts(
                    denoiser, points, sigmas, label, config.guidance.num_dropped
                )
                if name == "line":
                    data[f"outputs/{row}"] = _outputs(config, store, denoiser, label)
                task.advance(detail=NETWORK_TITLES[row])
        if name == "line":
            data["outputs/truth"] = gg.metrics.quantile(
                setting.mixture,
                (np.arange(config.num_quantiles) + 0.5) / config.num_quantiles,
                label,
            )
    data = {k: np.asarray(v, np.float32) for k, v in data.items()}
    return {"outputs": [r for row in NETWORKS for r in _numbers(data, row)]}, data


def _field_parts(
    denoiser: Any, points: np.ndarray, sigmas: np.ndarray, label: int, dropped: int
) -> np.ndarray:
    """``D_u``, ``D_c`` and ``D_weak``, ``[part, level, point, d]``."""
    x = jnp.asarray(np.tile(points, (len(sigmas), 1)), jnp.float32)
    sigma = jnp.asarray(np.repeat(sigmas, len(points)), jnp.float32)
    labels = jnp.full(len(x), label, jnp.int32)
    if isinstance(denoiser, gg.ExactDenoiser):
        # The sub-network of a perfect network is perfect at best.
        uncond, cond = denoiser.denoise_rows(x, sigma, [None, labels])
        parts = (uncond, cond, cond)
    else:
        masks = gg.drop.FixedCount(dropped).all_masks(denoiser.num_blocks)
        parts = _network_parts(
            denoiser, x, sigma, labels, list(map(jnp.asarray, masks))
        )
    return np.reshape(parts, (3, len(sigmas), *points.shape))


@jax.jit
def _network_parts(denoiser, x, sigma, label, masks) -> tuple[jax.Array, ...]:
    weak = [gg.Pass(label, drop=mask) for mask in masks]
    uncond, cond, weak = gg.evaluate_passes(
        denoiser, x, sigma, (gg.Pass(None), gg.Pass(label), weak)
    )
    return uncond, cond, jnp.mean(jnp.stack(weak), axis=0)


def _outputs(
    config: ExplorerConfig, store: Store, denoiser: Any, label: int
) -> np.ndarray:
    """Quantiles of the sampler's output, ``[scale, omega, quantile]``, ascending."""
    # Traced scales: one program for all of them.
    scales, omegas = (list(map(jnp.float32, v)) for v in (config.scales, config.omegas))
    rules: list[gg.GuidanceRule] = [gg.CFG(scale) for scale in scales]
    if not isinstance(denoiser, gg.ExactDenoiser):  # for which the S² term vanishes
        dropped = config.guidance.num_dropped
        rules = [
            gg.S2Guidance(scale, omega, dropped, num_masks="all")
            for scale in scales
            for omega in omegas
        ]
    quantiles = store.cell(
        output_quantiles,
        denoiser,
        label,
        rules,
        config.schedule(),
        config.num_quantiles,
    )["quantiles"].reshape(len(config.scales), -1, config.num_quantiles)
    shape = (len(config.scales), len(config.omegas), config.num_quantiles)
    return np.broadcast_to(quantiles, shape)


def output_quantiles(
    context: Context,
    denoiser: Any,
    label: int,
    rules: list[gg.GuidanceRule],
    schedule: gg.Karras,
    num_quantiles: int,
) -> Arrays:
    """Quantiles of the sampler's output under each rule, ``[rule, quantile]``."""
    quantiles = [
        gg.quantile_map(
            denoiser, label, guidance=rule, schedule=schedule, num_points=num_quantiles
        )
        for rule in rules
    ]
    # Large scales and coarse steps can swap neighbors.
    return {"quantiles": np.sort(np.stack(quantiles), axis=-1)}


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
    uncond, cond, weak = data[f"{name}/{row}"][:, level].astype(np.float64)
    guided = uncond + scale * (cond - uncond) + omega * (cond - weak)
    return (guided - data[f"{name}/points"]) / data[f"{name}/sigmas"][level]


def binned_density(quantiles: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Density over bins, from a distribution function linear between quantiles.

    It is extended by half a step beyond the first and the last quantile.
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


def _nearest(values: np.ndarray, wanted: float) -> int:
    return int(np.argmin(np.abs(values - wanted)))


def start_level(data: Arrays, name: str) -> int:
    """The noise level of ``line`` or ``plane`` that is shown at first."""
    return _nearest(np.log(data[f"{name}/sigmas"]), np.log(_SHOWN_SIGMA))


def start_scales(metrics: Metrics, data: Arrays) -> tuple[int, int]:
    """Indices of the CFG scale and of omega (not 0) of the output shown at first."""
    guidance = metrics["config"]["guidance"]
    scale = _nearest(data["outputs/scales"], guidance["cfg_scale"])
    return scale, 1 + _nearest(data["outputs/omegas"][1:], guidance["s2_scale"])


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """The panels on a line as they are at first, at the nearest computed scales."""
    level = start_level(data, "line")
    i, j = start_scales(metrics, data)
    scale, omega = data["outputs/scales"][i], data["outputs/omegas"][j]
    x, bins = data["line/points"][:, 0], density_bins(data)
    truth = guided_field(data, "line", "exact", level, 1.0, 0.0)
    true_density = binned_density(data["outputs/truth"], bins)
    figure, axes = plt.subplots(
        2, len(NETWORKS), figsize=(PAGE_WIDTH, 3.8), sharex="row"
    )
    for (top, bottom), row in zip(axes.T, NETWORKS, strict=True):
        top.set_title(NETWORK_TITLES[row])
        top.plot(x, truth, color=TRUTH, lw=3.0, label="truth")
        bottom.stairs(true_density, bins, color=TRUTH, fill=True)
        outputs = data[f"outputs/{row}"]
        # CFG is wider: it shows beneath S².
        for label, color, width, at, output in (
            ("no guidance", "unguided", 0.7, (1.0, 0.0), None),
            ("CFG", "cfg", 2.4, (scale, 0.0), outputs[i, 0]),
            ("S²", "s2", 1.1, (scale, omega), outputs[i, j]),
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
