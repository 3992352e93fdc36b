"""The exact density of a deterministic sampler's output.

A sampler that adds no noise is a map from its start to its output. Each step multiplies
the density by the inverse of its Jacobian's determinant, so that

    log q(x_0) = log N(x_T; 0, sigma_max^2) - sum over steps of log |det J|,

for the discrete steps, not for the flow that they approximate. Entropies and
divergences follow as means over samples, without a density estimate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import check_count, check_key
from gmm_guidance.blocks.evaluate import check_denoiser
from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.diffusion.schedule import Schedule, default_schedule, levels_of
from gmm_guidance.guidance.rule import GuidanceRule, Unguided
from gmm_guidance.sampling.sample import guided_sample
from gmm_guidance.sampling.solvers import NoiseFree, Solver, as_solver


class OutputDensity(NamedTuple):
    """Samples and the density of the sampler's output at each of them.

    Attributes:
        samples: samples of shape ``[n, d]``.
        log_density: log densities in nats, ``[n]``.
    """

    samples: jax.Array
    log_density: jax.Array


class Estimate(NamedTuple):
    """A mean over samples.

    Attributes:
        mean: the mean, a scalar.
        standard_error: its standard error.
    """

    mean: jax.Array
    standard_error: jax.Array


def output_density(
    key: jax.Array,
    denoiser: Denoiser,
    label: ArrayLike | None = None,
    *,
    num_samples: int,
    guidance: GuidanceRule = Unguided(),
    schedule: Schedule | None = None,
    solver: str | Solver = "heun",
    sample_shape: tuple[int, ...] | None = None,
    batch_size: int | None = None,
) -> OutputDensity:
    """Draw samples as ``guided_sample`` does, with their exact log densities.

    The start is ``N(0, sigma_max^2)``. With random masks the density is that given the
    masks of this key, which all samples share. Costs ``d`` directional derivatives of
    each step for samples of dimension ``d``.

    Args:
        key: a JAX random key.
        denoiser: a differentiable denoiser whose samples are vectors, ``[n, d]``.
        label: ``None``, an integer, or ``[num_samples]`` integers; with several labels
            each sample has the density given its own.
        num_samples: how many samples, at least 1.
        guidance: a rule without state.
        schedule: noise levels.
        solver: ``"euler"`` or ``"heun"``, or another solver of single steps that adds
            no noise.
        sample_shape: ``(d,)``; by default the denoiser's own.
        batch_size: evaluate at most so many samples at once.

    Returns:
        Samples and log densities.

    Raises:
        ValueError: for a solver that carries values from step to step or adds noise, a
            rule with state, samples that are not vectors, or as ``guided_sample``.
    """
    check_key(key)
    check_denoiser(denoiser)
    num_samples = check_count("num_samples", num_samples)
    schedule = default_schedule(denoiser) if schedule is None else schedule
    dim = _dimension(denoiser, sample_shape)
    # The start that guided_sample would draw itself.
    start_key = jax.random.split(key, 3)[0]
    dtype = jnp.result_type(float)
    normal = jax.vmap(
        lambda i: jax.random.normal(jax.random.fold_in(start_key, i), (dim,), dtype)
    )(jnp.arange(num_samples, dtype=jnp.uint32))
    sigma = float(levels_of(schedule)[0])
    samples, log_volume = track_volume(
        key,
        denoiser,
        label,
        sigma * normal,
        guidance=guidance,
        schedule=schedule,
        solver=solver,
        batch_size=batch_size,
    )
    log_start = jnp.sum(jax.scipy.stats.norm.logpdf(normal) - jnp.log(sigma), axis=1)
    return OutputDensity(samples, log_start - log_volume)


def track_volume(
    key: jax.Array,
    denoiser: Denoiser,
    label: ArrayLike | None,
    initial: jax.Array,
    *,
    guidance: GuidanceRule = Unguided(),
    schedule: Schedule | None = None,
    solver: str | Solver = "heun",
    batch_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Outputs ``[n, d]`` of given starts, and log |det| of the sampler's Jacobian.

    Arguments as ``output_density``, with the starts in place of their number.
    """
    initial = jnp.asarray(initial, jnp.result_type(float))
    count, dim = initial.shape
    augmented = guided_sample(
        key,
        denoiser,
        label,
        num_samples=count,
        guidance=guidance,
        schedule=schedule,
        solver=_VolumeTracker(as_solver(solver)),
        initial=jnp.concatenate([initial, jnp.zeros_like(initial[:, :1])], axis=1),
        sample_shape=(dim + 1,),
        batch_size=batch_size,
    )
    return augmented[:, :-1], augmented[:, -1]


TargetLogProb = Callable[[jax.Array], jax.Array]  # from [n, d] to [n]


def entropy(log_density: jax.Array) -> Estimate:
    """Differential entropy ``-E[log q]`` in nats, from ``log q`` at samples of q."""
    return _estimate(-log_density)


def nll(samples: jax.Array, target_log_prob: TargetLogProb) -> Estimate:
    """Negative log likelihood ``-E[log p]`` of samples ``[n, d]``, in nats."""
    return _estimate(-target_log_prob(samples))


def kl_divergence(
    log_density: jax.Array, samples: jax.Array, target_log_prob: TargetLogProb
) -> Estimate:
    """``KL(q || p) = E_q[log q - log p]`` in nats, from samples and ``log q`` there."""
    return _estimate(log_density - target_log_prob(samples))


def _estimate(values: jax.Array) -> Estimate:
    if values.ndim != 1 or values.shape[0] < 2:
        raise ValueError(
            f"a mean with its error needs at least 2 values in one axis, got shape "
            f"{values.shape}."
        )
    error = jnp.std(values, ddof=1) / jnp.sqrt(1.0 * values.shape[0])
    return Estimate(jnp.mean(values), error)


def _dimension(denoiser: Denoiser, sample_shape: tuple[int, ...] | None) -> int:
    shape = sample_shape or getattr(denoiser, "sample_shape", None)
    if shape is None:
        raise ValueError(
            f"the shape of a sample is unknown: {type(denoiser).__name__} has no "
            f"sample_shape; pass sample_shape=(2,), say."
        )
    if len(shape) != 1:
        raise ValueError(f"samples must be vectors, got samples of shape {shape}.")
    return check_count("each size in sample_shape", shape[0])


@dataclasses.dataclass(frozen=True)
class _VolumeTracker:
    """A solver whose last column is the log of how much its steps stretch space."""

    inner: Solver

    def num_evaluations(self, is_final: bool) -> int:
        """Those of the solver inside."""
        return self.inner.num_evaluations(is_final)

    def init(self, x: jax.Array) -> Any:
        """Nothing: a carried value would make the map one of more than ``x``."""
        carry = self.inner.init(x[:, :-1])
        if jax.tree.leaves(carry):
            raise ValueError(
                f"{type(self.inner).__name__} carries values from step to step, which "
                f'the exact density does not follow; use "euler" or "heun".'
            )
        return carry

    def step(self, denoise, x, step, carry, state):
        """The step, and the determinant of its Jacobian by forward derivatives."""
        if jax.tree.leaves(state):
            raise ValueError(
                "the exact density does not follow rules that carry a state from step "
                "to step; use one without (momentum 0, say)."
            )

        def move(point):
            moved, _, _ = NoiseFree(self.inner).step(denoise, point, step, carry, state)
            return moved

        point = x[:, :-1]
        # Samples are independent: one tangent of all of them is a column of each
        # sample's Jacobian.
        basis = jnp.eye(point.shape[1], dtype=x.dtype)[:, None, :]
        basis = jnp.broadcast_to(basis, (point.shape[1], *point.shape))
        moved, columns = jax.vmap(
            lambda tangent: jax.jvp(move, (point,), (tangent,)), out_axes=(None, 0)
        )(basis)
        log_volume = x[:, -1] + _log_abs_det(columns)
        moved = jnp.concatenate([moved, log_volume[:, None]], axis=1)
        return moved, carry, state


def _log_abs_det(columns: jax.Array) -> jax.Array:
    """``[column, n, row]`` to ``[n]``."""
    if columns.shape[0] == 1:
        return jnp.log(jnp.abs(columns[0, :, 0]))
    if columns.shape[0] == 2:
        (a, c), (b, d) = (column.T for column in columns)
        return jnp.log(jnp.abs(a * d - b * c))
    return jnp.linalg.slogdet(jnp.moveaxis(columns, 0, -1))[1]
