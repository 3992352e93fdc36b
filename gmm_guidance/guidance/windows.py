"""Windows of the sampling process: at which denoiser evaluations a rule acts."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any, Protocol, runtime_checkable

from typing_extensions import override

# Fractions of steps are quotients such as 9/10, window ends decimals such as 0.9.
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class Position:
    """The position of one denoiser evaluation in a sampling run.

    Attributes:
        fraction: fraction of the steps completed when this step starts, i / N.
        sigma: noise level of the evaluation. The second evaluation of a second-order
            step is at the noise level that the step leads to.
        step: index i of the step, from 0.
        num_steps: number of steps, N.
        windows: the windows tested so far, by name, and whether one of the evaluations
            was inside. All positions of a run have the same dictionary.
        stretches: the terms that act, with the first and the last step of their present
            stretch; likewise.
    """

    fraction: float
    sigma: float
    step: int
    num_steps: int
    windows: dict[str, bool] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    stretches: dict[int, tuple[Any, int, int]] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    def is_inside(self, window: Any, owner: Any) -> bool:
        """Whether the evaluation is inside a window of a rule.

        For ``GuidanceRule.at``. The answer is recorded, so that a run in which a window
        of a rule contains no evaluation is an error (see ``check_windows``).

        Args:
            window: a window in any notation of ``as_window``.
            owner: the rule, for error messages.
        """
        inside = as_window(window).contains(self)
        name = f"the window {window} of {type(owner).__name__}"
        self.windows[name] = self.windows.get(name, False) or inside
        return inside

    def steps_acting(self, term: Any) -> int:
        """How many steps before this one a term has acted without a break.

        For ``GuidanceRule.at``, which is called in the order of the steps. To be called
        at each evaluation in which the term acts.

        Args:
            term: the same object at each call.
        """
        _, first, last = self.stretches.get(id(term), (term, self.step, self.step))
        if self.step > last + 1:
            first = self.step
        self.stretches[id(term)] = (term, first, self.step)  # keeps the object alive
        return self.step - first

    def check_windows(self) -> None:
        """Check that each window tested in this run contains an evaluation.

        Raises:
            ValueError: for a window without one, where its rule would never act.
        """
        for name, was_inside in self.windows.items():
            if not was_inside:
                steps = f"{self.num_steps} step{'s' if self.num_steps > 1 else ''}"
                raise ValueError(
                    f"{name} contains no evaluation of this run of {steps}, so its "
                    f"rule would never act; widen the window, take more steps, or "
                    f"leave the rule out."
                )


@runtime_checkable
class Window(Protocol):
    """A part of the sampling process; must be hashable."""

    def contains(self, position: Position) -> bool:
        """Whether an evaluation is inside."""
        ...


@dataclasses.dataclass(frozen=True)
class StepWindow(Window):
    """The steps i of N with ``lo <= i / N < hi``, all evaluations of a step alike.

    The fraction of completed steps is 0 at the first step and (N - 1) / N at the last,
    so ``hi = 1`` includes the last step. Adjacent windows neither overlap nor omit a
    step. (0.1, 0.9) contains 8 steps of 10, 16 of 20, 40 of 50, and 23 of 28, the
    number implied by the cost table of the S2-Guidance paper (arXiv 2508.12880,
    Table 5).

    Args:
        lo: lowest fraction inside, in [0, 1).
        hi: lowest fraction beyond the window, in (lo, 1].

    Raises:
        ValueError: unless ``0 <= lo < hi <= 1``.
    """

    lo: float = 0.0
    hi: float = 1.0

    def __post_init__(self):
        if not 0 <= self.lo < self.hi <= 1:
            raise ValueError(
                f"a step window must satisfy 0 <= lo < hi <= 1, fractions of the "
                f"steps, got lo={self.lo}, hi={self.hi}; for noise levels use "
                f"SigmaWindow, and to switch a rule off use its scale."
            )

    @override
    def contains(self, position: Position) -> bool:
        return self.lo - _TOLERANCE <= position.fraction < self.hi - _TOLERANCE


@dataclasses.dataclass(frozen=True)
class SigmaWindow(Window):
    """Evaluations at noise levels ``lo < sigma <= hi``, for any schedule.

    The interval of Kynkäänniemi et al. 2024 (arXiv 2404.07724). It may contain only one
    of the two evaluations of a second-order step.

    Args:
        lo: highest level below the window, >= 0, in units of the data.
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
                f"lo={self.lo}, hi={self.hi}; to switch a rule off use its scale."
            )

    @override
    def contains(self, position: Position) -> bool:
        return self.lo < position.sigma <= self.hi


def as_window(window: Any) -> Window:
    """A window from any of its notations.

    Args:
        window: ``None`` (always), a tuple ``(lo, hi)`` of fractions of the steps, or an
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
                f"a window must have two ends, (lo, hi) as fractions of the steps, got "
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
