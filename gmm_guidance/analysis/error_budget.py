"""The error of a guided denoiser: the rule's bias, learning error and weak passes.

With a target denoiser ``T``, the guided denoiser of a trained network is off by

    R(trained) - T  =  [B(exact) - T]          bias of the rule itself
                     + [B(trained) - B(exact)]  learning error, as the rule amplifies it
                     + [R(trained) - B(trained)]  what the weak passes do           (1)

where ``R`` is the rule and ``B`` the rule without its weak passes (CFG, for
S²-Guidance). The effect of weak passes vanishes for an exact denoiser, so they can
correct the second bracket only.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_guidance._runtime.checks import as_labels, as_samples, check_count, check_key
from gmm_guidance._runtime.pytree import Static, join, split
from gmm_guidance.blocks.drop import eligible_blocks
from gmm_guidance.blocks.evaluate import Pass, check_denoiser, evaluate_passes
from gmm_guidance.blocks.stack import is_block_stack
from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.diffusion.schedule import Schedule, default_schedule, levels_of
from gmm_guidance.guidance.rule import GuidanceRule, check_rule
from gmm_guidance.guidance.weak import recomputed
from gmm_guidance.mixture.exact_denoiser import ExactDenoiser
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture, check_mixture
from gmm_guidance.mixture.parameters import check_label
from gmm_guidance.sampling.guided_denoise import guided_at, point_arguments
from gmm_guidance.sampling.sample import guided_sample
from gmm_guidance.sampling.segments import plan_segments
from gmm_guidance.sampling.solvers import Euler, as_solver

PARTS = ("bias", "learning", "weak", "total")


class Decomposition(NamedTuple):
    """The brackets of Eq. 1 at each point, ``[n, d]`` in units of the data.

    Attributes:
        bias: error of the rule with exact denoisers.
        learning: error of the network, under the rule without its weak passes.
        weak: change by the weak passes.
        total: guided denoiser minus target, computed separately; equals the sum of the
            others up to rounding.
    """

    bias: jax.Array
    learning: jax.Array
    weak: jax.Array
    total: jax.Array


def decompose(
    denoiser: Denoiser,
    guidance: GuidanceRule,
    mixture: GaussianMixture,
    x: jax.Array,
    sigma: Any,
    label: Any,
    *,
    target: Denoiser | None = None,
    key: jax.Array | None = None,
) -> Decomposition:
    """Split the error of a guided denoiser at given points (Eq. 1).

    Args:
        denoiser: the trained denoiser.
        guidance: the rule; a windowed one as inside its window.
        mixture: the truth.
        x: noisy samples ``[n, d]``.
        sigma: noise level, a scalar.
        label: an integer, ``[n]`` integers or ``None``.
        target: the denoiser of the target distribution; ``p(x | label)`` by default,
            or ``exact.TiltedTarget`` for ``p(x) p(label | x)^scale``.
        key: for random masks.

    Returns:
        The parts and the total.
    """
    check_rule(guidance)
    check_mixture(mixture)
    x, sigma, label, key = point_arguments(denoiser, x, sigma, label, key)
    as_samples(x, (mixture.dim,))
    as_labels(label, x.shape[:1], mixture.num_labels)
    models = (denoiser, ExactDenoiser(mixture), target or ExactDenoiser(mixture))
    arrays, static = split((models, guidance))
    return Decomposition(*_fields(static, arrays, x, sigma, label, key))


@functools.partial(jax.jit, static_argnums=0)
def _fields(static: Static, arrays: list[Any], x, sigma, label, key):
    models, rule = join(arrays, static)
    return _parts(models, rule, x, sigma, label, key, jnp.uint32(0))


def _parts(models, rule, x, sigma, label, key, step) -> tuple[jax.Array, ...]:
    trained, exact, target = models
    base = rule.without_weak_passes()

    def value(model, some_rule):
        return guided_at(model, some_rule, x, sigma, label, key, step)

    goal = target(x, sigma, label)
    ideal, plain, guided = (
        value(exact, base),
        value(trained, base),
        value(trained, rule),
    )
    return ideal - goal, plain - ideal, guided - plain, guided - goal


@dataclasses.dataclass(frozen=True)
class ErrorBudget:
    """Mean products of the parts of Eq. 1 at each noise level; see ``error_budget``.

    A part is ``"bias"``, ``"learning"``, ``"weak"``, ``"total"``, ``"without_weak"``
    (the first two together), or the effect of dropping one block, ``"block 3"``.

    Attributes:
        sigmas: noise levels ``[S]``, descending.
        blocks: single blocks whose effect was measured.
        products: mean over samples of inner products of the parts and of ``D_c -
            D_weak`` for each block, ``[S, 4 + len(blocks), same]``, in squared units of
            the data.
        defect: largest deviation of the parts' sum from the total, ``[S]``: rounding.
    """

    sigmas: np.ndarray
    blocks: tuple[int, ...]
    products: np.ndarray
    defect: np.ndarray

    def rms(self, part: str) -> np.ndarray:
        """Root mean square of a part, ``[S]``."""
        return np.sqrt(np.maximum(self._inner(part, part), 0))

    def cosine(self, part: str, other: str) -> np.ndarray:
        """Cosine of a part with *minus* another, ``[S]``: 1 if they are opposite."""
        norm = self.rms(part) * self.rms(other)
        return -self._inner(part, other) / np.where(norm > 0, norm, np.nan)

    def projection(self, part: str, other: str) -> np.ndarray:
        """Projection of ``part`` on minus ``other``, ``[S]``: 1 cancels ``other``."""
        square = self._inner(other, other)
        return -self._inner(part, other) / np.where(square > 0, square, np.nan)

    def fraction_removed(self, other: str, by: str = "weak") -> np.ndarray:
        """Fraction of the mean square of ``other`` that adding ``by`` removes, ``[S]``.

        Negative where it adds error.
        """
        square = self._inner(other, other)
        change = 2 * self._inner(other, by) + self._inner(by, by)
        return -change / np.where(square > 0, square, np.nan)

    def block(self, block: int) -> str:
        """Name of the part ``D_c - D_weak`` of one dropped block.

        Raises:
            ValueError: if the block was not measured.
        """
        if block not in self.blocks:
            raise ValueError(f"block must be one of {self.blocks}, got {block}.")
        return f"block {block}"

    def _vector(self, part: str) -> np.ndarray:
        """Coefficients of a part over the measured fields."""
        names = [*PARTS, *(self.block(b) for b in self.blocks)]
        wanted = ("bias", "learning") if part == "without_weak" else (part,)
        if not set(wanted) <= set(names):
            raise ValueError(
                f"part must be one of {names} or 'without_weak', got {part!r}."
            )
        return np.array([float(name in wanted) for name in names])

    def _inner(self, part: str, other: str) -> np.ndarray:
        vectors = self._vector(part), self._vector(other)
        return np.einsum("i,sij,j->s", vectors[0], self.products, vectors[1])


def error_budget(
    key: jax.Array,
    denoiser: Denoiser,
    guidance: GuidanceRule,
    mixture: GaussianMixture,
    label: int,
    *,
    schedule: Schedule | None = None,
    num_samples: int = 4096,
    points: Literal["noised", "trajectory"] = "noised",
    target: Denoiser | None = None,
    blocks: bool = False,
    solver: Any = "heun",
) -> ErrorBudget:
    """The parts of Eq. 1 over the noise levels of a schedule, averaged over points.

    Args:
        key: a JAX random key.
        denoiser: the trained denoiser.
        guidance: the rule; its windows apply to the steps of the schedule.
        mixture: the truth.
        label: the class.
        schedule: noise levels; the parts are taken at each but the last, zero.
        num_samples: number of points at each level.
        points: ``"noised"``, noised true samples of the class; or ``"trajectory"``,
            the states of the sampler under this rule.
        target: as in ``decompose``.
        blocks: also measure ``D_c - D_weak`` of every unprotected single block (all but
            the first); needs a ``BlockStack``.
        solver: solver of the trajectory.

    Returns:
        The budget.

    Raises:
        ValueError: for unknown ``points``.
        TypeError: if ``blocks`` is set for a model without blocks.
    """
    check_key(key)
    check_denoiser(denoiser)
    check_rule(guidance)
    check_mixture(mixture)
    check_label(mixture.parameters, label)
    num_samples = check_count("num_samples", num_samples)
    solver = as_solver(solver)
    schedule = default_schedule(denoiser) if schedule is None else schedule
    if points not in ("noised", "trajectory"):
        raise ValueError(f"points must be 'noised' or 'trajectory', got {points!r}.")
    if blocks and not is_block_stack(denoiser):
        raise TypeError(f"{type(denoiser).__name__} has no blocks; use blocks=False.")
    sigmas = levels_of(schedule)[:-1]
    point_key, mask_key = jax.random.split(key)
    if points == "noised":
        clean, _ = mixture.sample(point_key, num_samples, label)
        noise = jax.random.normal(jax.random.fold_in(point_key, 1), clean.shape)
        levels = jnp.asarray(sigmas, clean.dtype)
        path = clean[None] + levels[:, None, None] * noise[None]
    else:
        _, path = guided_sample(
            mask_key,
            denoiser,
            label,
            num_samples=num_samples,
            guidance=guidance,
            schedule=schedule,
            solver=solver,
            trajectory=True,
        )
    measured = (
        tuple(int(b) for b in eligible_blocks(denoiser.num_blocks, (0,)))  # type: ignore[attr-defined]
        if blocks
        else ()
    )
    models = (denoiser, ExactDenoiser(mixture), target or ExactDenoiser(mixture))
    products, defects = [], []
    for segment in plan_segments(guidance, schedule, Euler()):
        part = slice(segment.start, segment.stop)
        arrays, static = split((models, recomputed(segment.rules[0])))
        found, defect = _products(
            static,
            measured,
            arrays,
            path[part],
            jnp.asarray(sigmas[part], path.dtype),
            jnp.arange(segment.start, segment.stop, dtype=jnp.uint32),
            jnp.full((num_samples,), label, jnp.int32),
            mask_key,
        )
        products.append(np.asarray(found, np.float64))
        defects.append(np.asarray(defect, np.float64))
    return ErrorBudget(
        sigmas, measured, np.concatenate(products), np.concatenate(defects)
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _products(static, blocks, arrays, path, sigmas, steps, label, key):
    models, rule = join(arrays, static)

    def at(inputs):
        x, sigma, step = inputs
        parts = _parts(models, rule, x, sigma, label, key, step)
        defect = jnp.max(jnp.abs(parts[0] + parts[1] + parts[2] - parts[3]))
        rows = jnp.stack(parts)
        if blocks:
            passes = [Pass(label)]
            passes += [Pass(label, drop=jnp.array([b], jnp.int32)) for b in blocks]
            outputs = jnp.stack(evaluate_passes(models[0], x, sigma, passes))
            rows = jnp.concatenate([rows, outputs[:1] - outputs[1:]])
        flat = rows.reshape(rows.shape[0], -1)
        highest = jax.lax.Precision.HIGHEST
        return (
            jnp.einsum("ai,bi->ab", flat, flat, precision=highest) / x.shape[0],
            defect,
        )

    return jax.lax.map(at, (path, sigmas, steps))
