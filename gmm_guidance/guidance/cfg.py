"""Classifier-free guidance, and windows that switch any rule on and off."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_concrete, as_float
from gmm_guidance.blocks.evaluate import Pass
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    Unconditional,
    Unguided,
    guidance_rule,
    static,
)
from gmm_guidance.guidance.scale import SigmaCurve, known_scale_at, scale_at
from gmm_guidance.guidance.windows import Position, Window, as_window, positions_inside

#: A number, or one for each noise level.
Scale = ArrayLike | SigmaCurve


def check_scale(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf
) -> None:
    """Raise ``ValueError`` unless a scale is finite and within limits, where known."""
    if isinstance(value, SigmaCurve):
        values = as_concrete(value.values)
        numbers = [] if values is None or values.dtype == object else values.tolist()
    else:
        number = as_float(value)
        numbers = [] if number is None else [number]
    for number in numbers:
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {number}.")
        if not low <= number <= high:
            limits = f"in [{low:g}, {high:g}]" if high < math.inf else f">= {low:g}"
            raise ValueError(f"{name} must be {limits}, got {number}.")


@guidance_rule
class CFG(GuidanceRule):
    """Classifier-free guidance: ``D_u + scale (D_c - D_u)``. 1 = off. Two passes.

    Ho & Salimans 2022 (arXiv 2207.12598), whose weight ``w`` is ``scale - 1``. The
    coefficients sum to one, so the rule is the same in x0, noise, velocity and score.
    A Python scale of 1 costs one pass (``D_c``), of 0 one pass (``D_u``).

    Raises:
        ValueError: if the scale is not finite.
    """

    scale: Scale
    needs_label = True

    def __post_init__(self):
        check_scale("scale", self.scale)

    def at(self, position: Position) -> GuidanceRule:
        """``Unguided`` where the scale is known to be 1, ``Unconditional`` where 0."""
        scale = known_scale_at(self.scale, position.sigma)
        if scale == 1.0:
            return Unguided()
        return Unconditional() if scale == 0.0 else self

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """Unconditional, conditional."""
        return Pass(None), Pass(label)

    def combine(self, outputs, x, sigma, state):
        """Written around ``D_c``, to which a traced scale of 1 then leads exactly."""
        uncond, cond = outputs
        return cond + (scale_at(self.scale, sigma) - 1.0) * (cond - uncond), state


@guidance_rule
class Windowed(GuidanceRule):
    """A rule inside a window of the sampling process, another outside of it.

    With ``CFG`` and a ``SigmaWindow`` this is interval guidance (Kynkäänniemi et al.,
    arXiv 2404.07724). A window that holds no evaluation of a run is an error there.

    Args:
        rule: the rule inside the window.
        window: ``(lo, hi)`` fractions of the steps, a ``StepWindow`` or a
            ``SigmaWindow``.
        outside: the rule outside; no guidance by default.
    """

    rule: GuidanceRule
    window: Window | tuple[float, float] | None = static()
    outside: GuidanceRule = Unguided()

    def __post_init__(self):
        as_window(self.window)

    def without_weak_passes(self) -> GuidanceRule:
        """Both rules without theirs."""
        return dataclasses.replace(
            self,
            rule=self.rule.without_weak_passes(),
            outside=self.outside.without_weak_passes(),
        )

    def check_run(self, positions: Sequence[Position]) -> None:
        """Refuse a window without evaluations; ask each rule where it acts."""
        inside = positions_inside(self.window, positions, type(self).__name__)
        self.rule.check_run(inside)
        outside = [position for position in positions if position not in inside]
        if outside:
            self.outside.check_run(outside)

    @property
    def needs_label(self) -> bool:  # type: ignore[override]
        """Whether either rule does."""
        return self.rule.needs_label or self.outside.needs_label

    def at(self, position: Position) -> GuidanceRule:
        """The inner or the outer rule."""
        inside = as_window(self.window).contains(position)
        return (self.rule if inside else self.outside).at(position)
