"""Perturbed attention on tokens in groups, where each weak pass has a closed form.

PAG, SEG, dropped attention and TPG act on different orthogonal subspaces: within
groups, between groups, on all. First the exact stack: variances of the flow against
closed forms, by quadrature and by sampling. Then small transformers trained on the same
tokens: do their corrections lie in the predicted subspaces, and what do dropped random
blocks (S²) and perturbed attention in random layers do at equal cost?
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import gmm_guidance as gg
from gmm_guidance.exact import GroupedTokens
from toy_experiments.common.experiment import Config, Experiment
from toy_experiments.common.networks import Budgets, trained
from toy_experiments.common.records import (
    Metrics,
    Record,
    Tables,
    measurement,
    paired_change,
    plus_minus,
    select,
    single,
)
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.style import COLORS, PAGE_WIDTH, legend_below

SUBSPACES = ("mean", "between", "within")
SUBSPACE_TITLES = {
    "mean": "overall mean",
    "between": "between groups",
    "within": "within groups",
}
_SUBSPACE_COLORS = (COLORS["cfg"], COLORS["s2"], COLORS["autoguidance"])
#: Where the correction of a perturbed attention lies, on the exact stack.
PREDICTED = {
    "identity": ("within",),
    "blur": ("between",),
    "drop_attention": ("mean", "between"),
}
KIND_TITLES = {
    "identity": "PAG: identity",
    "blur": "SEG: mean query",
    "drop_attention": "attention dropped",
    "drop": "block dropped (S²)",
    "shuffle": "TPG: tokens permuted",
}
#: The rules of the trained networks: kind of the random weak pass, or none.
RULES = {"cfg": None, "s2": "drop", "random_pag": "identity", "random_seg": "blur"}
RULE_TITLES = {
    "cfg": "CFG",
    "s2": "S²",
    "random_pag": "PAG in random layers",
    "random_seg": "SEG in random layers",
}
_RULE_COLORS = {
    "cfg": COLORS["cfg"],
    "s2": COLORS["s2"],
    "random_pag": COLORS["autoguidance"],
    "random_seg": COLORS["naive_s2"],
}
_ATTENTION = 1  # the block of the exact stack
_TOP, _LOW = 1000.0, 0.3  # levels where sampling starts, and where TPG ends
_LEVELS = (0.3, 0.6, 1.2, 2.4)  # at which corrections are projected


@dataclasses.dataclass(frozen=True)
class AttentionToyConfig(Config):
    """Configuration of ``attention_toy``.

    Attributes:
        num_samples: samples of a class on the exact stack.
        num_steps: steps of the sampler (Heun) on trained networks.
        network_samples: samples of a class on trained networks.
        num_groups: groups of tokens.
        group_size: tokens in a group.
        budgets: training lengths and network, whose blocks are attention and an MLP.
        weight: weight of the term on the exact stack.
        scales: CFG scales of the trained networks.
        omegas: weights of their weak terms.
        permutation_steps: numbers of steps of TPG, whose closed form is the limit.
    """

    num_samples: int = 8192
    num_steps: int = 16
    network_samples: int = 1024
    num_groups: int = 2
    group_size: int = 4
    budgets: Budgets = Budgets((300, 1500), width=16, num_blocks=4, batch_size=128)
    weight: float = 0.7
    scales: tuple[float, ...] = (1.0, 2.0)
    omegas: tuple[float, ...] = (0.25, 1.0)
    permutation_steps: tuple[int, ...] = (250, 1000)

    QUICK = Config.QUICK | {
        "num_samples": 1024,
        "num_steps": 8,
        "network_samples": 256,
        "budgets": Budgets((50,), width=8, num_blocks=3, batch_size=64),
        "scales": (1.0,),
        "omegas": (1.0,),
        "permutation_steps": (250,),
    }

    @property
    def tokens(self) -> GroupedTokens:
        """The distribution and its exact stack."""
        return GroupedTokens(self.num_groups, self.group_size)


#: Terms on the exact stack: kind, amount, window in sigma.
_CASES: dict[str, tuple[str | None, float, tuple[float, float]]] = {
    "CFG": (None, 1.0, (0.0, np.inf)),
    "PAG": ("identity", 1.0, (0.0, np.inf)),
    "SoftPAG, u = 0.5": ("identity", 0.5, (0.0, np.inf)),
    "SEG": ("blur", 1.0, (0.0, np.inf)),
    "attention dropped": ("drop_attention", 1.0, (0.0, np.inf)),
    "PAG in a window": ("identity", 1.0, (0.3, 3.0)),
    "SEG in a window": ("blur", 1.0, (0.3, 3.0)),
}


def compute(config: AttentionToyConfig, store: Store) -> tuple[Tables, Arrays]:
    """Variances of the exact stack; corrections and samples of trained networks."""
    toy = config.tokens
    tables: Tables = {"variances": [], "guided": [], "projections": [], "rules": []}
    integrated = store.cell(integrate_variances, toy, config.weight)
    for case, (kind, amount, window) in _CASES.items():
        wanted = toy.variances(kind, config.weight, amount, window)
        for subspace, exact, found in zip(
            SUBSPACES, wanted, integrated[case], strict=True
        ):
            tables["variances"].append(
                {
                    "term": case,
                    "subspace": subspace,
                    "closed_form": float(exact),
                    "integrated": float(found),
                    "relative_error": float(abs(found / exact - 1.0)),
                }
            )
    tables["guided"] = _sampled_exactly(config, store)
    run = trained(
        store,
        toy.mixture(),
        config.budgets.training(block="attention"),
        config.seeds,
    )
    items = [(s, k) for s in config.budgets.steps for k in range(config.seeds)]

    def one(steps: int, seed: int) -> tuple[Arrays, Arrays]:
        network = run.denoiser(seed, steps).network
        parts = store.cell(project_corrections, network, toy, 2048, seed)
        distances = store.cell(
            measure_networks, network, toy, config.scales, config.omegas,
            config.network_samples, config.num_steps, seed,
        )  # fmt: skip
        return parts, distances

    found = store.map("attention toy", one, items)
    for steps in config.budgets.steps:
        rows = [found[steps, seed] for seed in range(config.seeds)]
        for kind in (*PREDICTED, "drop"):
            parts = np.stack([r[0][kind] for r in rows])  # [seeds, subspaces]
            record: Record = {"steps": steps, "kind": kind}
            record |= {
                name: measurement(parts[:, i]) for i, name in enumerate(SUBSPACES)
            }
            if kind in PREDICTED:
                chosen = [SUBSPACES.index(name) for name in PREDICTED[kind]]
                record["predicted"] = measurement(parts[:, chosen].sum(axis=1))
            tables["projections"].append(record)
        for rule, scale, omega in _settings(config):
            name = _setting(rule, scale, omega)
            values = np.stack([r[1][name] for r in rows])  # [seeds, numbers]
            tables["rules"].append(
                {"steps": steps, "rule": rule, "scale": scale, "omega": omega}
                | {"num_steps": int(values[0, 0]), "passes": float(values[0, 1])}
                | {
                    name: measurement(values[:, i])
                    for i, name in enumerate(("distance", *SUBSPACES), start=2)
                }
            )
    return tables, {}


def integrate_variances(context: Context, toy: GroupedTokens, weight: float) -> Arrays:
    """Variances in the subspaces, by quadrature over the flow in float64."""
    tokens, size = toy.sample_shape[0], toy.group_size
    groups = np.repeat(np.eye(toy.num_groups), size, axis=0)
    directions = np.array(
        [
            np.full(tokens, tokens**-0.5),
            (groups[:, 0] - groups[:, 1]) / np.sqrt(2 * size),
            (np.eye(tokens)[0] - np.eye(tokens)[1]) / np.sqrt(2),
        ]
    )
    nodes, weights = np.polynomial.legendre.leggauss(12)

    def log_variance(kind: str | None, amount: float, window: Any) -> np.ndarray:
        top = 1e5
        inner = [np.log(v) for v in window if 0.0 < v < np.inf]
        total = np.full(3, 2.0 * np.log(top))
        edges = [np.log(1e-5), *inner, np.log(top)]
        for low, high in zip(edges, edges[1:], strict=False):
            panels = np.linspace(low, high, 1 + int(np.ceil(high - low)))
            half = np.diff(panels)[:, None] / 2
            logs = ((panels[:-1, None] + half) + half * nodes).ravel()
            is_on = window[0] < np.exp((low + high) / 2) <= window[1]
            response = _responses(
                toy, directions, np.exp(logs), kind if is_on else None, amount, weight
            )
            steps = (half * weights).ravel()
            total -= 2.0 * np.sum((1.0 - response) * steps, axis=1)
        return total

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        return {case: np.exp(log_variance(*terms)) for case, terms in _CASES.items()}


def _responses(
    toy: GroupedTokens,
    directions: np.ndarray,
    sigmas: np.ndarray,
    kind: str | None,
    amount: float,
    weight: float,
) -> np.ndarray:
    """Eigenvalues of the guided denoiser, ``[subspace, sigma]``."""
    x = jnp.asarray(np.repeat(directions, len(sigmas), axis=0))
    levels = jnp.asarray(np.tile(sigmas, len(directions)))
    label = jnp.full(len(x), toy.num_labels)  # of mean 0: linear
    passes = {"cond": gg.Pass(label)}
    if kind is not None:
        blocks = jnp.array([_ATTENTION], jnp.int32)
        soft = None if amount == 1.0 else amount
        perturb = gg.Perturbation(kind, blocks, soft)
        passes["weak"] = gg.Pass(label, perturb=perturb)
    out = jax.jit(lambda: gg.evaluate_passes(toy, x, levels, passes))()
    guided = out["cond"]
    if kind is not None:
        guided = guided + weight * (out["cond"] - out["weak"])
    response = np.sum(np.asarray(guided) * np.asarray(x), axis=1)
    return response.reshape(len(directions), len(sigmas))


def _sampled_exactly(config: AttentionToyConfig, store: Store) -> list[Record]:
    """Rules sampled on the exact stack, against their closed forms."""
    toy, weight, records = config.tokens, config.weight, []
    block = (_ATTENTION,)
    cases: list[tuple[str, Any, Any, int, float]] = [
        ("CFG 2", gg.CFG(2.0), toy.variances(), 128, 2.0),
        ("CFG 2 + PAG", gg.PAG(2.0, block, weight),
         toy.variances("identity", weight), 128, 2.0),
        ("CFG 2 + SEG", gg.SEG(2.0, block, weight),
         toy.variances("blur", weight), 128, 2.0),
    ]  # fmt: skip
    for steps in config.permutation_steps:
        sigmas = _even_levels(steps)
        window = gg.SigmaWindow(_LOW, np.inf)
        # Euler's step from the last level inside reaches the next.
        low = sigmas[np.flatnonzero(sigmas >= _LOW)[-1] + 1]
        wanted = toy.variances("shuffle", weight, window=(float(low), _TOP))
        rule = gg.TPG(1.0, (0, _ATTENTION), weight, window=window)
        cases.append((f"TPG, {steps} steps", rule, wanted, steps, 1.0))
    for name, rule, wanted, steps, scale in cases:
        found = store.cell(sample_exactly, toy, rule, config.num_samples, steps)
        shift = toy.means[0] + (scale - 1.0) * (toy.means[0] - toy.means[-1])
        records.append(
            {
                "rule": name,
                "wanted_shift": float(shift),
                "shift": float(found["shift"]),
                "shift_error": float(found["shift_error"]),
            }
            | {f"wanted_{s}": float(v) for s, v in zip(SUBSPACES, wanted, strict=True)}
            | {s: float(v) for s, v in zip(SUBSPACES, found["values"], strict=True)}
            | {
                f"{s}_error": float(v)
                for s, v in zip(SUBSPACES, found["errors"], strict=True)
            }
        )
    return records


def _even_levels(steps: int) -> np.ndarray:
    return np.geomspace(_TOP, 1e-3, steps)


def sample_exactly(
    context: Context, toy: GroupedTokens, rule: Any, num_samples: int, steps: int
) -> Arrays:
    """Mean and variances of samples of class 0 on the exact stack."""
    is_random = isinstance(rule, gg.TPG)
    schedule = (
        gg.CustomSchedule(tuple(_even_levels(steps)))
        if is_random
        else gg.Karras(steps, 1e-3, _TOP)
    )
    samples = gg.guided_sample(
        jax.random.key(11),
        toy,
        0,
        num_samples=num_samples,
        guidance=rule,
        schedule=schedule,
        solver="euler" if is_random else "heun",
        mesh=context.mesh,
    )
    x = np.asarray(samples, np.float64)
    means = x.mean(axis=1)
    values, errors = _variances(toy, x)
    return {
        "shift": means.mean(),
        "shift_error": means.std(ddof=1) / np.sqrt(len(x)),
        "values": values,
        "errors": errors,
    }


def _variances(toy: GroupedTokens, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances of samples ``[n, T]`` in the subspaces, and standard errors."""
    squares = _squares(toy, x - x.mean(axis=0))
    per_direction = squares / np.array(_dimensions(toy))[:, None]
    means = per_direction.mean(axis=1)
    return means, per_direction.std(axis=1, ddof=1) / np.sqrt(len(x))


def _dimensions(toy: GroupedTokens) -> tuple[int, int, int]:
    tokens = toy.sample_shape[0]
    return 1, toy.num_groups - 1, tokens - toy.num_groups


def _squares(toy: GroupedTokens, x: np.ndarray) -> np.ndarray:
    """Squared norms of the parts of ``[n, T]`` in the subspaces, ``[3, n]``."""
    shape = len(x), toy.num_groups, toy.group_size
    group = x.reshape(shape).mean(axis=2)
    mean = group.mean(axis=1)
    whole = np.sum(x**2, axis=1)
    of_groups = toy.group_size * np.sum(group**2, axis=1)
    of_mean = toy.sample_shape[0] * mean**2
    return np.stack([of_mean, of_groups - of_mean, whole - of_groups])


def project_corrections(
    context: Context, network: Any, toy: GroupedTokens, num_samples: int, seed: int
) -> Arrays:
    """Fractions of the squared corrections in the subspaces, by kind.

    Of ``D_c - E[D_weak]`` over one random block but the first, on noised true samples
    of class 0; the mean over noise levels of the fractions.
    """
    x, _ = toy.mixture().sample(jax.random.key(600 + seed), num_samples, label=0)
    fractions: dict[str, list[np.ndarray]] = {}
    for i, sigma in enumerate(_LEVELS):
        noise = jax.random.normal(jax.random.key(700 + i), x.shape)
        for kind in (*PREDICTED, "drop"):
            noisy, level = x + sigma * noise, jnp.float32(sigma)
            found = sum(
                _correction(network, noisy, level, jnp.array([block]), kind)
                for block in range(1, network.num_blocks)
            )
            squares = _squares(toy, np.asarray(found, np.float64)).sum(axis=1)
            fractions.setdefault(kind, []).append(squares / squares.sum())
    return {kind: np.mean(rows, axis=0) for kind, rows in fractions.items()}


@functools.partial(jax.jit, static_argnames="kind")
def _correction(
    network: Any, noisy: jax.Array, sigma: jax.Array, blocks: jax.Array, kind: str
) -> jax.Array:
    """``D_c - D_weak`` of class 0."""
    label = jnp.zeros(len(noisy), jnp.int32)
    weak = gg.Pass(label, perturb=gg.Perturbation(kind, blocks))
    cond, weak = gg.evaluate_passes(network, noisy, sigma, (gg.Pass(label), weak))
    return cond - weak


def _settings(config: AttentionToyConfig) -> list[tuple[str, float, float]]:
    return [
        (rule, scale, omega)
        for rule, kind in RULES.items()
        for scale in config.scales
        for omega in ((0.0,) if kind is None else config.omegas)
    ]


def _setting(rule: str, scale: float, omega: float) -> str:
    return f"{rule} {scale:g} {omega:g}"


def measure_networks(
    context: Context,
    network: Any,
    toy: GroupedTokens,
    scales: tuple[float, ...],
    omegas: tuple[float, ...],
    num_samples: int,
    num_steps: int,
    seed: int,
) -> Arrays:
    """Each rule at about the cost of ``num_steps`` of the dearest.

    Steps, passes, squared W2 of Gaussians to class 0, and log ratios of variances.
    """

    def rule_of(kind: str | None, scale: Any, omega: Any) -> Any:
        if kind is None:
            return gg.CFG(scale)
        return gg.S2Guidance(scale, omega, kind=kind, window=None)

    covariance = toy.mixture().covariance(0)
    truth = gg.metrics.FeatureMoments(
        np.full(toy.sample_shape, toy.means[0]), np.asarray(covariance), 1 << 30
    )
    wanted = np.array(toy.variances())
    key = jax.random.key(800 + seed)
    result = {}
    for scale in scales:

        def passes_of(kind: str | None, steps: int, scale: float = scale) -> float:
            rule = rule_of(kind, scale, 1.0)
            return gg.expected_cost(rule, gg.Karras(steps), network).shared

        budget = max(passes_of(kind, num_steps) for kind in RULES.values())
        for name, kind in RULES.items():
            steps = num_steps
            while passes_of(kind, steps + 1) <= 1.005 * budget:
                steps += 1
            for omega in (0.0,) if kind is None else omegas:
                rule = rule_of(kind, jnp.float32(scale), jnp.float32(omega))
                schedule = gg.default_schedule(network, steps)
                samples = np.asarray(_sample(key, network, rule, schedule, num_samples))
                distance = gg.metrics.frechet_distance(samples, truth)
                ratios = np.log(_variances(toy, samples)[0] / wanted)
                result[_setting(name, scale, omega)] = np.array(
                    [steps, passes_of(kind, steps), distance, *ratios]
                )
    return result


@functools.partial(jax.jit, static_argnames=("schedule", "num_samples"))
def _sample(
    key: jax.Array, network: Any, rule: Any, schedule: Any, num_samples: int
) -> jax.Array:
    """Samples of class 0; one program for rules that differ in numbers only."""
    return gg.guided_sample(
        key, network, 0, num_samples=num_samples, guidance=rule, schedule=schedule
    )


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """Closed forms, subspaces of trained corrections, and rules at equal cost."""
    return {
        "figure": _draw_exact(metrics),
        "figure_trained": _draw_trained(metrics),
    }


def _draw_exact(metrics: Metrics) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.9))
    terms = list(_CASES)[1:5]
    truth = [
        single(metrics, "variances", term="CFG", subspace=s)["closed_form"]
        for s in SUBSPACES
    ]
    place = np.arange(len(terms))
    for i, (subspace, color) in enumerate(
        zip(SUBSPACES, _SUBSPACE_COLORS, strict=True)
    ):
        records = [
            single(metrics, "variances", term=t, subspace=subspace) for t in terms
        ]
        left.bar(
            place + 0.26 * (i - 1),
            [np.log(r["closed_form"] / truth[i]) for r in records],
            width=0.24,
            color=color,
            label=SUBSPACE_TITLES[subspace],
        )
        left.plot(
            place + 0.26 * (i - 1),
            [np.log(r["integrated"] / truth[i]) for r in records],
            "k_",
            ms=5,
        )
    left.axhline(0.0, color="black", lw=0.6)
    left.set_xticks(place, [t.replace(", ", ",\n") for t in terms], fontsize=6)
    left.set_ylabel("log of variance / true variance")
    weight = metrics["config"]["weight"]
    left.set_title(f"exact stack, weight {weight:g}: closed form (dash: quadrature)")
    records = metrics["tables"]["guided"]
    y = np.arange(len(records))[::-1]
    for subspace, color in zip(SUBSPACES, _SUBSPACE_COLORS, strict=True):
        wanted = np.array([r[f"wanted_{subspace}"] for r in records])
        right.errorbar(
            [r[subspace] for r in records] / wanted - 1.0,
            y,
            xerr=[r[f"{subspace}_error"] for r in records] / wanted,
            fmt="o",
            ms=3,
            capsize=1.5,
            color=color,
            label=SUBSPACE_TITLES[subspace],
        )
    right.axvline(0.0, color="black", lw=0.6)
    right.set_yticks(y, [r["rule"] for r in records])
    right.set_xlabel("sampled variance / closed form − 1")
    right.set_title(f"{metrics['config']['num_samples']} samples")
    legend_below(left, 3)
    return figure


def _draw_trained(metrics: Metrics) -> Figure:
    steps = metrics["config"]["budgets"]["steps"]
    scales = metrics["config"]["scales"]
    figure, axes = plt.subplots(
        2,
        max(len(steps), len(scales)),
        figsize=(PAGE_WIDTH, 5.0),
        squeeze=False,
        sharey="row",
    )
    kinds = (*PREDICTED, "drop")
    for ax, step in zip(axes[0], steps, strict=False):
        bottom = np.zeros(len(kinds))
        for subspace, color in zip(SUBSPACES, _SUBSPACE_COLORS, strict=True):
            values = np.array(
                [
                    single(metrics, "projections", steps=step, kind=k)[subspace]["mean"]
                    for k in kinds
                ]
            )
            ax.bar(
                range(len(kinds)),
                values,
                bottom=bottom,
                color=color,
                label=SUBSPACE_TITLES[subspace],
            )
            bottom += values
        titles = [
            KIND_TITLES[k].replace(": ", ":\n").replace(" (", "\n(") for k in kinds
        ]
        ax.set_xticks(range(len(kinds)), titles, fontsize=6)
        ax.set_title(f"corrections of networks trained for {step} steps")
    axes[0, 0].set_ylabel("fraction of squared correction")
    axes[0, 0].set_ylim(0.0, 1.2)
    axes[0, 0].legend(fontsize=6, loc="upper center", ncols=3)
    for ax, scale in zip(axes[1], scales, strict=False):
        for rule in RULES:
            for k, step in enumerate(steps):
                records = select(metrics, "rules", rule=rule, scale=scale, steps=step)
                ax.errorbar(
                    [r["omega"] for r in records],
                    [r["distance"]["mean"] for r in records],
                    yerr=[r["distance"]["standard_error"] for r in records],
                    fmt="o-" if k == 0 else "s--",
                    ms=3,
                    capsize=1.5,
                    color=_RULE_COLORS[rule],
                    label=f"{RULE_TITLES[rule]}, {step} steps",
                )
        ax.set(yscale="log", xlabel="ω", title=f"CFG scale {scale:g}, equal cost")
    axes[1, 0].set_ylabel("squared W2 of Gaussians")
    legend_below(axes[1, 0], 4)
    for row in axes:
        for ax in row:
            if not ax.has_data():
                ax.remove()
    return figure


def summarize(metrics: Metrics) -> list[str]:
    """Errors of the closed forms, subspaces, and what random layers do."""
    worst = max(r["relative_error"] for r in metrics["tables"]["variances"])
    lines = [f"variances of the flow: closed forms within {worst:.1e} of quadrature"]
    lines += [
        f"{r['rule']}: mean {r['shift']:.3f} ± {r['shift_error']:.3f} (closed form "
        f"{r['wanted_shift']:.3f}); "
        + ", ".join(
            f"{s} {r[s]:.3f} ± {r[f'{s}_error']:.3f} ({r[f'wanted_{s}']:.3f})"
            for s in SUBSPACES
        )
        for r in metrics["tables"]["guided"]
    ]
    lines += [
        f"{r['steps']} training steps, {KIND_TITLES[r['kind']]}: "
        f"{plus_minus(r['predicted'], 2)} of the squared correction in the predicted "
        f"subspaces"
        for r in metrics["tables"]["projections"]
        if r["kind"] in PREDICTED
    ]
    for record in metrics["tables"]["rules"]:
        if record["rule"] == "cfg":
            continue
        cfg = single(
            metrics,
            "rules",
            rule="cfg",
            steps=record["steps"],
            scale=record["scale"],
        )
        lines.append(
            f"{record['steps']} training steps, scale {record['scale']:g}, "
            f"{RULE_TITLES[record['rule']]}, ω {record['omega']:g} "
            f"({record['num_steps']} sampler steps, {record['passes']:.0f} passes): "
            f"change of squared W2 against CFG "
            f"{plus_minus(paired_change(record, cfg, 'distance'))} of "
            f"{cfg['distance']['mean']:.3f}"
        )
    return lines


EXPERIMENT = Experiment(
    "attention_toy",
    "related",
    "perturbed attention (PAG, SEG, TPG) where each weak pass has a closed form",
    AttentionToyConfig,
    compute,
    draw,
    summarize,
)
