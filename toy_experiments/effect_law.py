"""The first-order law of a weak pass, predicted without sampling and then measured.

For networks of several predictions and kinds of block, ``gg.weak_pass_effect`` predicts
from noised true samples how S² changes the width and the shift of a mode. The same
networks are then sampled with and without the S² term, from the same noise.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from toy_experiments.common.experiment import Experiment, check_among
from toy_experiments.common.kinds import (
    BLOCK_MARKERS,
    BLOCKS,
    KIND_TITLES,
    PREDICTION_COLORS,
    PREDICTIONS,
    Block,
    Prediction,
)
from toy_experiments.common.mixtures import (
    MIXTURE_TITLES,
    MixtureName,
    make_mixture,
    relative_schedule,
)
from toy_experiments.common.networks import Budgets
from toy_experiments.common.records import Metrics, Record, Tables, measurement, select
from toy_experiments.common.rules import make_rule
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.style import PAGE_WIDTH, legend_below
from toy_experiments.common.sweep import METRICS, AnalysisConfig, measure_rules

QUANTITIES = {
    "log_width": "change of log width",
    "shift": "change of shift / std",
}
_SHIFT, _WIDTH = METRICS.index("shift"), METRICS.index("width")


@dataclasses.dataclass(frozen=True)
class EffectLawConfig(AnalysisConfig):
    """Configuration of ``effect_law``.

    Attributes:
        num_samples: quantiles of both classes together, and points of the prediction.
        predictions: what the networks predict.
        blocks: their blocks.
        mixtures: mixtures on a line, whose samples are quantiles without noise.
        scales: CFG scales at which the effect is measured; the prediction has none.
        s2_scale: the paper's omega.
    """

    seeds: int = 8
    budgets: Budgets = Budgets(steps=(300, 1000), batch_size=128)
    predictions: tuple[Prediction, ...] = PREDICTIONS
    blocks: tuple[Block, ...] = BLOCKS
    mixtures: tuple[MixtureName, ...] = ("two_modes",)
    scales: tuple[float, ...] = (1.0, 2.0)
    s2_scale: float = 0.25

    QUICK = AnalysisConfig.QUICK | {
        "budgets": Budgets(steps=(50,), batch_size=128),
        "predictions": ("epsilon",),
        "blocks": ("plain",),
        "scales": (1.0,),
    }
    FULL = {
        "budgets": Budgets(steps=(300, 1000, 3000), batch_size=128),
        "mixtures": ("two_modes", "overlap"),
    }

    def __post_init__(self):
        super().__post_init__()
        check_among(PREDICTIONS, "the predictions", predictions=self.predictions)
        check_among(("two_modes", "overlap"), "the line's", mixtures=self.mixtures)


def compute(config: EffectLawConfig, store: Store) -> tuple[Tables, Arrays]:
    """Prediction and measurement of each network, and their correlations."""
    tables: Tables = {"networks": [], "groups": [], "correlations": []}
    for mixture, prediction, block in itertools.product(
        config.mixtures, config.predictions, config.blocks
    ):
        run = config.networks(store, mixture, prediction=prediction, block=block)
        items = [(s, k) for s in config.budgets.steps for k in range(config.seeds)]

        def one(steps, seed, mixture=mixture, run=run):
            network = run.denoiser(seed, steps).network
            predicted = store.cell(
                predict_effect, network, mixture, config.s2_scale,
                config.num_samples, config.num_steps,
            )  # fmt: skip
            rules = [
                make_rule("s2", scale, omega)
                for scale in config.scales
                for omega in (0.0, config.s2_scale)
            ]
            values = measure_rules(
                store, mixture, network, rules, config.num_samples, config.num_steps,
                seed,
            )  # fmt: skip
            return predicted, values.reshape(len(config.scales), 2, len(METRICS))

        title = f"effect law, {mixture}, {prediction}, {block}"
        place: Record = {"mixture": mixture, "prediction": prediction, "block": block}
        for (steps, seed), (predicted, values) in store.map(title, one, items).items():
            for scale, (without, with_term) in zip(config.scales, values, strict=True):
                tables["networks"].append(
                    place
                    | {"steps": steps, "seed": seed, "scale": scale}
                    | {f"predicted_{k}": float(v) for k, v in predicted.items()}
                    | {
                        "measured_log_width": float(
                            np.log(with_term[_WIDTH] / without[_WIDTH])
                        ),
                        "measured_shift": float(with_term[_SHIFT] - without[_SHIFT]),
                        "change_of_distance": float(with_term[0] - without[0]),
                    }
                )
    found = tables["networks"]
    keys = ("mixture", "prediction", "block", "steps", "scale")
    for group in dict.fromkeys(tuple(r[k] for k in keys) for r in found):
        rows = [r for r in found if tuple(r[k] for k in keys) == group]
        fields = [f"{w}_{q}" for q in QUANTITIES for w in ("predicted", "measured")]
        tables["groups"].append(
            dict(zip(keys, group, strict=True))
            | {f: measurement([r[f] for r in rows]) for f in fields}
        )
    tables["correlations"] = [
        _correlation(found, scale, quantity, prediction)
        for scale in config.scales
        for quantity in QUANTITIES
        for prediction in (None, *config.predictions)
    ]
    return tables, {}


def predict_effect(
    context: Context,
    network: gg.ProcessStack,
    mixture: MixtureName,
    s2_scale: float,
    num_samples: int,
    num_steps: int,
) -> Arrays:
    """Predicted changes of log width and shift, the mean of both classes."""
    data = make_mixture(mixture)
    effects = [
        gg.weak_pass_effect(
            network,
            data,
            label,
            gg.S2Guidance(1.0, s2_scale),
            relative_schedule(mixture, num_steps),
            key=jax.random.key(70),
            num_samples=num_samples,
        )
        for label in range(data.num_labels)
    ]

    def error(name: str) -> np.ndarray:
        errors = [getattr(e, name)[0] for e in effects]
        return np.sqrt(np.sum(np.square(errors))) / len(errors)

    return {
        "log_width": np.mean([e.log_width_change[0] for e in effects]),
        "log_width_error": error("log_width_change_error"),
        "shift": np.mean([e.shift_change[0] for e in effects]),
        "shift_error": error("shift_change_error"),
    }


def _correlation(
    found: list[Record], scale: float, quantity: str, prediction: str | None
) -> Record:
    """Correlation and slope of measured on predicted, over networks."""
    rows = [
        r
        for r in found
        if r["scale"] == scale and prediction in (None, r["prediction"])
    ]
    x, y = (
        np.array([r[f"{which}_{quantity}"] for r in rows])
        for which in ("predicted", "measured")
    )
    return {
        "scale": scale,
        "quantity": quantity,
        "prediction": prediction,
        "networks": len(rows),
        "correlation": float(np.corrcoef(x, y)[0, 1]),
        "slope": float(np.polyfit(x, y, 1)[0]),
        "same_sign": float(np.mean(np.sign(x) == np.sign(y))),
    }


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Measured against predicted changes, a point for each network."""
    scales = metrics["config"]["scales"]
    figure, axes = plt.subplots(
        len(scales),
        len(QUANTITIES),
        figsize=(PAGE_WIDTH, 0.7 + 2.7 * len(scales)),
        squeeze=False,
    )
    for row, scale in enumerate(scales):
        for ax, (quantity, title) in zip(axes[row], QUANTITIES.items(), strict=True):
            groups: dict[tuple[str, str], list[Record]] = {}
            for record in select(metrics, "networks", scale=scale):
                key = record["prediction"], record["block"]
                groups.setdefault(key, []).append(record)
            for (prediction, block), records in groups.items():
                ax.plot(
                    [r[f"predicted_{quantity}"] for r in records],
                    [r[f"measured_{quantity}"] for r in records],
                    BLOCK_MARKERS[block],
                    color=PREDICTION_COLORS[prediction],
                    ms=3,
                    mew=0.7,
                    mfc="none" if block == "plain" else None,
                    alpha=0.75,
                    label=f"{KIND_TITLES[prediction]}, {KIND_TITLES[block]}",
                )
            ax.axline((0.0, 0.0), slope=1.0, color="black", lw=0.7)
            ax.locator_params(nbins=6)
            ax.axhline(0.0, color="black", lw=0.4)
            ax.axvline(0.0, color="black", lw=0.4)
            (found,) = select(
                metrics, "correlations", scale=scale, quantity=quantity, prediction=None
            )
            ax.set_title(
                f"{title}, λ = {scale:g}: r = {found['correlation']:.2f}, slope "
                f"{found['slope']:.2f}",
                fontsize=7,
            )
            ax.set(xlabel="predicted", ylabel="measured")
    legend_below(axes[0, 0], 4)
    names = ", ".join(MIXTURE_TITLES[m] for m in metrics["config"]["mixtures"])
    figure.suptitle(
        f"What S² (ω = {metrics['config']['s2_scale']:g}) does to a mode: {names}",
        fontsize=8,
    )
    return {"figure": figure}


def summarize(metrics: Metrics) -> list[str]:
    """Correlations over all networks and by prediction."""
    return [
        f"{QUANTITIES[r['quantity']]}, CFG scale {r['scale']:g}, "
        f"{KIND_TITLES.get(r['prediction'], 'all')} ({r['networks']} networks): "
        f"correlation of measured with predicted {r['correlation']:+.2f}, slope "
        f"{r['slope']:.2f}, same sign in {r['same_sign']:.0%}"
        for r in metrics["tables"]["correlations"]
    ]


EXPERIMENT = Experiment(
    "effect_law",
    "analysis",
    "the effect of S² on width and shift, predicted without sampling and measured",
    EffectLawConfig,
    compute,
    draw,
    summarize,
)
