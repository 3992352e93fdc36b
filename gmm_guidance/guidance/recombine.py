"""Rules that recombine passes: negative labels, norms, angles, history, bands."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from typing_extensions import override

from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.diffusion.denoiser import map_denoised
from gmm_guidance.diffusion.process import Process, RectifiedFlow
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    RuleWrapper,
    UpdateRule,
    guidance_rule,
    static_field,
)
from gmm_guidance.guidance.scale import Scale, check_scale, scale_at
from gmm_guidance.guidance.updates import (
    denoised_change,
    dot,
    norm,
    ratio,
    velocity_of,
)


@guidance_rule
class NegativeBase(UpdateRule):
    """CFG away from another label: ``D_n + scale (D_c - D_n)``. 1 = off. Two passes.

    The negative prompt of text models, in the place of no condition. The coefficients
    sum to one, so that the rule is the same in x0, noise, velocity and score.

    Args:
        scale: total scale; 1 = off.
        negative: the other label, an integer >= 0 that the model knows.

    Raises:
        ValueError: for a scale that is not finite, or a negative number as label.
    """

    scale: Scale
    negative: int = static_field()

    def __post_init__(self):
        super().__post_init__()
        _check_label(self.negative)

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        return Pass(_like_label(self.negative, label)), Pass(label)

    @override
    def update(self, uncond, cond, x, sigma, state):
        return cond - uncond, state


@guidance_rule
class NegativeCFG(GuidanceRule):
    """CFG towards one label and away from another, in three passes.

    ``D_u + scale (D_c - D_u) - negative_scale (D_n - D_u)``. With ``perpendicular`` the
    negative term acts only on the part of ``D_n - D_u`` orthogonal to ``D_c - D_u``, by
    sample: Perp-Neg, Armandpour et al. 2023 (arXiv 2304.04968), whose own weight is
    ``negative_scale / scale``. Either way the rule is the same in x0, noise, velocity
    and score.

    Args:
        scale: total scale of the positive label; 1 = none.
        negative: the other label, an integer >= 0 that the model knows.
        negative_scale: weight of the negative term; 0 = CFG.
        perpendicular: whether only the orthogonal part acts.

    Raises:
        ValueError: for a scale that is not finite, or a negative number as label.
    """

    scale: Scale
    negative: int = static_field()
    negative_scale: Scale = 1.0
    perpendicular: bool = static_field(default=False)

    def __post_init__(self):
        check_scale("scale", self.scale)
        check_scale("negative_scale", self.negative_scale)
        _check_label(self.negative)

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        return Pass(None), Pass(label), Pass(_like_label(self.negative, label))

    @override
    def combine(self, outputs, x, sigma, state):
        uncond, cond, other = outputs
        towards, away = cond - uncond, other - uncond
        if self.perpendicular:
            along = ratio(dot(away, towards), dot(towards, towards), 0.0)
            away = away - along * towards
        push = (scale_at(self.scale, sigma) - 1.0) * towards
        return cond + push - scale_at(self.negative_scale, sigma) * away, state


@guidance_rule
class NormMatchedCFG(UpdateRule):
    """CFG whose velocity keeps at most the norm of the conditional one. 1 = off.

    ``v = v_cfg min(cap, |v_c| / |v_cfg|)``, as Qwen-Image and Lumina-2 sample by
    default. Two passes. The rule is not affine: norms are those of the velocities of
    ``process``, and another process is another rule.

    Args:
        scale: total CFG scale; 1 = off.
        over: norms of each ``"token"``, the last axis, or of each ``"sample"``.
        cap: largest factor; 1 only shrinks, ``None`` always matches.
        process: the process whose velocity it is.

    Raises:
        ValueError: for a scale that is not finite, another ``over``, or a cap that is
            not above 0.
    """

    scale: Scale
    over: Literal["token", "sample"] = static_field(default="token")
    cap: float | None = static_field(default=1.0)
    process: Process = static_field(default=RectifiedFlow())

    def __post_init__(self):
        super().__post_init__()
        if self.over not in ("token", "sample"):
            raise ValueError(f'over must be "token" or "sample", got {self.over!r}.')
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"cap must be > 0 or None, got {self.cap}.")

    @override
    def combine(self, outputs, x, sigma, state):
        v_uncond, v_cond = (velocity_of(self.process, d, x, sigma) for d in outputs)
        update = v_cond - v_uncond
        v = v_cond + (scale_at(self.scale, sigma) - 1.0) * update
        gain = ratio(self._norm(v_cond), self._norm(v), 1.0)
        if self.cap is not None:
            gain = jnp.minimum(gain, self.cap)
        change = denoised_change(self.process, gain * v - v_cond, sigma)
        return outputs[1] + change, state

    def _norm(self, v: jax.Array) -> jax.Array:
        if self.over == "sample":
            return norm(v)
        return jnp.sqrt(jnp.sum(v * v, axis=-1, keepdims=True))


@guidance_rule
class ADG(UpdateRule):
    """Angle-domain guidance: ``D_c`` turned away from ``D_u``. 1 = off.

    Jin et al. 2025 (arXiv 2506.11039): with the angle ``t`` between ``D_c`` and ``D_u``
    and the part ``e`` of ``D_c`` orthogonal to ``D_u``::

        t' = min((scale - 1) t, largest)
        D = cos(t') D_c + sin(t') / sin(t) e

    by sample, so that the norm grows to at most ``sqrt(2) |D_c|``. Two passes. The rule
    is not affine and is defined on ``D``. Unlike the released code it is ``D_c`` at
    scale 1, and finite where ``D_c`` and ``D_u`` are parallel.

    Args:
        scale: total scale, at least 1; 1 = off.
        largest: the largest angle; pi / 3 in the paper.

    Raises:
        ValueError: for a scale below 1, or an angle outside ``[0, pi]``; and, in a
            sampling run, for samples of a single number, which have no angle.
    """

    scale: Scale
    largest: float = static_field(default=math.pi / 3)

    def __post_init__(self):
        check_scale("scale", self.scale, low=1.0)
        if not 0.0 <= self.largest <= math.pi:
            raise ValueError(f"largest must be in [0, pi], got {self.largest}.")

    @override
    def combine(self, outputs, x, sigma, state):
        uncond, cond = outputs
        if math.prod(x.shape[1:]) < 2:
            raise ValueError(
                f"ADG turns samples of at least two numbers, got samples of shape "
                f"{x.shape[1:]}; use CFG in one dimension."
            )
        part = cond - ratio(dot(cond, uncond), dot(uncond, uncond), 0.0) * uncond
        sine = ratio(norm(part), norm(cond), 0.0)
        # Not by the arc cosine, which loses small angles and leaves its domain.
        angle = jnp.arctan2(norm(part) * norm(uncond), dot(cond, uncond))
        turn = jnp.minimum((scale_at(self.scale, sigma) - 1.0) * angle, self.largest)
        # Where they are parallel the orthogonal part is zero.
        return jnp.cos(turn) * cond + ratio(jnp.sin(turn), sine, 0.0) * part, state


@guidance_rule
class FDG(UpdateRule):
    """Frequency-decoupled guidance: a CFG scale for each band of images. All 1 = off.

    ``D_u + sum_l scale_l band_l(D_c - D_u)``, with the bands of a Laplacian pyramid,
    each level half as fine, that sum to the image: Sadat et al. 2025 (arXiv
    2506.19713). Two passes. Linear, so the same in x0, noise, velocity and score. Equal
    scales are CFG. Any height and width.

    Args:
        scale: scales of the bands, from the finest details to the rest.

    Raises:
        ValueError: for no scale or one that is not finite; and, in a sampling run, for
            samples that are not images ``[H, W, C]``.
    """

    scale: tuple[ArrayLike, ...] = (10.0, 5.0)  # type: ignore[assignment]

    def __post_init__(self):
        if isinstance(self.scale, tuple):
            if not self.scale:
                raise ValueError("FDG needs the scale of at least one band, got none.")
            for value in self.scale:
                check_scale("scale", value)

    @override
    def at(self, position: Any) -> GuidanceRule:
        return self

    @override
    def combine(self, outputs, x, sigma, state):
        uncond, cond = outputs
        if x.ndim != 4:
            raise ValueError(
                f"FDG needs images of shape [n, H, W, C], got {x.shape}; on vectors "
                f"use MatrixCFG."
            )
        return cond + _bands(cond - uncond, [s - 1.0 for s in self.scale]), state


def _bands(image: jax.Array, factors: list[Any]) -> jax.Array:
    """The sum of the bands of a Laplacian pyramid, each times its factor."""
    if len(factors) == 1:
        return factors[0] * image
    n, height, width, channels = image.shape
    half = (n, (height + 1) // 2, (width + 1) // 2, channels)
    coarse = jax.image.resize(image, half, "linear")

    def finer(a):
        return jax.image.resize(a, image.shape, "linear")

    return factors[0] * (image - finer(coarse)) + finer(_bands(coarse, factors[1:]))


@guidance_rule
class MatrixCFG(UpdateRule):
    """CFG with a matrix in place of the scale: ``D_u + M (D_c - D_u)``. Identity = off.

    What frequency-decoupled guidance is on vectors: a scale for each of any directions.
    Two passes. Linear, so the same in x0, noise, velocity and score.

    Args:
        scale: the matrix ``M``, ``[d, d]``, for samples ``[n, d]``.
    """

    scale: Any

    def __post_init__(self):
        shape = jnp.shape(self.scale) if hasattr(self.scale, "shape") else (1, 1)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"the matrix must have shape [d, d], got {shape}.")

    @override
    def at(self, position: Any) -> GuidanceRule:
        return self

    @override
    def combine(self, outputs, x, sigma, state):
        uncond, cond = outputs
        update = cond - uncond
        return cond + update @ jnp.asarray(self.scale, x.dtype).T - update, state


@guidance_rule
class Momentum(RuleWrapper):
    """A rule extrapolated from its own history: ``v + alpha (v - m)``. 0 = off.

    ``m`` is the running mean of the velocities ``v`` of earlier evaluations, ``m <-
    decay m + (1 - decay) v`` (arXiv 2602.20360, with 0.5 and 0.6); zero push at the
    first evaluation. No pass is added, so that it needs no unconditional one. A
    solver with two evaluations a step updates the mean twice.

    Args:
        rule: any rule, ``Unguided()`` for example.
        alpha: weight of the push; 0 = off.
        decay: of the running mean, in [0, 1).
        process: the process whose velocity it is; ``None`` takes ``D`` itself, as
            history guidance (HiGS, arXiv 2509.22300) does, here without its high-pass
            filter and projection.

    Raises:
        ValueError: for an alpha that is not finite or a decay out of range.
    """

    rule: GuidanceRule
    alpha: Scale = 0.5
    decay: ArrayLike = 0.6
    process: Process | None = static_field(default=RectifiedFlow())

    def __post_init__(self):
        check_scale("alpha", self.alpha)
        check_scale("decay", self.decay, low=0.0, high=1.0)

    @override
    def init(self, x: jax.Array) -> Any:
        return super().init(x), jnp.zeros_like(x), jnp.zeros((), bool)

    @override
    def combine(self, outputs, x, sigma, state):
        inner, mean, started = state
        guided, inner = super().combine(outputs, x, sigma, inner)
        after = []

        def push(denoised):
            value = denoised
            if self.process is not None:
                value = velocity_of(self.process, denoised, x, sigma)
            old = jnp.where(started, mean, value)
            after.append(old + (1.0 - self.decay) * (value - old))
            change = scale_at(self.alpha, sigma) * (value - old)
            if self.process is None:
                return denoised + change
            return denoised + denoised_change(self.process, change, sigma)

        guided = map_denoised(push, guided)
        return guided, (inner, after[0], jnp.ones((), bool))


@guidance_rule
class Thresholded(RuleWrapper):
    """Dynamic thresholding: ``D`` clipped at its quantile and pulled into the range.

    ``clip(D, -s, s) limit / s`` with ``s = max(limit, quantile of |D|)`` by sample:
    Saharia et al. 2022 (arXiv 2205.11487, Sec. 2.3), for data in ``[-limit, limit]``.
    No change where no value leaves the range. Not affine, defined on ``D``.

    Args:
        rule: any rule.
        quantile: in (0, 1]; 0.995 in public code.
        limit: the largest absolute value of the data, > 0.

    Raises:
        ValueError: for values out of these ranges.
    """

    rule: GuidanceRule
    quantile: ArrayLike = 0.995
    limit: ArrayLike = 1.0

    def __post_init__(self):
        check_scale("quantile", self.quantile, low=0.0, high=1.0)
        check_scale("limit", self.limit, low=0.0)

    @override
    def combine(self, outputs, x, sigma, state):
        guided, state = super().combine(outputs, x, sigma, state)

        def clip(denoised):
            axes = tuple(range(1, denoised.ndim))
            size = jnp.quantile(jnp.abs(denoised), self.quantile, axis=axes)
            size = size.reshape(-1, *(1 for _ in axes)).astype(denoised.dtype)
            bound = jnp.maximum(size, self.limit)
            return jnp.clip(denoised, -bound, bound) * (self.limit / bound)

        return map_denoised(clip, guided), state


def _check_label(label: Any) -> None:
    if isinstance(label, int) and label < 0:
        raise ValueError(f"negative must be a label, an integer >= 0, got {label}.")


def _like_label(negative: int, label: Any) -> Any:
    return jnp.full(getattr(label, "shape", ()), negative, jnp.int32)
