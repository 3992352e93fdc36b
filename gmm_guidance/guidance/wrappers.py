"""Rules that act on another rule: in a window, on its result, on some channels."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from typing_extensions import override

from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.diffusion.denoiser import Renoised, map_denoised
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    RuleWrapper,
    Unguided,
    guidance_rule,
    passes_in,
    static_field,
)
from gmm_guidance.guidance.scale import Scale, check_scale, known_scale_at, scale_at
from gmm_guidance.guidance.updates import ratio
from gmm_guidance.guidance.windows import Position, Window, as_window


@guidance_rule
class Windowed(RuleWrapper):
    """A rule inside a window of the sampling process, another rule outside.

    With ``CFG`` and a ``SigmaWindow`` this is interval guidance (Kynkäänniemi et al.,
    arXiv 2404.07724). A window without any evaluation of a run is an error.

    Args:
        rule: the rule inside the window.
        window: ``(lo, hi)`` fractions of the steps, a ``StepWindow`` or a
            ``SigmaWindow``.
        outside: the rule outside; no guidance by default.

    Raises:
        ValueError: if the ends of the window are out of range; and, in a sampling run,
            if the window contains no evaluation.
        TypeError: if it is no window.
    """

    rule: GuidanceRule
    window: Window | tuple[float, float] | None = static_field()
    outside: GuidanceRule = Unguided()

    def __post_init__(self):
        as_window(self.window)

    @override
    def at(self, position: Position) -> GuidanceRule:
        inside = position.is_inside(self.window, self)
        return (self.rule if inside else self.outside).at(position)

    @override
    def without_weak_passes(self) -> GuidanceRule:
        return dataclasses.replace(
            self,
            rule=self.rule.without_weak_passes(),
            outside=self.outside.without_weak_passes(),
        )


@guidance_rule
class Rescaled(RuleWrapper):
    """A rule whose result is pulled back to the spread of ``D_c``. 0 = off.

    ``factor D std(D_c) / std(D) + (1 - factor) D``, with ``D`` the result of the rule
    and standard deviations over all axes of each sample: Lin et al. 2023 (arXiv
    2305.08891, Sec. 3.4, with a factor of 0.7). The rule is not affine and is defined
    on ``D``: in noise or velocity it would be another rule. It needs ``D_c``, at no
    cost where the rule evaluates it anyway. Steps without a network are not rescaled.

    Args:
        rule: any rule.
        factor: fraction of the rescaled result, in [0, 1]; 0 = off.

    Raises:
        ValueError: if the factor is outside ``[0, 1]``; and, in a sampling run, if a
            sample is a single number, which has no standard deviation.
    """

    rule: GuidanceRule
    factor: Scale = 0.7

    def __post_init__(self):
        check_scale("factor", self.factor, low=0.0, high=1.0)

    @override
    def at(self, position: Position) -> GuidanceRule:
        rule = self.rule.at(position)
        off = known_scale_at(self.factor, position.sigma) == 0.0
        if off or isinstance(rule, Unguided):
            return rule
        return dataclasses.replace(self, rule=rule)

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        inner = super().passes(label, draws)
        return {"rule": inner, "cond": Pass(label)} if passes_in(inner) else inner

    @override
    def combine(self, outputs, x, sigma, state):
        if not jax.tree.leaves(outputs):
            return super().combine(outputs, x, sigma, state)
        if math.prod(x.shape[1:]) < 2:
            raise ValueError(
                f"Rescaled needs samples of at least two numbers, whose standard "
                f"deviation it compares, got samples of shape {x.shape[1:]}; leave it "
                f"out in one dimension."
            )
        guided, state = super().combine(outputs["rule"], x, sigma, state)
        wanted, factor = _std(outputs["cond"]), scale_at(self.factor, sigma)

        def rescale(denoised):
            # Around the result itself, for factor 0 and equal spreads.
            gain = ratio(wanted, _std(denoised), 1.0)
            return denoised * (1.0 + factor * (gain - 1.0))

        return map_denoised(rescale, guided), state


@guidance_rule
class GuidedChannels(RuleWrapper):
    """A rule for the first channels; the other channels are those of ``D_c``.

    The published samples of DiT and SiT are guided in three of four latent channels, a
    remnant of code for RGB images, and their FIDs are those of that rule. A learned
    variance, in further channels of the output, must never be guided. It costs no pass
    where the rule evaluates ``D_c`` anyway.

    Args:
        rule: any rule.
        num_channels: number of channels (last axis) that it acts on, at least 1.

    Raises:
        ValueError: for fewer than one channel; and, in a sampling run, for more than
            the sample has.
    """

    rule: GuidanceRule
    num_channels: int = static_field(default=3)

    def __post_init__(self):
        if self.num_channels < 1:
            raise ValueError(
                f"num_channels must be at least 1, got {self.num_channels}."
            )

    @override
    def at(self, position: Position) -> GuidanceRule:
        rule = self.rule.at(position)
        if isinstance(rule, Unguided):
            return rule
        return dataclasses.replace(self, rule=rule)

    @override
    def init(self, x: jax.Array) -> Any:
        return super().init(self._first(x))

    @override
    def passes(self, label: Any, draws: Any) -> Any:
        return {"rule": super().passes(label, draws), "cond": Pass(label)}

    @override
    def combine(self, outputs, x, sigma, state):
        first = jax.tree.map(self._first, outputs["rule"])
        guided, state = super().combine(first, self._first(x), sigma, state)
        rest = outputs["cond"][..., self.num_channels :]

        def join(part):
            return jnp.concatenate([part, rest], axis=-1)

        if isinstance(guided, Renoised):
            return Renoised(*map(join, guided)), state
        return join(guided), state

    def _first(self, x: jax.Array) -> jax.Array:
        if x.shape[-1] < self.num_channels:
            raise ValueError(
                f"num_channels must be at most the sample's {x.shape[-1]} channels, "
                f"got {self.num_channels}."
            )
        return x[..., : self.num_channels]


def _std(a: jax.Array) -> jax.Array:
    """Standard deviation within each sample, ``[n, 1, ...]``."""
    return jnp.std(a, axis=tuple(range(1, a.ndim)), keepdims=True)
