"""CFG with a modified update: APG, TCFG, CFG-Zero* and MAMBO-G."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from typing_extensions import override

from gmm_guidance._runtime.checks import as_float
from gmm_guidance.diffusion.parameterization import (
    from_denoised,
    from_sigma_space,
    to_denoised,
)
from gmm_guidance.diffusion.process import VE, Process, RectifiedFlow
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    UpdateRule,
    guidance_rule,
    static_field,
)
from gmm_guidance.guidance.scale import Number, Scale, check_scale
from gmm_guidance.guidance.windows import Position, StepWindow, Window


@guidance_rule
class APG(UpdateRule):
    """Adaptive projected guidance: CFG with less of the part along ``D_c``. 1 = off.

    Sadat et al. 2024 (arXiv 2410.02416)::

        d = D_c - D_u + momentum d_previous
        d = d min(1, norm_threshold / |d|)
        D = D_c + (scale - 1) (d_perp + eta d_par),    d_par along D_c

    Two passes. The rule is not affine and is defined on ``D``. Norms and projections
    are over all axes of each sample. With ``eta=1``, no threshold and no momentum it is
    CFG. The state ``d``, before clipping, is carried from one evaluation to the next: a
    solver with two evaluations a step (Heun) updates it twice a step.

    Args:
        scale: total scale; 1 = off.
        eta: fraction of the parallel part that is kept; 0 in the paper.
        norm_threshold: largest norm of the update, > 0; ``None`` for no limit.
        momentum: weight of the previous update, mostly -0.5 in the paper, whose values
            are negative. 0 = off, without state.

    Raises:
        ValueError: for a number that is not finite, or a threshold that is not above 0.
    """

    scale: Scale
    eta: Number = 0.0
    norm_threshold: Number | None = None
    momentum: Number | None = -0.5

    def __post_init__(self):
        for name in ("scale", "eta", "momentum"):
            check_scale(name, getattr(self, name))
        threshold = as_float(self.norm_threshold)
        if threshold is not None and not threshold > 0.0:
            raise ValueError(
                f"norm_threshold must be > 0, got {threshold}; None is no limit."
            )

    @override
    def at(self, position: Position) -> GuidanceRule:
        rule = super().at(position)
        if rule is self and as_float(self.momentum) == 0.0:
            return dataclasses.replace(self, momentum=None)
        return rule

    @override
    def init(self, x: jax.Array) -> Any:
        return jnp.zeros_like(x) if self._has_momentum() else ()

    @override
    def update(self, uncond, cond, x, sigma, state):
        update = cond - uncond
        if self._has_momentum():
            state = update = update + self.momentum * state
        if self.norm_threshold is not None:
            largest = ratio(self.norm_threshold, norm(update), jnp.inf)
            update = update * jnp.minimum(largest, 1.0)
        parallel = ratio(dot(update, cond), dot(cond, cond), 0.0) * cond
        return update - (1.0 - self.eta) * parallel, state

    def _has_momentum(self) -> bool:
        return self.momentum is not None and as_float(self.momentum) != 0.0


@guidance_rule
class TCFG(UpdateRule):
    """Tangential damping CFG: ``D_u`` reduced to its direction in common. 1 = off.

    Kwon et al. 2025 (arXiv 2503.18137): the unconditional prediction ``p_u`` is
    replaced by its projection on the first right singular vector of the two rows
    ``[p_c; p_u]`` of each sample, followed by CFG: ``p_u + scale (p_c - p_u)``. Two
    passes. The rule is not affine; the predictions are the noises ``(x - D) / sigma``,
    or the velocities of a process. Where both predictions are orthogonal and equally
    long the first singular vector is undefined, and the rule is CFG.

    Args:
        scale: total scale; 1 = off.
        space: ``"noise"``, or the process whose velocity is projected.

    Raises:
        ValueError: if the scale is not finite.
        TypeError: for any other space.
    """

    scale: Scale
    space: Process | Literal["noise"] = static_field(default="noise")

    def __post_init__(self):
        super().__post_init__()
        if self.space != "noise" and not isinstance(self.space, Process):
            raise TypeError(
                f'space must be "noise" or a process such as RectifiedFlow(), got '
                f"{self.space!r}."
            )

    @override
    def update(self, uncond, cond, x, sigma, state):
        # The noise is the velocity of the variance-exploding process.
        process = VE() if isinstance(self.space, str) else self.space
        v_uncond, v_cond = (velocity_of(process, d, x, sigma) for d in (uncond, cond))
        change = v_cond - project_on_first(v_cond, v_uncond)
        return denoised_change(process, change, sigma), state


@guidance_rule
class CFGZeroStar(UpdateRule):
    """CFG-Zero*: CFG on velocities, ``v_u`` first scaled to fit ``v_c``. 1 = off.

    Fan et al. 2025 (arXiv 2503.18886)::

        k = <v_c, v_u> / |v_u|^2                      for each sample
        v = k v_u + scale (v_c - k v_u)

    and ``v = 0`` in the first steps, in which no network is run. Two passes afterwards.
    The rule is not affine and is defined on the velocity of ``process``. At scale 1 it
    is ``D_c``, except in the first steps.

    Args:
        scale: total scale; 1 = off.
        zero_steps: how many first steps have zero velocity; 0 = none. A count (1 in the
            authors' code), or as a float a fraction f of the steps (0.04 in the paper):
            all steps i of N with ``i / N < f``, which is at least one. Both evaluations
            of a Heun step belong to that step.
        process: the process whose velocity it is. For the rectified flow zero velocity
            is ``D = x / (1 + sigma)`` and leaves ``x_t`` unchanged, with any solver.

    Raises:
        ValueError: for a scale that is not finite, a negative count, or a fraction
            outside ``[0, 1)``; and for a run without any other steps.
    """

    scale: Scale
    zero_steps: int | float = static_field(default=1)
    process: Process = static_field(default=RectifiedFlow())

    def __post_init__(self):
        super().__post_init__()
        is_fraction = not isinstance(self.zero_steps, numbers.Integral)
        if not 0 <= self.zero_steps or (is_fraction and not self.zero_steps < 1):
            raise ValueError(
                f"zero_steps must be a count >= 0, or a fraction of the steps in "
                f"[0, 1) as a float, got {self.zero_steps!r}."
            )

    @override
    def at(self, position: Position) -> GuidanceRule:
        if not position.is_inside(_AfterZeroSteps(self.zero_steps), self):
            return ZeroVelocity(self.process)
        rule = super().at(position)
        return dataclasses.replace(self, zero_steps=0) if rule is self else rule

    @override
    def update(self, uncond, cond, x, sigma, state):
        v_uncond, v_cond = (
            velocity_of(self.process, d, x, sigma) for d in (uncond, cond)
        )
        k = ratio(dot(v_cond, v_uncond), dot(v_uncond, v_uncond), 0.0)
        return denoised_change(self.process, v_cond - k * v_uncond, sigma), state


@dataclasses.dataclass(frozen=True)
class _AfterZeroSteps(Window):
    """The steps after those of zero velocity."""

    zero_steps: int | float

    def __repr__(self) -> str:
        return f"after zero_steps={self.zero_steps}"

    @override
    def contains(self, position: Position) -> bool:
        if isinstance(self.zero_steps, numbers.Integral):
            return position.step >= self.zero_steps
        return StepWindow(self.zero_steps).contains(position)


@guidance_rule
class ZeroVelocity(GuidanceRule):
    """Zero velocity of a process, ``v = 0``: its ``x_t`` stays where it is. No pass."""

    process: Process = static_field(default=RectifiedFlow())

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        return ()

    @override
    def combine(self, outputs, x, sigma, state):
        return denoised_of(self.process, jnp.zeros_like(x), x, sigma), state


@guidance_rule
class MAMBOG(UpdateRule):
    """Magnitude-aware guidance: CFG with a scale for each sample. 1 = off.

    MAMBO-G (arXiv 2508.03442): CFG of the scale ``1 + (scale - 1) exp(-alpha
    |v_c - v_u| / |v_u|)``, norms over all axes of each sample. Two passes. The rule is
    not affine: the ratio is that of the velocities of ``process``. ``alpha=0`` is CFG.

    Args:
        scale: total scale; 1 = off.
        alpha: how strongly a large update is damped, >= 0.
        process: the process whose velocity it is.

    Raises:
        ValueError: for a scale that is not finite or a negative alpha.
    """

    scale: Scale = 10.0
    alpha: Number = 8.0
    process: Process = static_field(default=RectifiedFlow())

    def __post_init__(self):
        super().__post_init__()
        check_scale("alpha", self.alpha, low=0.0)

    @override
    def update(self, uncond, cond, x, sigma, state):
        v_uncond, v_cond = (
            velocity_of(self.process, d, x, sigma) for d in (uncond, cond)
        )
        # Relative to a v_u of zero any difference is infinitely large.
        change = ratio(norm(v_cond - v_uncond), norm(v_uncond), jnp.inf)
        damping = jnp.where(self.alpha == 0.0, 1.0, jnp.exp(-1.0 * self.alpha * change))
        return damping * (cond - uncond), state


def project_on_first(cond: jax.Array, uncond: jax.Array) -> jax.Array:
    """Projection of ``uncond`` on the first right singular vector of both, by sample.

    With ``G`` the 2 x 2 matrix of inner products and ``(cos a, sin a)`` its leading
    eigenvector, the singular vector is along ``y = cos(a) cond + sin(a) uncond``, and
    the projection is ``sin(a) y``; ``tan 2a = 2 G_cu / (G_cc - G_uu)``.
    """
    # Predictions are mostly nearly equal: no difference of their squared norms.
    gap = dot(cond - uncond, cond + uncond)
    twice = 2.0 * dot(cond, uncond)
    length = jnp.hypot(gap, twice)
    cos_2a, sin_2a = ratio(gap, length, -1.0), ratio(twice, length, 0.0)
    return 0.5 * (sin_2a * cond + (1.0 - cos_2a) * uncond)


# --- velocities: an affine map from D and back at each point x_t


def velocity_of(
    process: Process, denoised: jax.Array, x: jax.Array, sigma: jax.Array
) -> jax.Array:
    """The velocity ``alpha' D + s' eps`` of a process at ``x, sigma``, ``[n, ...]``.

    For ``VE()`` it is the noise ``(x - D) / sigma``.
    """
    x_t, t = from_sigma_space(process, x, sigma)
    return from_denoised(process, denoised, x_t, t, "velocity")


def denoised_of(
    process: Process, velocity: jax.Array, x: jax.Array, sigma: jax.Array
) -> jax.Array:
    """The inverse of ``velocity_of``."""
    x_t, t = from_sigma_space(process, x, sigma)
    return to_denoised(process, velocity, x_t, t, "velocity")


def denoised_change(process: Process, change: jax.Array, sigma: jax.Array) -> jax.Array:
    """The change of ``D`` for a change of the velocity; exactly zero for zero."""
    return denoised_of(process, change, jnp.zeros_like(change), sigma)


# --- geometry of each sample, over all axes but the first; results are [n, 1, ...]


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner product of each sample."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def norm(a: jax.Array) -> jax.Array:
    """Euclidean norm of each sample, with derivative 0 at 0."""
    square = dot(a, a)
    is_zero = square == 0.0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))


def ratio(a: ArrayLike, b: jax.Array, otherwise: float) -> jax.Array:
    """``a / b``, and another number where ``b`` is zero."""
    is_zero = b == 0.0
    return jnp.where(is_zero, otherwise, a / jnp.where(is_zero, 1.0, b))
