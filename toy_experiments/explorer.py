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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MultipleLocator

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
from toy_experiments.common.style import COLOURS, PAGE_WIDTH, TRUTH

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
        "omegas": (0.0, 0.5, 1.0),
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
    masks = gg.FixedCount(dropped).all_masks(denoiser.num_blocks)
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
    # Large scales and coarse steps can swap neighbours.
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


def output_quantiles(data: Arrays, row: str, scale: float, omega: float) -> np.ndarray:
    """Quantiles of an output, linear in both scales between those computed."""
    table = data[f"outputs/{row}"].astype(np.float64)
    for name, value in (("scales", scale), ("omegas", omega)):
        nodes = data[f"outputs/{name}"]
        i = int(np.clip(np.searchsorted(nodes, value) - 1, 0, len(nodes) - 2))
        share = float(np.clip((value - nodes[i]) / (nodes[i + 1] - nodes[i]), 0, 1))
        table = (1 - share) * table[i] + share * table[i + 1]
    return table


def binned_density(quantiles: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Density over bins, from a distribution function linear between quantiles.

    Beyond the first and the last quantile it goes on as between their neighbours.
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
    centre, width = truth.mean(), truth.std()
    outputs = np.stack([data[f"outputs/{row}"] for row in NETWORKS])
    low, high = np.quantile(outputs, [0.01, 0.99], axis=-1)
    first = max(-16, np.floor((min(low.min(), truth[0]) - centre) / width) - 1)
    last = min(16, np.ceil((max(high.max(), truth[-1]) - centre) / width) + 1)
    return centre + width * np.arange(8 * first, 8 * last + 1) / 8


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """The panels of the report as they are at first."""
    guidance = metrics["config"]["guidance"]
    scales = (guidance["cfg_scale"], guidance["s2_scale"])
    figure, axes = plt.subplots(len(NETWORKS), 3, figsize=(PAGE_WIDTH, 6.3))
    for row, name in enumerate(NETWORKS):
        sigma = _draw_line(axes[row, 0], data, name, *scales)
        _draw_output(axes[row, 1], data, name, *scales)
        plane_sigma = _draw_plane(axes[row, 2], data, metrics, name, *scales)
        axes[row, 0].set_ylabel(NETWORK_TITLES[name])
    axes[0, 0].set_title(f"σ × score at σ = {sigma:.2g}")
    axes[0, 1].set_title("density of the sampler's output")
    axes[0, 2].set_title(f"σ × score at σ = {plane_sigma:.2g}")
    axes[0, 0].legend(fontsize=6)
    figure.supxlabel(
        f"CFG scale {scales[0]:g}, ω = {scales[1]:g}, mean over all masks; grey: the "
        "truth p(x | label); trained networks: first of "
        f"{metrics['seeds']} training seeds; outputs with the\nS² term in steps 10 to "
        "90 %; right: grey arrows are the truth's, circles p(x | label) at 1, 2 and 3 "
        "standard deviations of the noised class",
        fontsize=6.2,
    )
    return {"figure": figure}


def start_level(data: Arrays, name: str) -> int:
    """The noise level of ``line`` or ``plane`` that is shown at first."""
    return int(np.argmin(np.abs(np.log(data[f"{name}/sigmas"] / _SHOWN_SIGMA))))


def _draw_line(ax: Axes, data: Arrays, row: str, scale: float, omega: float) -> float:
    level = start_level(data, "line")
    x = data["line/points"][:, 0]
    curves = [
        ("truth", "exact", (1.0, 0.0), TRUTH, 3.0),
        ("no guidance", row, (1.0, 0.0), COLOURS["unguided"], 0.7),
        ("CFG", row, (scale, 0.0), COLOURS["cfg"], 2.4),  # shows beneath S²
        ("S²", row, (scale, omega), COLOURS["s2"], 1.1),
    ]
    for label, source, at, colour, width in curves:
        field = guided_field(data, "line", source, level, *at)[:, 0]
        ax.plot(x, field, color=colour, lw=width, label=label)
    ax.set(xlabel="x", xlim=(x[0], x[-1]))
    return float(data["line/sigmas"][level])


def _draw_output(ax: Axes, data: Arrays, row: str, scale: float, omega: float) -> None:
    bins = density_bins(data)
    truth = binned_density(data["outputs/truth"], bins)
    ax.stairs(truth, bins, color=TRUTH, alpha=0.55, fill=True, lw=0)
    cfg = output_quantiles(data, row, scale, 0.0)
    s2 = output_quantiles(data, row, scale, omega)
    ax.stairs(binned_density(cfg, bins), bins, color=COLOURS["cfg"], lw=2.4)
    ax.stairs(binned_density(s2, bins), bins, color=COLOURS["s2"])
    w2 = np.sqrt(np.mean((s2 - data["outputs/truth"]) ** 2))
    ax.set(xlabel=f"x;  S²: mean {s2.mean():.2f}, std {s2.std():.2f}, W2 {w2:.2f}")
    centre, width = data["outputs/truth"].mean(), data["outputs/truth"].std()
    ax.set(xlim=(centre - 8 * width, centre + 8 * width), ylim=(0, 2.2 * truth.max()))
    ax.xaxis.set_major_locator(MultipleLocator(4))
    ax.set_yticks([])


def _draw_plane(
    ax: Axes, data: Arrays, metrics: Metrics, row: str, scale: float, omega: float
) -> float:
    level = start_level(data, "plane")
    points = data["plane/points"]
    truth = guided_field(data, "plane", "exact", level, 1.0, 0.0)
    guided = guided_field(data, "plane", row, level, scale, omega)
    sigma = float(data["plane/sigmas"][level])
    for radius in (1, 2, 3):
        spread = radius * np.sqrt(metrics["config"]["std"] ** 2 + sigma**2)
        centre = tuple(data["plane/mode"])
        ax.add_patch(Circle(centre, spread, fill=False, color=TRUTH, lw=0.6))
    longest = max(_length(truth).max(), _length(guided).max())
    thin = _thinned(points)
    for field, colour, width in (
        (truth, TRUTH, 0.008),
        (guided, COLOURS["s2"], 0.004),
    ):
        # Length by the square root: direction stays readable where a field is weak.
        length = np.maximum(_length(field), 1e-12)
        arrows = (field * np.sqrt(length / longest)[:, None] / length[:, None])[thin]
        ax.quiver(
            *points[thin].T, *arrows.T, color=colour, scale=13, width=width,
            headwidth=4,
        )  # fmt: skip
    low, high = points.min(), points.max()
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="$x_1$")
    ax.set_xticks([-8, -4, 0, 4, 8])
    ax.set_yticks([-8, -4, 0, 4, 8])
    return sigma


def _thinned(points: np.ndarray) -> np.ndarray:
    """Every second point along each axis."""
    size = round(np.sqrt(len(points)))
    every = np.arange(len(points)).reshape(size, size)
    return every[::2, ::2].reshape(-1)


def _length(field: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(field**2, axis=-1))


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
