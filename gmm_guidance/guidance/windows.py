"""Windows of the sampling process: at which evaluations of the network a rule acts."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

# Shares of steps are quotients such as 9/10, window ends decimals such as 0.9.
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class Position:
    """Where in a run one evaluation of the network is.

    Attributes:
        fraction: share of the steps that are completed when this step starts, i / N.
        sigma: noise level of the evaluation. A second-order solver's second evaluation
            is at the level to which the step leads.
        step: index i of the step, from 0.
        num_steps: number of steps, N.
    """

    fraction: float
    sigma: float
    step: int
    num_steps: int


@runtime_checkable
class Window(Protocol):
    """A part of the sampling process; hashable."""

    def contains(self, position: Position) -> bool:
        """Whether an evaluation is inside."""
        ...


@dataclasses.dataclass(frozen=True)
class StepWindow:
    """The steps i of N with ``lo <= i / N < hi``, all evaluations of a step alike.

    The share of completed steps decides, 0 at the first step and (N - 1) / N at the
    last, so ``hi = 1`` includes the last step. Neighbouring windows share no step and
    leave out none. (0.1, 0.9) takes 8 steps of 10, 16 of 20, 40 of 50, and 23 of 28,
    the number that the cost table of the S2-Guidance paper (arXiv 2508.12880, Table 5)
    amounts to.

    Args:
        lo: first share inside, in [0, 1).
        hi: first share beyond, in (lo, 1].

    Raises:
        ValueError: unless ``0 <= lo < hi <= 1``.
    """

    lo: float = 0.0
    hi: float = 1.0

    def __post_init__(self):
        if not 0 <= self.lo < self.hi <= 1:
            raise ValueError(
                f"a step window must satisfy 0 <= lo < hi <= 1, shares of the steps, "
                f"got lo={self.lo}, hi={self.hi}; for noise levels use SigmaWindow, "
                f"and to switch a rule off set its scale."
            )

    def contains(self, position: Position) -> bool:
        """Whether the step is inside."""
        return self.lo - _TOLERANCE <= position.fraction < self.hi - _TOLERANCE


@dataclasses.dataclass(frozen=True)
class SigmaWindow:
    """Evaluations at noise levels ``lo < sigma <= hi``, whatever the schedule.

    The interval of Kynkäänniemi et al. 2024 (arXiv 2404.07724). The two evaluations of
    a second-order step may differ.

    Args:
        lo: level below the window, >= 0, in units of the data.
        hi: highest level inside, > ``lo``; may be ``math.inf``.

    Raises:
        ValueError: unless ``0 <= lo < hi``.
    """

    lo: float
    hi: float

    def __post_init__(self):
        if not 0 <= self.lo < self.hi:
            raise ValueError(
                f"a sigma window must satisfy 0 <= lo < hi, noise levels, got "
                f"lo={self.lo}, hi={self.hi}; to switch a rule off set its scale."
            )

    def contains(self, position: Position) -> bool:
        """Whether the evaluation's noise level is inside."""
        return self.lo < position.sigma <= self.hi


def as_window(window: Any) -> Window:
    """A window from any of its notations.

    Args:
        window: ``None`` (always), a tuple ``(lo, hi)`` of shares of the steps, or an
            object with ``contains(position)``.

    Raises:
        ValueError: for a tuple of another length, or ends out of range.
        TypeError: for anything else.
    """
    if window is None:
        return StepWindow()
    if isinstance(window, tuple):
        if len(window) != 2:
            raise ValueError(
                f"a window must have two ends, (lo, hi) as shares of the steps, got "
                f"{window}."
            )
        if all(isinstance(end, numbers.Real) for end in window):
            return StepWindow(*window)
    elif isinstance(window, Window) and not isinstance(window, type):
        return window
    raise TypeError(
        f"a window must be None, a tuple (lo, hi) of two numbers, a StepWindow or a "
        f"SigmaWindow, got {window!r}."
    )


def positions_inside(
    window: Any, positions: Sequence[Position], owner: str
) -> list[Position]:
    """The positions inside a window of a rule, at least one.

    Raises:
        ValueError: if there is none, so that the rule would never act.
    """
    resolved = as_window(window)
    inside = [position for position in positions if resolved.contains(position)]
    if not inside:
        steps = positions[0].num_steps
        raise ValueError(
            f"the window {window} of {owner} holds no evaluation of this run of "
            f"{steps} step{'s' if steps > 1 else ''}, so that it would never act; "
            f"widen the window, take more steps, or leave the rule out."
        )
    return inside
