"""CFG against the distribution it is said to sample, p(x) p(label | x)^scale, exactly.

No network: exact denoisers in one dimension. First the pair of Gaussians N(m, 1) given
the label and N(0, 2) without, where CFG's probability flow, its reverse diffusion and
the tilted distribution are three different Gaussians in closed form (Bradley & Nakkiran
2024, arXiv 2408.09000). Then the mixture of N(1, 1) and N(-1, 1) with the bounds of
Chidambaram et al. 2024 (arXiv 2409.13074): with ``w = scale - 1`` the flow has
``P(x >= 0) >= 1 - exp(-Omega(w^2))`` and ``P(x >= sqrt(w)) >= 1 - exp(-Omega(w))``.
Last the distances between CFG, the tilted distribution and p(x | label) on four
mixtures.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import scipy.integrate
import scipy.special
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gmm_guidance as gg
from gmm_guidance.exact import (
    TiltedTarget,
    cfg_ode_moments,
    cfg_sde_moments,
    tilted_moments,
)
from toy_experiments.common.experiment import Config, Experiment, check_at_least
from toy_experiments.common.records import (
    Metrics,
    Record,
    Tables,
    over_seeds,
    select,
    single,
)
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.style import COLORS, PAGE_WIDTH, TRUTH, draw_measurements

PAIR = (1.0, 1.0, 2.0)  # conditional mean and variance, unconditional variance
CASES = {  # two modes at -+ distance, of one standard deviation, equally likely
    "G1": (1.0, 0.5),
    "G2": (1.0, 1.0),
    "S2a": (4.0, 0.5),
    "S2b": (4.0, 1.0),
}
#: Distributions with their look: title and color.
KINDS = {
    "flow": ("CFG, probability flow", COLORS["cfg"]),
    "diffusion": ("CFG, reverse diffusion", COLORS["autoguidance"]),
    "tilted": ("tilted distribution", TRUTH),
}
#: The two bounds, on P(x < threshold): exponent of w in the bound.
BOUNDS = {"zero": 2.0, "root": 1.0}
_CASE_STYLES = {"G1": "o", "G2": "s", "S2a": "^", "S2b": "v"}
_LABEL = 1  # the mode on the right
_REACH = 64.0  # standard deviations of the start: probabilities down to exp(-2000)


@dataclasses.dataclass(frozen=True)
class PowerDistributionConfig(Config):
    """Configuration of ``power_distribution``; nothing is trained.

    Attributes:
        seeds: independent sets of samples of the reverse diffusion, at least 2; all
            else is free of sampling noise.
        num_samples: samples in each, at least 64.
        num_steps: steps of the samplers (Heun), at least 64.
        num_points: quantiles of a distribution.
        sigma_min: lowest noise level.
        sigma_max: highest noise level.
        scales: total CFG scales of the pair and of the four mixtures, ascending.
        bound_scales: total CFG scales of the two bounds, ascending, above 1.
        bound_sigma_max: highest noise level there: CFG at a large scale pushes from
            far out, and from 80 the start would still be seen at the end.
    """

    num_samples: int = 65_536
    num_steps: int = 384
    num_points: int = 2000
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    bound_scales: tuple[float, ...] = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
    bound_sigma_max: float = 1000.0

    QUICK = Config.QUICK | {
        "num_samples": 16_384,
        "num_steps": 128,
        "num_points": 1000,
        "scales": (1.0, 2.0, 4.0, 8.0),
        "bound_scales": (2.0, 4.0, 8.0, 16.0),
    }

    def __post_init__(self):
        super().__post_init__()
        # The noise of a step of the reverse diffusion must stay small.
        check_at_least(64, num_steps=self.num_steps)
        if min(self.scales) < 1 or len(self.scales) < 2:
            raise ValueError(
                f"scales must be two or more, each at least 1, got {self.scales}."
            )
        if min(self.bound_scales) <= 1 or len(self.bound_scales) < 4:
            raise ValueError(
                f"bound_scales must be four or more, each above 1, got "
                f"{self.bound_scales}."
            )
        self.schedule()
        self.bound_schedule()

    def schedule(self) -> gg.Karras:
        """Noise levels of the deterministic runs."""
        return gg.Karras(self.num_steps, self.sigma_min, self.sigma_max)

    def bound_schedule(self) -> gg.Karras:
        """Noise levels of the bounds."""
        return gg.Karras(self.num_steps, self.sigma_min, self.bound_sigma_max)

    def diffusion(self) -> tuple[gg.CustomSchedule, gg.EDMStochastic]:
        """Levels in geometric progression, and the churn that is reverse diffusion.

        A step that goes down by ``d = ln(sigma / sigma_next)`` is one of the reverse
        diffusion if it first raises the level by as much: as much noise is added as
        the step removes.
        """
        levels = np.geomspace(self.sigma_max, self.sigma_min, self.num_steps)
        drop = math.log(self.sigma_max / self.sigma_min) / (self.num_steps - 1)
        solver = gg.EDMStochastic(
            churn=math.expm1(drop) * self.num_steps,
            sigma_min=0.0,
            sigma_max=math.inf,
            noise_scale=1.0,
        )
        return gg.CustomSchedule(tuple(levels)), solver


def pair_denoiser(x: jax.Array, sigma: jax.Array, label: Any) -> jax.Array:
    """Posterior means of the pair: N(m, a) given a label, N(0, b) without."""
    mean, variance = (0.0, PAIR[2]) if label is None else PAIR[:2]
    return mean + variance / (variance + sigma**2) * (x - mean)


def compute(config: PowerDistributionConfig, store: Store) -> tuple[Tables, Arrays]:
    """Numbers of the three parts."""
    tables: Tables = {}
    with store.reporter.task("power_distribution", 3) as task:
        tables["pair"] = [r for s in config.scales for r in _pair(config, store, s)]
        task.advance(detail="pair of Gaussians")
        tables["bounds"], tables["growth"] = _bounds(config)
        task.advance(detail="bounds")
        tables["cases"] = [r for name in CASES for r in _case(config, name)]
        task.advance(detail="four mixtures")
    return tables, {}


# -- the pair of Gaussians -------------------------------------------------------------


def _pair(config: PowerDistributionConfig, store: Store, scale: float) -> list[Record]:
    """Measured and closed-form moments of each distribution at a scale."""
    mean, variance = _flow_moments(config, scale)
    schedule, solver = config.diffusion()
    moments = [
        store.cell(diffusion_moments, scale, schedule, solver, config.num_samples, seed)
        for seed in range(config.seeds)
    ]
    measured = {
        "flow": {
            "mean": mean,
            "variance": variance,
            # The start at a finite level, which the infinite limit leaves out.
            "closed_variance_from_sigma_max": float(
                cfg_ode_moments(*PAIR, scale, config.sigma_max).variance
            ),
        },
        "diffusion": over_seeds(moments),
        "tilted": {},
    }
    closed = {
        "flow": cfg_ode_moments(*PAIR, scale),
        "diffusion": cfg_sde_moments(*PAIR, scale),
        "tilted": tilted_moments(*PAIR, scale),
    }
    return [
        {
            "kind": kind,
            "scale": scale,
            **measured[kind],
            "closed_mean": float(closed[kind].mean),
            "closed_variance": float(closed[kind].variance),
        }
        for kind in KINDS
    ]


def _flow_moments(config: PowerDistributionConfig, scale: float) -> tuple[float, float]:
    """The flow of Gaussians is affine: two quantiles tell mean and variance."""
    points = np.asarray(
        gg.quantile_map(
            pair_denoiser,
            0,
            guidance=gg.CFG(scale),
            schedule=config.schedule(),
            num_points=config.num_points,
        ),
        np.float64,
    )
    levels = (np.arange(config.num_points) + 0.5) / config.num_points
    normal = scipy.special.ndtri(levels)
    std = (points[-1] - points[0]) / (normal[-1] - normal[0])
    return float(points.mean()), float(std**2)


def diffusion_moments(
    context: Context,
    scale: float,
    schedule: gg.CustomSchedule,
    solver: gg.EDMStochastic,
    num_samples: int,
    seed: int,
) -> Arrays:
    """Mean and variance of samples of CFG's reverse diffusion on the pair."""
    samples = gg.guided_sample(
        jax.random.key(3000 + seed),
        pair_denoiser,
        0,
        num_samples=num_samples,
        guidance=gg.CFG(scale),
        schedule=schedule,
        solver=solver,
        sample_shape=(1,),
    )
    x = np.asarray(samples, np.float64)
    return {"mean": x.mean(), "variance": x.var()}


# -- the bounds ------------------------------------------------------------------------


def _bounds(config: PowerDistributionConfig) -> tuple[list[Record], list[Record]]:
    """``-log P(x < threshold)`` for both thresholds, and how it grows.

    The flow is monotone: the mass that ends below a threshold is that of the start
    below one point, known as far out as the start is followed.
    """
    mixture = two_modes(*CASES["G2"])
    rows, fits = [], []
    for bound, power in BOUNDS.items():
        own = []
        for scale in config.bound_scales:
            weight = scale - 1.0
            threshold = 0.0 if bound == "zero" else math.sqrt(weight)
            own.append(
                {
                    "bound": bound,
                    "w": weight,
                    "argument": weight**power,
                    "flow": _flow_exponent(config, mixture, scale, threshold),
                    "tilted": _tilted_exponent(mixture, scale, threshold),
                }
            )
        w, against = (np.array([r[k] for r in own]) for k in ("w", "argument"))
        for kind in ("flow", "tilted"):
            exponent = np.array([r[kind] for r in own])
            fits.append({"bound": bound, "kind": kind} | growth(against, w, exponent))
        rows += own
    return rows, fits


def _flow_exponent(config, mixture, scale: float, threshold: float) -> float:
    """``-log P(x < threshold)`` of CFG's output."""
    normal = np.linspace(-_REACH, _REACH, 4 * config.num_points + 1)
    schedule = config.bound_schedule()
    ends = np.asarray(
        gg.guided_sample(
            jax.random.key(0),
            gg.ExactDenoiser(mixture),
            _LABEL,
            num_samples=len(normal),
            guidance=gg.CFG(scale),
            schedule=schedule,
            initial=schedule.sigma_max * normal[:, None].astype(np.float32),
        ),
        np.float64,
    )[:, 0]
    crossing = np.interp(threshold, ends, normal)  # of a monotone flow
    return -float(scipy.special.log_ndtr(crossing))


def _tilted_exponent(mixture, scale: float, threshold: float) -> float:
    grid, log_density = tilted_log_density(mixture, scale)
    below = np.interp(threshold, grid, _cumulative(grid, np.exp(log_density)))
    return -math.log(below)


def growth(against: np.ndarray, weight: np.ndarray, exponent: np.ndarray) -> Record:
    """How ``-log(1 - P)`` grows with the bound's argument.

    Returns:
        ``slope`` of a least-squares line; ``lower_slope`` and ``upper_slope`` between
        the first, the middle and the last point, which agree for linear growth; and
        ``power``, by which it grows with w over the upper half.
    """
    middle = len(weight) // 2
    rise = np.log(exponent[-1] / exponent[middle])
    return {
        "slope": float(np.polyfit(against, exponent, 1)[0]),
        "lower_slope": float(
            (exponent[middle] - exponent[0]) / (against[middle] - against[0])
        ),
        "upper_slope": float(
            (exponent[-1] - exponent[middle]) / (against[-1] - against[middle])
        ),
        "power": float(rise / np.log(weight[-1] / weight[middle])),
    }


# -- four mixtures ---------------------------------------------------------------------


def two_modes(distance: float, std: float) -> gg.GaussianMixture:
    """Equally likely N(-distance, std^2), label 0, and N(distance, std^2), label 1."""
    means = np.array([[-distance], [distance]], np.float32)
    return gg.GaussianMixture(means, std**2, labels=np.array([0, 1]))


def tilted_log_density(
    mixture: gg.GaussianMixture, scale: float, count: int = 8001
) -> tuple[np.ndarray, np.ndarray]:
    """The tilted distribution of the right mode: a grid and its log density there."""
    mean, std = float(mixture.means[_LABEL, 0]), float(mixture.variances.max()) ** 0.5
    grid = np.linspace(mean - 12 * std, mean + 12 * std, count)
    target = TiltedTarget(mixture, _LABEL, scale)
    log_density = np.asarray(target.log_prob(grid[:, None]), np.float64)
    # Normalized on the grid: free of the target's own quadrature.
    total = _cumulative(grid, np.exp(log_density))[-1]
    return grid, log_density - math.log(total)


def _cumulative(grid: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Integral from the left end to each point."""
    return scipy.integrate.cumulative_trapezoid(density, grid, initial=0.0)


def _case(config: PowerDistributionConfig, name: str) -> list[Record]:
    """Moments and distances at each scale."""
    mixture = two_modes(*CASES[name])
    levels = (np.arange(config.num_points) + 0.5) / config.num_points
    rows = []
    for scale in config.scales:
        flow = np.asarray(
            gg.quantile_map(
                gg.ExactDenoiser(mixture),
                _LABEL,
                guidance=gg.CFG(scale),
                schedule=config.schedule(),
                num_points=config.num_points,
            ),
            np.float64,
        )
        grid, log_density = tilted_log_density(mixture, scale)
        density = np.exp(log_density)
        tilted = np.interp(levels, _cumulative(grid, density), grid)
        mean = np.trapezoid(grid * density, grid)
        second = np.trapezoid((grid - mean) ** 2 * density, grid)
        rows.append(
            {
                "case": name,
                "scale": scale,
                "cfg_mean": float(flow.mean()),
                "cfg_std": float(flow.std()),
                "tilted_mean": float(mean),
                "tilted_std": float(np.sqrt(second)),
                "w2_to_tilted": float(np.sqrt(np.mean((flow - tilted) ** 2))),
                "w2_to_class": gg.metrics.wasserstein_1d(flow, mixture, _LABEL),
                "tilted_w2_to_class": gg.metrics.wasserstein_1d(
                    tilted, mixture, _LABEL
                ),
            }
        )
    return rows


# -- figure ----------------------------------------------------------------------------


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Variances, both bounds, and distances."""
    figure, axes = plt.subplots(2, 2, figsize=(PAGE_WIDTH, 5.0))
    _draw_pair(axes[0, 0], metrics)
    for ax, bound in zip((axes[0, 1], axes[1, 0]), BOUNDS, strict=True):
        _draw_bound(ax, bound, metrics)
    _draw_cases(axes[1, 1], metrics)
    figure.supxlabel(
        "exact denoisers; no sampling noise but in the reverse diffusion, whose error "
        f"bars (± standard error over {metrics['seeds']} draws) are below the markers",
        fontsize=6.2,
    )
    return {"figure": figure}


def _draw_pair(ax: Axes, metrics: Metrics) -> None:
    for kind, (title, color) in KINDS.items():
        rows = select(metrics, "pair", kind=kind)
        scales = [r["scale"] for r in rows]
        ax.plot(scales, [r["closed_variance"] for r in rows], color=color, label=title)
        if kind == "flow":
            ax.plot(scales, [r["variance"] for r in rows], "o", color=color, ms=3.5)
        elif kind == "diffusion":
            entries = [r["variance"] for r in rows]
            draw_measurements(ax, scales, entries, fmt="s", color=color, ms=3.5)
    ax.set_yscale("log")
    ax.set(xlabel="total CFG scale", ylabel="variance of the output")
    ax.set_title("N(1, 1) given the label, N(0, 2) without")
    ax.legend(loc="lower left", title="line: closed form, marker: sampled")


def _draw_bound(ax: Axes, bound: str, metrics: Metrics) -> None:
    rows = select(metrics, "bounds", bound=bound)
    against, flow, tilted = (
        np.array([r[k] for r in rows]) for k in ("argument", "flow", "tilted")
    )
    titles = {kind: title for kind, (title, _) in KINDS.items()}
    if bound == "zero":
        slope = single(metrics, "growth", bound=bound, kind="flow")["slope"]
        start = flow.mean() - slope * against.mean()
        ax.plot(against, start + slope * against, color="black", lw=0.6, ls=":")
        titles["flow"] += f", slope {slope:.2f}"
    for kind, values, style in (("flow", flow, "o-"), ("tilted", tilted, "D-")):
        color = KINDS[kind][1]
        ax.plot(against, values, style, color=color, ms=3.3, label=titles[kind])
    event, variable = ("x < 0", "w²") if bound == "zero" else ("x < √w", "w")
    ax.set(
        xlabel=f"{variable} = " + ("(scale − 1)²" if bound == "zero" else "scale − 1"),
        ylabel=f"− log P({event})",
    )
    ax.set_title(f"modes N(±1, 1): a bound of the form exp(−Ω({variable}))")
    ax.set_ylim(0.0, 1.3 * max(flow.max(), tilted.max()))
    ax.legend(loc="upper left")


def _draw_cases(ax: Axes, metrics: Metrics) -> None:
    for name, marker in _CASE_STYLES.items():
        rows = select(metrics, "cases", case=name)
        scale, to_tilted, to_class = (
            [r[k] for r in rows] for k in ("scale", "w2_to_tilted", "w2_to_class")
        )
        distance, std = CASES[name]
        label = f"{name}: N(±{distance:g}, {std:g}²)"
        ax.plot(scale, to_tilted, f"{marker}-", color=COLORS["cfg"], ms=3, label=label)
        ax.plot(scale, to_class, f"{marker}--", color="black", ms=3, lw=0.7)
    ax.set(xlabel="total CFG scale", ylabel="W2 of CFG's output")
    ax.set_title("solid: to the tilted distribution, dashed: to p(x | label)")
    ax.set_ylim(top=1.3 * ax.get_ylim()[1])
    ax.legend(loc="upper left", ncols=2)


def summarize(metrics: Metrics) -> list[str]:
    """The agreement with the closed forms, the bounds and the distances."""

    def mean(value: Any) -> float:
        return value["mean"] if isinstance(value, dict) else value

    worst = {
        kind: max(
            abs(mean(r["variance"]) / r["closed_variance"] - 1)
            for r in select(metrics, "pair", kind=kind)
        )
        for kind in ("flow", "diffusion")
    }
    lines = [
        f"variance of CFG on the pair: flow within {worst['flow']:.2%} of "
        f"2^(1 - scale), reverse diffusion within {worst['diffusion']:.2%} of its "
        f"closed form"
    ]
    for bound, event, argument in (("zero", "x < 0", "w²"), ("root", "x < √w", "w")):
        g = single(metrics, "growth", bound=bound, kind="flow")
        t = single(metrics, "growth", bound=bound, kind="tilted")
        lines.append(
            f"-log P({event}) against {argument}: slope {g['slope']:.3g} (lower half "
            f"{g['lower_slope']:.3g}, upper half {g['upper_slope']:.3g}), grows as "
            f"w^{g['power']:.2f}; tilted distribution as w^{t['power']:.2f}"
        )
    for name in CASES:
        values = ", ".join(
            f"{r['scale']:g}: {r['w2_to_tilted']:.3f} / {r['w2_to_class']:.3f}"
            for r in select(metrics, "cases", case=name)
        )
        lines.append(
            f"{name}: W2 to the tilted distribution / to p(x | label): {values}"
        )
    return lines


EXPERIMENT = Experiment(
    "power_distribution",
    "related",
    "exact CFG against p(x) p(label | x)^scale: closed forms and bounds",
    PowerDistributionConfig,
    compute,
    draw,
    summarize,
)
