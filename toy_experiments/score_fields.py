"""Fields of the exact, the CFG-guided and the S²-guided score, and where they depart.

For a corner of the 2-D mixture and several noise levels: the exact conditional score;
how far CFG with *exact* denoisers departs from it (the rule's own bias); how far CFG
and S² with a *trained* network depart (bias and learning error together); and the S²
correction drawn on CFG's error. Fields are multiplied by the noise level, which makes
them differences of denoised samples over sigma, of order one at every level.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

import gmm_guidance as gg
from gmm_guidance.plot import draw_field
from toy_experiments.common.experiment import Experiment, check_at_least
from toy_experiments.common.paper import NETWORK_TITLES, REGIMES, PaperConfig
from toy_experiments.common.records import (
    Metrics,
    Record,
    Tables,
    over_seeds,
    plus_minus,
    single,
)
from toy_experiments.common.store import Arrays, Store
from toy_experiments.common.style import PAGE_WIDTH

LABEL = 3  # the corner (+4, +4)
_TITLES = {
    "exact": "exact score\nof p(x | label)",
    "cfg_exact": "CFG, exact denoisers:\ndeparture",
    "cfg": "CFG, trained:\ndeparture",
    "s2": "S², trained:\ndeparture",
    "correction": "S² correction (arrows)\non CFG's departure",
}


@dataclasses.dataclass(frozen=True)
class ScoreFieldsConfig(PaperConfig):
    """Configuration of ``score_fields``.

    Attributes:
        sigmas: noise levels, a row of panels each.
        grid: points of the field along each axis.
        limit: the fields cover ``[-limit, limit]`` squared.
    """

    sigmas: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    grid: int = 97
    limit: float = 11.0

    QUICK = PaperConfig.QUICK | {"sigmas": (1.0, 2.0, 4.0), "grid": 49}

    def __post_init__(self):
        super().__post_init__()
        if not self.sigmas or min(self.sigmas) <= 0:
            raise ValueError(f"sigmas must be > 0, got {self.sigmas}.")
        check_at_least(8, grid=self.grid)


def compute(config: ScoreFieldsConfig, store: Store) -> tuple[Tables, Arrays]:
    """Fields on a grid (first seed) and their numbers over noised true samples."""
    setting = config.setting(store, "four_corners")
    mixture = setting.mixture
    axis = np.linspace(-config.limit, config.limit, config.grid)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    data: Arrays = {"axis": axis, "sigmas": np.array(config.sigmas)}
    tables: Tables = {"levels": []}
    clean, _ = mixture.sample(jax.random.key(11), config.num_samples, LABEL)
    noise = jax.random.normal(jax.random.key(12), clean.shape)
    total = len(config.sigmas) * len(REGIMES)
    with store.reporter.task("score_fields", total) as task:
        for level, sigma in enumerate(config.sigmas):
            noised = np.asarray(clean + sigma * noise)
            count = len(noised)
            everywhere = np.concatenate([noised, points])
            exact = _exact_fields(config, mixture, everywhere, sigma)
            truth = exact["exact"][count:]
            data[f"{level}/log_density"] = np.asarray(
                mixture.log_prob(points.astype(np.float32), sigma, LABEL)
            )
            data[f"{level}/exact"] = (truth - points) / sigma
            data[f"{level}/cfg_exact"] = (exact["cfg"][count:] - truth) / sigma
            for network in REGIMES:
                values = []
                for seed in range(config.seeds):
                    denoiser = setting.denoiser(network, seed)
                    fields = _trained_fields(config, denoiser, everywhere, sigma)
                    values.append(_numbers(exact, fields, count, sigma))
                    # The first seed is drawn: a mean would hide learning error.
                    for name, field in fields.items() if seed == 0 else ():
                        data[f"{level}/{network}/{name}"] = (
                            field[count:] - truth
                        ) / sigma
                place = {"sigma": sigma, "network": network}
                tables["levels"].append(place | over_seeds(values))
                task.advance(detail=f"sigma {sigma:g}, {network}")
    return tables, {k: np.asarray(v, np.float32) for k, v in data.items()}


def _exact_fields(config, mixture, points, sigma) -> Arrays:
    """Denoised points by the closed form: conditional, and under CFG."""
    x = jnp.asarray(points, jnp.float32)
    cond = mixture.denoise(x, sigma, LABEL)
    uncond = mixture.denoise(x, sigma)
    scale = config.guidance.cfg_scale
    return {
        "exact": np.asarray(cond),
        "cfg": np.asarray(uncond + scale * (cond - uncond)),
    }


def _trained_fields(config, denoiser, points, sigma) -> Arrays:
    """Denoised points by a network: under CFG, and S² in expectation over masks."""
    g = config.guidance
    rules: dict[str, gg.GuidanceRule] = {
        "cfg": gg.CFG(g.cfg_scale),
        "s2": gg.S2Guidance(
            g.cfg_scale, g.s2_scale, g.num_dropped, window=None, num_masks="all"
        ),
    }
    x = jnp.asarray(points, jnp.float32)
    return {
        name: np.asarray(gg.guided_denoise(denoiser, rule, x, sigma, LABEL))
        for name, rule in rules.items()
    }


def _numbers(
    exact: Arrays, network: Arrays, count: int, sigma: float
) -> dict[str, float]:
    """Root mean squares, over sigma, and cosines, over noised true samples."""
    truth, exact_cfg = exact["exact"][:count], exact["cfg"][:count]
    cfg = network["cfg"][:count]
    bias = exact_cfg - truth
    learned = cfg - exact_cfg
    correction = network["s2"][:count] - cfg
    return {
        "rule_bias": _rms(bias) / sigma,
        "learning_error": _rms(learned) / sigma,
        "cfg_departure": _rms(bias + learned) / sigma,
        "s2_departure": _rms(bias + learned + correction) / sigma,
        "s2_correction": _rms(correction) / sigma,
        "cosine_with_minus_learning_error": _cosine(correction, -learned),
        "cosine_with_minus_rule_bias": _cosine(correction, -bias),
    }


def _rms(field: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.sum(np.square(field, dtype=np.float64), axis=1))))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    inner = np.mean(np.sum(a.astype(np.float64) * b, axis=1))
    return float(inner / max(_rms(a) * _rms(b), 1e-30))


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """One figure for each network."""
    return {f"figure_{network}": _draw(network, metrics, data) for network in REGIMES}


def _draw(network: str, metrics: Metrics, data: Arrays) -> Figure:
    sigmas = metrics["config"]["sigmas"]
    figure, axes = plt.subplots(
        len(sigmas),
        len(_TITLES),
        figsize=(PAGE_WIDTH, 0.9 + 1.62 * len(sigmas)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, sigma in enumerate(sigmas):
        cfg, s2 = data[f"{row}/{network}/cfg"], data[f"{row}/{network}/s2"]
        fields = {
            "exact": (data[f"{row}/exact"],) * 2,
            "cfg_exact": (data[f"{row}/cfg_exact"],) * 2,
            "cfg": (cfg, cfg),
            "s2": (s2, s2),
            "correction": (cfg, s2 - cfg),
        }
        log_density = data[f"{row}/log_density"]
        inside = log_density > log_density.max() - 8.0
        top = max(
            np.quantile(_length(fields[c][0])[inside], 0.98) for c in ("cfg", "s2")
        )
        record = single(metrics, "levels", sigma=sigma, network=network)
        for column, (panel, (color_field, arrows)) in enumerate(fields.items()):
            ax = axes[row, column]
            norm = PowerNorm(
                0.6, 0.0, 3.0 if panel == "exact" else float(max(top, 1e-6)), clip=True
            )
            image = draw_field(ax, data["axis"], log_density, color_field, arrows, norm)
            ax.set(xticks=[-8, 0, 8], yticks=[-8, 0, 8])
            ax.set_xlabel(_caption(panel, record), fontsize=6.0)
            if row == 0:
                ax.set_title(_TITLES[panel], fontsize=7)
            if panel == "correction":
                bar = figure.colorbar(image, ax=ax, fraction=0.05, pad=0.03)
                bar.ax.tick_params(labelsize=5.5)
                ticks = top * np.array([0.0, 0.2, 0.55, 1.0])
                bar.set_ticks(ticks, labels=[f"{t:.1f}" for t in ticks])
        axes[row, 0].set_ylabel(f"σ = {sigma:g}")
    figure.suptitle(
        f"{NETWORK_TITLES[network]} network (EDM prediction, pre-normalized blocks)",
        fontsize=8,
    )
    figure.supxlabel(
        f"first seed drawn; color: σ · |field|, one "
        "scale for each row (first column: 0 to 3); white: p(x | label) at 1, 2 and 3\n"
        "standard deviations; numbers: root mean square over noised true samples, ± "
        f"standard error over {metrics['seeds']} training seeds",
        fontsize=6.2,
    )
    return figure


def _caption(panel: str, record: Record) -> str:
    if panel == "cfg_exact":
        return f"rms {plus_minus(record['rule_bias'], 2)}"
    if panel == "cfg":
        return f"rms {plus_minus(record['cfg_departure'], 2)}"
    if panel == "s2":
        return f"rms {plus_minus(record['s2_departure'], 2)}"
    if panel == "correction":
        learned = plus_minus(record["cosine_with_minus_learning_error"], 2)
        bias = plus_minus(record["cosine_with_minus_rule_bias"], 2)
        return f"cos(−learned) {learned}\ncos(−bias) {bias}"
    return ""


def _length(field: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(field**2, axis=-1))


def summarize(metrics: Metrics) -> list[str]:
    """Departures from the exact score at each level."""
    return [
        f"sigma {r['sigma']:g}, {NETWORK_TITLES[r['network']]}: CFG departs by "
        f"{r['cfg_departure']['mean']:.3f} (bias alone {r['rule_bias']['mean']:.3f}), "
        f"S² by {r['s2_departure']['mean']:.3f}; cosine of the correction with "
        f"-learning error {r['cosine_with_minus_learning_error']['mean']:+.2f}, with "
        f"-bias {r['cosine_with_minus_rule_bias']['mean']:+.2f}"
        for r in metrics["tables"]["levels"]
    ]


EXPERIMENT = Experiment(
    "score_fields",
    "paper",
    "2-D fields of the exact, CFG and S² scores, and where they depart",
    ScoreFieldsConfig,
    compute,
    draw,
    summarize,
)
