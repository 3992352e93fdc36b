"""Classifier-free guidance, and windows that switch any rule on and off."""

from __future__ import annotations

import math
from typing import Any

from jax.typing import ArrayLike

from gmm_guidance.checks import as_float
from gmm_guidance.guidance.rule import (
    GuidanceRule,
    Unconditional,
    Unguided,
    guidance_rule,
    static,
)
from gmm_guidance.passes import Pass
from gmm_guidance.windows import Position, Window, as_window


def check_scale(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless a concrete scale is finite."""
    number = as_float(value)
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}.")


@guidance_rule
class CFG(GuidanceRule):
    """Classifier-free guidance: ``D_u + scale (D_c - D_u)``. 1 = off. Two passes.

    Ho & Salimans 2022 (arXiv 2207.12598), whose weight ``w`` is ``scale - 1``. The
    coefficients sum to one, so the rule is the same in x0, noise, velocity and score.
    A Python scale of 1 costs one pass (``D_c``), of 0 one pass (``D_u``).

    Raises:
        ValueError: if the scale is not finite.
    """

    scale: ArrayLike
    needs_label = True

    def __post_init__(self):
        check_scale("scale", self.scale)

    def at(self, position: Position) -> GuidanceRule:
        """``Unguided`` where the scale is known to be 1, ``Unconditional`` where 0."""
        scale = as_float(self.scale)
        if scale == 1.0:
            return Unguided()
        return Unconditional() if scale == 0.0 else self

    def passes(self, label: Any, draws: Any) -> tuple[Pass, ...]:
        """Unconditional, conditional."""
        return Pass(None), Pass(label)

    def combine(self, outputs, x, sigma, state):
        """Written around ``D_c``, to which a traced scale of 1 then leads exactly."""
        uncond, cond = outputs
        return cond + (self.scale - 1.0) * (cond - uncond), state


@guidance_rule
class Windowed(GuidanceRule):
    """A rule inside a window of the sampling process, another outside of it.

    With ``CFG`` this is interval guidance (Kynkäänniemi et al., arXiv 2404.07724).

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

    @property
    def needs_label(self) -> bool:  # type: ignore[override]
        """Whether either rule does."""
        return self.rule.needs_label or self.outside.needs_label

    def at(self, position: Position) -> GuidanceRule:
        """The inner or the outer rule."""
        inside = as_window(self.window).contains(position)
        return (self.rule if inside else self.outside).at(position)
