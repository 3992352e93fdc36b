"""Noise-level schedules.

A schedule is a small hashable value that is known before anything is traced: ``sigmas``
gives the levels in float64 on the host, strictly falling, with 0 at the end. A run of N
steps goes from ``sigmas()[i]`` to ``sigmas()[i + 1]`` for i = 0 .. N - 1.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import warnings
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import jax.numpy as jnp
import numpy as np

from gmm_guidance._runtime.checks import shown
from gmm_guidance.diffusion.process import DDPM

Spacing = Literal["leading", "trailing", "linspace"]


@runtime_checkable
class Schedule(Protocol):
    """A finite sequence of noise levels; hashable."""

    @property
    def num_steps(self) -> int:
        """Number of steps, N."""
        ...

    def sigmas(self) -> np.ndarray:
        """Noise levels ``[N + 1]``, float64, strictly falling, the last one 0."""
        ...


@dataclasses.dataclass(frozen=True)
class Karras:
    """EDM's levels: evenly spaced in ``sigma^(1 / rho)``.

    Karras et al. 2022 (arXiv 2206.00364, Eq. 5). A single step starts at ``sigma_max``.

    Args:
        num_steps: number of steps, at least 1.
        sigma_min: the last level before 0, > 0, in units of the data.
        sigma_max: the first level, > ``sigma_min``.
        rho: > 0; the larger, the more steps at low noise. 1 spaces them evenly.

    Raises:
        ValueError: for values out of these ranges or not finite.
    """

    num_steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        _check_num_steps(self.num_steps)
        _check_positive("sigma_min", self.sigma_min)
        _check_positive("rho", self.rho)
        if not self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sigma_max must be finite and above sigma_min={self.sigma_min}, got "
                f"{self.sigma_max}; exchange or separate them."
            )

    def sigmas(self) -> np.ndarray:
        """Noise levels ``[num_steps + 1]``."""
        if self.num_steps == 1:
            return np.array([self.sigma_max, 0.0])
        first, last = (
            end ** (1.0 / self.rho) for end in (self.sigma_max, self.sigma_min)
        )
        levels = np.linspace(first, last, self.num_steps) ** self.rho
        levels[[0, -1]] = self.sigma_max, self.sigma_min  # free of rounding
        return np.append(levels, 0.0)


@dataclasses.dataclass(frozen=True)
class DDPMSteps:
    """Some of the steps of a DDPM chain, as DDIM and DiT take them.

    With T steps in the chain and N to take, the integer times are, as in diffusers'
    ``DDIMScheduler`` with ``steps_offset=0`` (numpy's rounding, half to even):

    - ``"trailing"``: ``round(T - i T / N) - 1``. Starts at the highest noise, T - 1.
    - ``"leading"``: ``(N - 1 - i) (T // N)``. Ends at time 0 but starts about T / N
      below the highest noise, up to T / 2 if N does not divide T (Lin et al. 2024,
      arXiv 2305.08891, Sec. 3.3); the "ddimN" respacing of OpenAI's code where N does.
    - ``"linspace"``: ``round`` of N even points from T - 1 to 0, both included; the
      respacing of DiT's sampler (250 of 1000), up to rounding.

    Args:
        num_steps: number of steps, at least 1 (2 unless trailing), at most the chain's.
        process: the chain.
        spacing: see above.

    Raises:
        ValueError: for values out of these ranges, or an unknown spacing.
    """

    num_steps: int = 50
    process: DDPM = DDPM()
    spacing: Spacing = "trailing"

    def __post_init__(self):
        _check_num_steps(self.num_steps)
        if not isinstance(self.process, DDPM):
            raise ValueError(
                f"process must be a DDPM chain, got {self.process!r}; for others give "
                f"levels, with Karras or CustomSchedule."
            )
        if self.num_steps > self.process.num_steps:
            raise ValueError(
                f"num_steps must be at most the chain's {self.process.num_steps}, got "
                f"{self.num_steps}; take fewer steps, or another schedule."
            )
        if self.spacing not in get_args(Spacing):
            raise ValueError(
                f"unknown spacing {self.spacing!r}; choose one of "
                f"{', '.join(get_args(Spacing))}."
            )
        if self.num_steps == 1 and self.spacing != "trailing":
            raise ValueError(
                f"num_steps must be at least 2 with {self.spacing} spacing, got 1: its "
                f"only step would start at time 0, without noise; use trailing."
            )

    def timesteps(self) -> np.ndarray:
        """Times of the chain, integers ``[num_steps]``, strictly falling."""
        steps, length = self.num_steps, self.process.num_steps
        if self.spacing == "leading":
            return np.arange(steps)[::-1] * (length // steps)
        if self.spacing == "trailing":
            # One rounding: subtracting T / N again and again can give N + 1 values.
            return (
                np.round(length - np.arange(steps) * (length / steps)).astype(int) - 1
            )
        return np.round(np.linspace(0, length - 1, steps)).astype(int)[::-1]

    def sigmas(self) -> np.ndarray:
        """Noise levels ``[num_steps + 1]``."""
        return np.append(self.process.sigmas()[self.timesteps()], 0.0)


@dataclasses.dataclass(frozen=True)
class FlowSteps:
    """Even steps in the time of a rectified flow, shifted towards noise as in SD3.

    Times ``t`` run evenly from ``t_max`` to 0 (data), then ``t' = shift t / (1 + (shift
    - 1) t)`` (Esser et al. 2024, arXiv 2403.03206, Eq. 23) and ``sigma = t' / (1 -
    t')``, which is ``shift`` times the unshifted level.

    Args:
        num_steps: number of steps, at least 1.
        t_max: first time before the shift, in (0, 1); at 1 the level is infinite. The
            default starts at sigma 999 times ``shift``.
        shift: > 0; 1 = off, 3 in SD3.

    Raises:
        ValueError: for values out of these ranges or not finite.
    """

    num_steps: int = 50
    t_max: float = 0.999
    shift: float = 1.0

    def __post_init__(self):
        _check_num_steps(self.num_steps)
        _check_positive("shift", self.shift)
        if not 0 < self.t_max < 1:
            raise ValueError(
                f"t_max must be above 0 and below 1, got {self.t_max}; at 1 there is "
                f"noise alone, use 0.999, say."
            )

    def times(self) -> np.ndarray:
        """Times after the shift, ``[num_steps + 1]``, noise at 1 and data at 0."""
        sigmas = self.sigmas()
        return sigmas / (1.0 + sigmas)

    def sigmas(self) -> np.ndarray:
        """Noise levels ``[num_steps + 1]``."""
        t = np.linspace(self.t_max, 0.0, self.num_steps + 1)
        return self.shift * t / (1.0 - t)


@dataclasses.dataclass(frozen=True)
class CustomSchedule:
    """Custom noise levels.

    Args:
        values: levels in units of the data, strictly falling, all > 0 but for a 0 at
            the end, which is appended if it is missing.

    Raises:
        ValueError: if they are not, or if no level is above 0.
    """

    values: tuple[float, ...]

    def __post_init__(self):
        values = tuple(float(value) for value in self.values)  # also from an array
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise ValueError(
                f"noise levels must be finite and not negative, got {values}."
            )
        if any(b >= a for a, b in zip(values, values[1:], strict=False)):
            raise ValueError(
                f"noise levels must fall strictly, got {values}; sort them from high "
                f"to low and leave out repeated ones."
            )
        if not values or values[0] == 0:
            raise ValueError(f"at least one noise level must be above 0, got {values}.")
        if values[-1] != 0:
            values += (0.0,)
        object.__setattr__(self, "values", values)

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.values) - 1

    def sigmas(self) -> np.ndarray:
        """Noise levels ``[num_steps + 1]``."""
        return np.array(self.values)


_START = 20.0  # the first level of ``sigma_range``, over the root mean square


def default_schedule(denoiser: Any, num_steps: int = 64) -> Karras:
    """The schedule that ``guided_sample`` uses if it is given none.

    A denoiser that knows its data names the noise levels that sampling needs in
    ``sigma_range``, a pair of the last level before 0 and the first: ``ExactDenoiser``
    has that of its mixture, a trained denoiser that of its training data. The first
    level is then 20 times the root mean square of the data, their mean included, so
    that the start forgets the data. For other denoisers the levels are those of EDM,
    0.002 to 80, for data of about unit scale.

    On modes of standard deviation 0.35, CFG of scale 6 with an exact denoiser and
    ``"heun"`` is then within 1 % of the width of infinitely many steps.

    Args:
        denoiser: any denoiser.
        num_steps: number of steps, at least 1.
    """
    found = getattr(denoiser, "sigma_range", None)
    if found is None:
        return Karras(num_steps)
    low, high = found
    return Karras(num_steps, float(low), float(high))


def warn_of_scale(levels: np.ndarray, denoiser: Any, *, has_initial: bool) -> None:
    """Warn of noise levels that do not fit the scale of the data, where it is known.

    Args:
        levels: of a schedule, ``[N + 1]``.
        denoiser: any denoiser; ``sigma_range`` tells the scale.
        has_initial: whether the run starts from given points, at any level.
    """
    found = getattr(denoiser, "sigma_range", None)
    if found is None:
        return
    extent = float(found[1]) / _START  # root mean square of the data
    remedy = "leave schedule out, or take one like default_schedule(denoiser)"
    if not has_initial and levels[0] < extent:
        warnings.warn(
            f"the schedule starts at the noise level {levels[0]:.3g}, below the size "
            f"of the data, {extent:.3g} (root mean square): pure noise of that level "
            f"is no sample of the noised data; {remedy}.",
            stacklevel=3,
        )
    elif levels[-2] > extent:
        warnings.warn(
            f"the last noise level before 0 is {levels[-2]:.3g}, above the size of the "
            f"data, {extent:.3g} (root mean square): samples are averages of the data; "
            f"{remedy}.",
            stacklevel=3,
        )


def levels_of(schedule: Any) -> np.ndarray:
    """The levels of a schedule, ``[N + 1]``, checked to be what a run needs.

    Raises:
        TypeError: for anything but a schedule.
        ValueError: for levels that are not finite, do not end in 0, or do not fall
            strictly, also once they are rounded to the type of the run.
    """
    if isinstance(schedule, type) or not hasattr(schedule, "sigmas"):
        if isinstance(schedule, numbers.Integral):
            remedy = f"write Karras({schedule}) for that many steps"
        elif isinstance(schedule, type):
            remedy = f"write {schedule.__name__}(...)"
        else:
            remedy = "write CustomSchedule(levels) for levels of your own"
        raise TypeError(
            f"schedule must be a Schedule such as Karras(50), got {shown(schedule)}; "
            f"{remedy}."
        )
    name = f"the schedule {type(schedule).__name__}"
    levels = np.asarray(schedule.sigmas())
    if levels.ndim != 1 or len(levels) < 2 or levels.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} must have at least two noise levels, [num_steps + 1] numbers, got "
            f"{levels.dtype} {levels.shape}."
        )
    levels = levels.astype(np.float64)
    if not np.isfinite(levels).all() or levels[-1] != 0:
        raise ValueError(
            f"{name} must have finite noise levels that end in 0, got {levels[0]:g} to "
            f"{levels[-1]:g}; CustomSchedule(levels) appends the 0."
        )
    dtype = jnp.result_type(float)
    rounded = levels.astype(dtype)
    equal = np.flatnonzero(rounded[1:] >= rounded[:-1])
    if equal.size:
        first = int(equal[0])
        raise ValueError(
            f"{name} must have noise levels that fall strictly in {dtype}, got "
            f"{levels[first]:.9g} before {levels[first + 1]:.9g}; take fewer steps or "
            f"leave out one of them."
        )
    if getattr(schedule, "num_steps", len(levels) - 1) != len(levels) - 1:
        raise ValueError(
            f"{name} must have num_steps + 1 noise levels, got num_steps "
            f"{schedule.num_steps} and {len(levels)} levels."
        )
    return levels


def _check_num_steps(num_steps: Any) -> None:
    if not isinstance(num_steps, numbers.Integral) or num_steps < 1:
        raise ValueError(
            f"num_steps must be a whole number of at least 1, got {num_steps}; a run "
            f"needs one step or more."
        )


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and above 0, got {value}.")
