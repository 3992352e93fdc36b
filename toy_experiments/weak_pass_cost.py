"""What weak passes are worth: the effect of S² against its cost, and cheaper ways.

On two modes, for several kinds of network, paired over training seeds (the same network
and noise; masks of the same key): S² with its correction held over m steps, in parts of
the window, or with late blocks dropped only; and rules that may replace it, one-sided
or with measured weights. Whether a cheaper form has the effect of the full one is
decided by two one-sided tests with a margin of a tenth of that effect.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
from matplotlib.figure import Figure

import gmm_guidance as gg
from gmm_guidance._runtime.pytree import join, split
from toy_experiments.common.experiment import Config, Experiment, check_at_least
from toy_experiments.common.mixtures import (
    MixtureName,
    balanced_start,
    make_mixture,
    relative_schedule,
)
from toy_experiments.common.networks import trained
from toy_experiments.common.records import (
    Metrics,
    Record,
    Tables,
    distinct,
    measurement,
    select,
    single,
    verdict,
)
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.style import COLORS, PAGE_WIDTH, TRUTH

_MIXTURE: MixtureName = "two_modes"
_SPACES = ("denoised", "noise", "velocity", "edm")


@dataclasses.dataclass(frozen=True)
class WeakPassCostConfig(Config):
    """Configuration of ``weak_pass_cost``.

    Attributes:
        num_steps: Euler steps.
        kinds: prediction and block of the networks, ``"epsilon/plain"`` for example.
        num_blocks: their blocks.
        training_steps: their training length.
        scales: total CFG scales.
        s2_scale: the paper's omega.
        holds: steps over which the correction is held, with 1 among them.
        num_draws: draws of the masks for each network, over which distances are
            averaged.
        calibration_samples: samples of the data at each level for the measured weights.
        margin: fraction of the effect of the full S² by which a cheaper form may differ
            from it, > 0.
    """

    seeds: int = 12
    num_samples: int = 128
    num_steps: int = 48
    kinds: tuple[str, ...] = (
        "epsilon/plain",
        "edm/prenorm",
        "edm/plain",
        "epsilon/prenorm",
    )
    num_blocks: int = 8
    training_steps: int = 500
    scales: tuple[float, ...] = (2.0, 4.0)
    s2_scale: float = 0.25
    holds: tuple[int, ...] = (1, 2, 3, 6)
    num_draws: int = 2
    calibration_samples: int = 4800
    margin: float = 0.1

    QUICK = Config.QUICK | {
        "num_samples": 64,
        "num_steps": 12,
        "kinds": ("epsilon/plain",),
        "num_blocks": 4,
        "training_steps": 100,
        "scales": (2.0,),
        "holds": (1, 3),
        "num_draws": 1,
        "calibration_samples": 480,
    }

    def __post_init__(self):
        super().__post_init__()
        check_at_least(4, num_blocks=self.num_blocks)
        check_at_least(1, num_draws=self.num_draws, training_steps=self.training_steps)
        if 1 not in self.holds or not self.margin > 0:
            raise ValueError(
                f"holds must contain 1 (the full S²) and margin must be > 0, got "
                f"{self.holds} and {self.margin}."
            )

    def training(self, kind: str) -> gg.TrainingConfig:
        """The training of one kind of network."""
        prediction, block = kind.split("/")
        return gg.TrainingConfig(
            snapshots=(self.training_steps,),
            width=32,
            num_blocks=self.num_blocks,
            batch_size=128,
            prediction=prediction,  # type: ignore[arg-type]
            block=block,  # type: ignore[arg-type]
        )

    def rules(self, scale: float, weights: Weights) -> dict[str, gg.GuidanceRule]:
        """The compared rules of one network, by name."""
        s2 = functools.partial(gg.S2Guidance, scale, self.s2_scale)
        low = gg.SigmaWindow(0.0, 0.3 * float(make_mixture(_MIXTURE).scale))
        interval = gg.Windowed(gg.CFG(scale), low)
        blocks = range(self.num_blocks)
        half, quarter = self.num_blocks // 2, 3 * self.num_blocks // 4
        signs = gg.SigmaCurve(weights.sigmas, self.s2_scale * np.sign(weights.values))
        measured = gg.SigmaCurve(weights.sigmas, np.clip(weights.values, -2.0, 2.0))
        return {
            "cfg": gg.CFG(scale),
            **{f"hold_{m}": s2(hold=m) for m in self.holds},
            "first_half": s2(window=(0.1, 0.5)),
            "second_half": s2(window=(0.5, 0.9)),
            "last_half_of_blocks": s2(protected=tuple(blocks[:half])),
            "last_quarter_of_blocks": s2(protected=tuple(blocks[:quarter])),
            "one_sided": s2(one_sided=True),
            "measured_sign": gg.S2Guidance(scale, signs),
            "measured_weight": gg.S2Guidance(scale, measured),
            "interval": interval,
            "interval_s2": gg.S2Guidance(interval, self.s2_scale),
        }


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weight with the least denoising error at each level, zero within 2 errors."""

    sigmas: np.ndarray
    values: np.ndarray


def measure_weights(
    context: Context, network: Any, num_samples: int, seed: int
) -> Arrays:
    """The weight of the correction of S², from samples and labels alone."""
    mixture = make_mixture(_MIXTURE)
    data = mixture.sample(jax.random.key(100 + seed), num_samples)
    sigmas = float(mixture.scale) * np.geomspace(0.02, 10.0, 8)
    key = jax.random.key(200 + seed)
    found = gg.calibrate(
        network, data, key, sigmas=sigmas, num_samples=num_samples, num_groups=12
    )
    best = found.profile().best_weight()
    value, error = best.value[:, -1], best.standard_error[:, -1]
    return {"sigmas": sigmas, "values": np.where(np.abs(value) > 2 * error, value, 0)}


def compute(config: WeakPassCostConfig, store: Store) -> tuple[Tables, Arrays]:
    """Cost and effect of each rule, and how well corrections can be held."""
    tables: Tables = {"effects": [], "equivalence": [], "spaces": []}
    schedule = relative_schedule(_MIXTURE, config.num_steps)
    for kind in config.kinds:
        run = trained(
            store, make_mixture(_MIXTURE), config.training(kind), config.seeds
        )
        networks = [run.denoiser(seed).network for seed in range(config.seeds)]
        weights = [
            Weights(
                **store.cell(measure_weights, network, config.calibration_samples, seed)
            )
            for seed, network in enumerate(networks)
        ]
        names = list(config.rules(config.scales[0], weights[0]))
        with store.reporter.task(f"weak passes, {kind}", len(names)) as task:
            distances = {}
            for name in names:
                # Python numbers would be part of the program: one for all scales.
                rules = [
                    [config.rules(scale, w)[name] for scale in config.scales]
                    for w in weights
                ]
                distances[name] = store.cell(
                    rule_distances, networks, rules, config.num_samples,
                    config.num_steps, config.num_draws,
                )["distances"]  # fmt: skip
                task.advance(detail=name)
        costs = {
            name: gg.expected_cost(rule, schedule, config.num_blocks, solver="euler")
            for name, rule in config.rules(config.scales[0], weights[0]).items()
        }
        for i, scale in enumerate(config.scales):
            place = {"network": kind, "scale": scale}
            found = {name: values[:, i] for name, values in distances.items()}
            tables["effects"] += [
                place | _effect(name, found, costs[name].shared / costs["cfg"].shared)
                for name in names
            ]
            tables["equivalence"] += [
                place | {"rule": name} | _equivalence(found, name, config.margin)
                for name in names
                if name not in ("cfg", "hold_1", "interval")
            ]
        errors = store.cell(holding_errors, networks, config.num_steps)["errors"]
        tables["spaces"] += [
            {"network": kind, "space": space, "hold": hold}
            | {"relative_error": measurement(errors[:, i, k])}
            for i, hold in enumerate(_HOLDS)
            for k, space in enumerate(_SPACES)
        ]
    return tables, {}


def rule_distances(
    context: Context,
    networks: list[Any],
    rules: list[list[gg.GuidanceRule]],
    num_samples: int,
    num_steps: int,
    num_draws: int,
) -> Arrays:
    """W2 to ``p(x | label)``, mean over labels and masks: ``[seeds, scales]``."""
    schedule = relative_schedule(_MIXTURE, num_steps)
    labels, start = balanced_start(make_mixture(_MIXTURE), schedule, num_samples, 0)
    mixture, distances = make_mixture(_MIXTURE), []
    for seed, (network, own) in enumerate(zip(networks, rules, strict=True)):
        keys = jax.random.split(jax.random.key(1000 + seed), num_draws)
        parts = [split((network, rule)) for rule in own]
        arrays = jax.tree.map(lambda *a: jnp.stack(a), *[arrays for arrays, _ in parts])
        kind = (parts[0][1], schedule)
        samples = np.asarray(_sample(kind, arrays, keys, labels, start))[..., 0]
        w2 = [
            np.mean(
                [gg.metrics.wasserstein_1d(x[labels == c], mixture, c) for c in (0, 1)]
            )
            for x in samples.reshape(-1, len(labels))
        ]
        distances.append(np.reshape(w2, (len(own), num_draws)).mean(1))
    return {"distances": np.array(distances)}


@functools.partial(jax.jit, static_argnums=0)
def _sample(kind, arrays, keys, labels, start) -> jax.Array:
    """Samples ``[scales, draws, n, 1]``, one after the other: masks save passes."""
    static, schedule = kind

    def sample(numbers, key):
        network, rule = join(numbers, static)
        return gg.guided_sample(
            key,
            network,
            labels,
            num_samples=len(labels),
            guidance=rule,
            schedule=schedule,
            solver="euler",
            initial=start,
        )

    return jax.lax.map(
        lambda numbers: jax.lax.map(lambda key: sample(numbers, key), keys), arrays
    )


_HOLDS = (2, 3, 6)


def holding_errors(context: Context, networks: list[Any], num_steps: int) -> Arrays:
    """Relative error of a held correction by space, ``[seeds, holds, spaces]``.

    Root mean square over the samples and steps of a CFG run at scale 2, of the exact
    mean over masks, weighted with the squared step in log sigma: as it enters a sample.
    """
    mixture = make_mixture(_MIXTURE)
    sigmas = relative_schedule(_MIXTURE, num_steps).sigmas()
    steps = np.arange(num_steps)[round(0.1 * num_steps) : round(0.9 * num_steps)]
    used, weight = sigmas[steps], np.log(sigmas[steps] / sigmas[steps + 1]) ** 2
    units = (
        np.ones_like(used),
        used,
        used / (1 + used / mixture.scale),
        used / np.sqrt(1 + (used / mixture.scale) ** 2),
    )
    result = []
    for network in networks[:4]:
        arrays, static = split(network)
        push = np.asarray(_corrections((static, num_steps), arrays, used))[..., 0]
        errors = np.zeros((len(_HOLDS), len(units)))
        for i, hold in enumerate(_HOLDS):
            # Over all phases of the steps in which it is computed.
            now, then = np.array(
                [
                    (k, k - (k - phase) % hold)
                    for phase in range(hold)
                    for k in range(phase, len(used))
                ]
            ).T
            for j, unit in enumerate(units):
                held = push[then] * (unit[now] / unit[then])[:, None]
                missed = weight[now] @ np.mean((held - push[now]) ** 2, axis=1)
                errors[i, j] = missed / (weight[now] @ np.mean(push[now] ** 2, axis=1))
        result.append(np.sqrt(errors))
    return {"errors": np.array(result)}


@functools.partial(jax.jit, static_argnums=0)
def _corrections(kind, arrays, sigmas) -> jax.Array:
    """``D_c - E[D_weak]`` along runs of CFG, ``[steps, n, 1]``."""
    static, num_steps = kind
    network = join(arrays, static)
    labels = jnp.ones(64, jnp.int32)
    _, path = gg.guided_sample(
        jax.random.key(0),
        network,
        labels,
        num_samples=len(labels),
        guidance=gg.CFG(2.0),
        schedule=relative_schedule(_MIXTURE, num_steps),
        solver="euler",
        trajectory=True,
    )
    first = round(0.1 * num_steps)

    def at(inputs):
        x, sigma = inputs
        weak = [
            gg.Pass(labels, jnp.array([block], jnp.int32))
            for block in range(1, network.num_blocks)
        ]
        cond, values = gg.evaluate_passes(network, x, sigma, (gg.Pass(labels), weak))
        return jnp.mean(cond[None] - jnp.stack(values), axis=0)

    levels = jnp.asarray(sigmas, path.dtype)
    return jax.lax.map(at, (path[first : first + len(sigmas)], levels))


def _effect(name: str, found: dict[str, np.ndarray], cost: float) -> Record:
    """Cost and distance of a rule, and its change against CFG at the same scale."""
    change = measurement(found[name] - found["cfg"])
    return {
        "rule": name,
        "cost_over_cfg_percent": 100 * (cost - 1),
        "distance": measurement(found[name]),
        "change": change,
        "verdict": verdict(change),
    }


def _equivalence(found: dict[str, np.ndarray], name: str, margin: float) -> Record:
    """Whether the effect of a rule is that of the full S², up to a margin.

    Two one-sided paired t-tests at 5 % of ``own - (1 - margin) full`` and ``own - (1 +
    margin) full``, which account for the error of the full effect as well.
    """
    full, own = found["hold_1"] - found["cfg"], found[name] - found["cfg"]
    sign = np.sign(full.mean())
    least = scipy.stats.ttest_1samp(
        sign * (own - (1 - margin) * full), 0.0, alternative="greater"
    ).pvalue
    most = scipy.stats.ttest_1samp(
        sign * (own - (1 + margin) * full), 0.0, alternative="less"
    ).pvalue
    difference = measurement(own - full)
    low, high = difference["interval_95"]
    if max(least, most) < 0.05:
        decision = "equivalent"
    else:
        decision = "different" if low > 0 or high < 0 else "undecided"
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(full), (4000, len(full)))
    ratios = own[chosen].mean(1) / full[chosen].mean(1)
    return {
        "kept": float(own.mean() / full.mean()),
        "kept_interval_95": np.quantile(ratios, (0.025, 0.975)).tolist(),
        "difference": difference,
        "p_value": float(max(least, most)),
        "decision": decision,
    }


TITLES = {
    "cfg": "CFG",
    "first_half": "window (0.1, 0.5)",
    "second_half": "window (0.5, 0.9)",
    "last_half_of_blocks": "last half of the blocks",
    "last_quarter_of_blocks": "last quarter of the blocks",
    "one_sided": "one-sided",
    "measured_sign": "measured sign of ω",
    "measured_weight": "measured ω(σ)",
    "interval": "CFG at σ ≤ 0.3 s only",
    "interval_s2": "the same with S²",
}


def _title(rule: str) -> str:
    return TITLES.get(rule) or f"S², hold {rule.removeprefix('hold_')}"


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Change of W2 of each rule with its cost, a panel for each network and scale."""
    kinds = distinct(metrics["tables"]["effects"], "network")
    scales = metrics["config"]["scales"]
    rules = [r for r in distinct(metrics["tables"]["effects"], "rule") if r != "cfg"]
    figure, axes = plt.subplots(
        len(scales),
        len(kinds),
        figsize=(PAGE_WIDTH, 0.6 + 2.3 * len(scales)),
        sharey=True,
        squeeze=False,
    )
    places = np.arange(len(rules))[::-1]
    for row, scale in enumerate(scales):
        for column, kind in enumerate(kinds):
            ax = axes[row, column]
            found = [
                single(metrics, "effects", network=kind, scale=scale, rule=rule)
                for rule in rules
            ]
            ax.axvline(0.0, color=TRUTH, linewidth=0.8)
            for place, record in zip(places, found, strict=True):
                low, high = record["change"]["interval_95"]
                color = COLORS["s2"] if record["rule"][:4] == "hold" else "black"
                ax.plot([low, high], [place, place], color=color)
                ax.plot(record["change"]["mean"], place, "o", color=color, markersize=3)
            if row == 0:
                prediction, block = kind.split("/")
                ax.set_title(f"{prediction}, {block}")
            if row == len(scales) - 1:
                ax.set_xlabel("change of W2")
        labels = [
            f"{_title(r['rule'])}  {r['cost_over_cfg_percent']:+.1f} %" for r in found
        ]
        axes[row, 0].set_yticks(places, labels)
        axes[row, 0].set_ylabel(f"CFG scale {scale:g}")
    figure.suptitle(
        "Change of W2 against CFG at the same scale, 95 % intervals over training "
        "seeds, and passes over CFG",
        fontsize=8,
    )
    return {"figure": figure}


def summarize(metrics: Metrics) -> list[str]:
    """Effect, cost and equivalence of each rule, by kind of network and scale."""
    lines = []
    for cfg in select(metrics, "effects", rule="cfg"):
        place = {"network": cfg["network"], "scale": cfg["scale"]}
        lines.append(
            f"{cfg['network']}, scale {cfg['scale']:g}: W2 of CFG "
            f"{cfg['distance']['mean']:.3f}"
        )
        for record in select(metrics, "effects", **place):
            if record["rule"] == "cfg":
                continue
            low, high = record["change"]["interval_95"]
            line = (
                f"  {_title(record['rule'])} at "
                f"{record['cost_over_cfg_percent']:+.1f} %: "
                f"{record['change']['mean']:+.4f} [{low:+.4f}, {high:+.4f}], "
                f"{record['verdict']}"
            )
            for test in select(metrics, "equivalence", rule=record["rule"], **place):
                low, high = test["kept_interval_95"]
                line += (
                    f"; keeps {test['kept']:.0%} [{low:.0%}, {high:.0%}], "
                    f"{test['decision']}"
                )
            lines.append(line)
    return lines


EXPERIMENT = Experiment(
    "weak_pass_cost",
    "analysis",
    "the effect of S² against its cost: held corrections, windows, blocks, other rules",
    WeakPassCostConfig,
    compute,
    draw,
    summarize,
)
