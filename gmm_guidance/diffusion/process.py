"""Gaussian noise processes: data under noise, each with its own time variable.

``x_t = alpha(t) x0 + s(t) noise``. As ``x_t / alpha = x0 + sigma * noise`` with ``sigma
= s / alpha``, all are one process in ``sigma``, the library's own variable, after a
change of variables (Karras et al. 2022, arXiv 2206.00364, Sec. 2 and App. B), which
``parameterization`` makes. Times may be scalars or one for each sample, ``[n]``.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from typing_extensions import override

from gmm_guidance._runtime.checks import as_concrete, as_floats


class Process(abc.ABC):
    """Base of all processes: hashable and static, with arrays of times as arguments.

    All methods are elementwise and keep the shape of their argument. ``alpha``,
    ``noise_std`` and their rates belong to ``x_t``; ``sigma`` is the noise level of
    ``x_t / alpha``. A constant field ``name`` tells processes apart in files, see
    ``process_from_fields``.
    """

    @abc.abstractmethod
    def alpha(self, t: ArrayLike) -> jax.Array:
        """Factor of the data at time ``t``, in [0, 1]."""

    @abc.abstractmethod
    def noise_std(self, t: ArrayLike) -> jax.Array:
        """Standard deviation ``s`` of the noise in ``x_t``, >= 0."""

    @abc.abstractmethod
    def alpha_rate(self, t: ArrayLike) -> jax.Array:
        """``d alpha / dt``."""

    @abc.abstractmethod
    def noise_std_rate(self, t: ArrayLike) -> jax.Array:
        """``d s / dt``."""

    @abc.abstractmethod
    def sigma(self, t: ArrayLike) -> jax.Array:
        """Noise level ``s / alpha``, in units of the data."""

    @abc.abstractmethod
    def time(self, sigma: ArrayLike) -> jax.Array:
        """The time at which the noise level is ``sigma``: the inverse of ``sigma``.

        Raises:
            ValueError: if a concrete ``sigma`` is negative or NaN.
        """

    def noisy_input(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """``x_t = alpha x`` for ``x = x0 + sigma * noise``; sigma broadcasts to x.

        Alpha is that of sigma itself, free of the rounding of the time.
        """
        return x * self.alpha(self.time(sigma))


@dataclasses.dataclass(frozen=True)
class VE(Process):
    """Variance exploding, as in EDM: ``alpha = 1``, ``s = t``; the time is sigma.

    Karras et al. 2022 (arXiv 2206.00364). Valid times: ``t >= 0``.
    """

    name: str = dataclasses.field(default="VE", init=False, repr=False)

    @override
    def alpha(self, t: ArrayLike) -> jax.Array:
        return jnp.ones_like(as_times(t))

    @override
    def noise_std(self, t: ArrayLike) -> jax.Array:
        return as_times(t)

    @override
    def alpha_rate(self, t: ArrayLike) -> jax.Array:
        return jnp.zeros_like(as_times(t))

    @override
    def noise_std_rate(self, t: ArrayLike) -> jax.Array:
        return jnp.ones_like(as_times(t))

    @override
    def sigma(self, t: ArrayLike) -> jax.Array:
        return as_times(t)

    @override
    def time(self, sigma: ArrayLike) -> jax.Array:
        return as_levels(sigma)

    @override
    def noisy_input(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
        return x


@dataclasses.dataclass(frozen=True)
class VP(Process):
    """Variance preserving with linear beta: ``alpha^2 + s^2 = 1``.

    Song et al. 2021 (arXiv 2011.13456, Eq. 33): ``beta(t) = beta_min + t (beta_max -
    beta_min)`` and ``-2 log alpha = B(t)``, the integral of beta. Valid times:
    ``t >= 0``; data at 0, and training of networks ends at 1 (sigma 152 for the
    defaults), beyond which beta keeps growing linearly. ``noise_std_rate`` is infinite
    at ``t = 0``, where ``s`` starts like a square root.

    Args:
        beta_min: beta at ``t = 0``, > 0.
        beta_max: beta at ``t = 1``, at least ``beta_min``.

    Raises:
        ValueError: unless ``0 < beta_min <= beta_max``, both finite.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    name: str = dataclasses.field(default="VP", init=False, repr=False)

    def __post_init__(self):
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"betas must satisfy 0 < beta_min <= beta_max < inf, got beta_min="
                f"{self.beta_min} and beta_max={self.beta_max}; the published values "
                f"are 0.1 and 20."
            )

    def _beta(self, t: jax.Array) -> jax.Array:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: jax.Array) -> jax.Array:
        return t * (self.beta_min + t * (0.5 * (self.beta_max - self.beta_min)))

    def alpha(self, t: ArrayLike) -> jax.Array:
        """``exp(-B / 2)``."""
        return jnp.exp(-0.5 * self._integral(as_times(t)))

    def noise_std(self, t: ArrayLike) -> jax.Array:
        """``sqrt(1 - exp(-B))``."""
        return jnp.sqrt(-jnp.expm1(-self._integral(as_times(t))))

    def alpha_rate(self, t: ArrayLike) -> jax.Array:
        """``-beta alpha / 2``."""
        t = as_times(t)
        return -0.5 * self._beta(t) * self.alpha(t)

    def noise_std_rate(self, t: ArrayLike) -> jax.Array:
        """``beta alpha^2 / (2 s)``."""
        t = as_times(t)
        return 0.5 * self._beta(t) * self.alpha(t) ** 2 / self.noise_std(t)

    def sigma(self, t: ArrayLike) -> jax.Array:
        """``sqrt(exp(B) - 1)``."""
        return jnp.sqrt(jnp.expm1(self._integral(as_times(t))))

    def time(self, sigma: ArrayLike) -> jax.Array:
        """The root of ``B(t) = log(1 + sigma^2)``."""
        sigma = as_levels(sigma)
        # Squares of large levels overflow float32, those of small ones vanish in 1.
        # (Selected by where, as the derivative of maximum is halved at a tie.)
        is_large = sigma > 1.0
        large, small = jnp.where(is_large, sigma, 1.0), jnp.where(is_large, 1.0, sigma)
        integral = jnp.where(
            is_large,
            2.0 * jnp.log(large) + jnp.log1p(large**-2),
            jnp.log1p(small**2),
        )
        # The textbook root subtracts nearly equal numbers for small levels.
        slope = self.beta_max - self.beta_min
        root = jnp.sqrt(self.beta_min**2 + 2.0 * slope * integral)
        return 2.0 * integral / (self.beta_min + root)

    @override
    def noisy_input(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(1.0 + sigma**2)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Process):
    """The straight path: ``alpha = 1 - t``, ``s = t``; data at 0, noise at 1.

    Liu et al. 2022 (arXiv 2209.03003), Lipman et al. 2022 (arXiv 2210.02747); the time
    is SD3's (2403.03206). Valid times: ``[0, 1]``, with sigma infinite at noise.
    Float32 resolves sigma to relative 1e-7 (1 + sigma), or, with ``data_at_one``,
    1e-7 (1 + 1 / sigma): times near 1 are the coarse ones.

    Args:
        data_at_one: let time run from noise at 0 to data at 1, as SiT does
            (2401.08740). The velocity, a derivative in t, changes its sign with it.
    """

    data_at_one: bool = False
    name: str = dataclasses.field(default="RectifiedFlow", init=False, repr=False)

    def alpha(self, t: ArrayLike) -> jax.Array:
        """``1 - t``, or ``t`` with data at one."""
        t = as_times(t, 1.0)
        return t if self.data_at_one else 1.0 - t

    def noise_std(self, t: ArrayLike) -> jax.Array:
        """``t``, or ``1 - t`` with data at one."""
        t = as_times(t, 1.0)
        return 1.0 - t if self.data_at_one else t

    def alpha_rate(self, t: ArrayLike) -> jax.Array:
        """-1, or 1 with data at one."""
        return jnp.full_like(as_times(t, 1.0), 1.0 if self.data_at_one else -1.0)

    def noise_std_rate(self, t: ArrayLike) -> jax.Array:
        """1, or -1 with data at one."""
        return -self.alpha_rate(t)

    def sigma(self, t: ArrayLike) -> jax.Array:
        """``t / (1 - t)``, or ``(1 - t) / t`` with data at one."""
        return self.noise_std(t) / self.alpha(t)

    def time(self, sigma: ArrayLike) -> jax.Array:
        """``sigma / (1 + sigma)``, or ``1 / (1 + sigma)`` with data at one."""
        sigma = as_levels(sigma)
        return (1.0 if self.data_at_one else sigma) / (1.0 + sigma)

    @override
    def noisy_input(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
        return x / (1.0 + sigma)


@dataclasses.dataclass(frozen=True)
class DDPM(Process):
    """The discrete chain of DDPM with linear betas: times ``0 .. num_steps - 1``.

    Ho et al. 2020 (arXiv 2006.11239): ``alpha_bar_t = prod_{i <= t} (1 - beta_i)``,
    ``alpha^2 = alpha_bar``, ``s^2 = 1 - alpha_bar``. Time 0 has one step of noise, not
    none: sigma runs from 0.01 to 157 for the defaults, which are also DiT's. Between
    integers ``log sigma`` is linear in t, and beyond both ends it continues with the
    slope of the last interval, so that ``time`` has an inverse at all levels > 0.
    Rates are those of the interval to the right of t.

    Args:
        num_steps: length of the chain, at least 2.
        beta_start: first beta, > 0.
        beta_end: last beta, at least ``beta_start`` and < 1.
        integer_times: whether ``time`` returns the nearest step of the chain, as
            networks need that were trained at integer steps only (DiT). Inputs and
            predictions keep the coefficients of the exact noise level.

    Raises:
        ValueError: for values out of these ranges, and by methods for a concrete
            integer time outside of the chain.
    """

    num_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    integer_times: bool = False
    name: str = dataclasses.field(default="DDPM", init=False, repr=False)

    def __post_init__(self):
        if not isinstance(self.num_steps, (int, np.integer)) or self.num_steps < 2:
            raise ValueError(
                f"num_steps must be a whole number of at least 2, got "
                f"{self.num_steps}; published chains have 1000."
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"betas must satisfy 0 < beta_start <= beta_end < 1, got beta_start="
                f"{self.beta_start} and beta_end={self.beta_end}; the published values "
                f"are 1e-4 and 2e-2."
            )

    def alpha_bars(self) -> np.ndarray:
        """``alpha^2`` at each step: float64, ``[num_steps]``, falling, read-only."""
        return _ddpm_tables(self.num_steps, self.beta_start, self.beta_end)[0]

    def sigmas(self) -> np.ndarray:
        """Noise level at each step: float64, ``[num_steps]``, rising, read-only."""
        return _ddpm_tables(self.num_steps, self.beta_start, self.beta_end)[1]

    def _log_sigma(self, t: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """``log sigma`` and its slope in t."""
        values = as_concrete(t)
        if values is not None and values.dtype.kind in "iu":
            bad = values[(values < 0) | (values >= self.num_steps)]
            if bad.size:
                raise ValueError(
                    f"integer times must be in 0..{self.num_steps - 1}, got "
                    f"{bad.ravel()[:5].tolist()}; the chain counts from 0."
                )
        t = as_floats(t)
        table = np.log(self.sigmas())
        left = jnp.clip(jnp.floor(t), 0, self.num_steps - 2)
        index = left.astype(jnp.int32)
        slope = jnp.asarray(np.diff(table), t.dtype)[index]
        return jnp.asarray(table, t.dtype)[index] + (t - left) * slope, slope

    def alpha(self, t: ArrayLike) -> jax.Array:
        """``sqrt(alpha_bar)``."""
        return jnp.sqrt(jax.nn.sigmoid(-2.0 * self._log_sigma(t)[0]))

    def noise_std(self, t: ArrayLike) -> jax.Array:
        """``sqrt(1 - alpha_bar)``."""
        return jnp.sqrt(jax.nn.sigmoid(2.0 * self._log_sigma(t)[0]))

    def alpha_rate(self, t: ArrayLike) -> jax.Array:
        """``-alpha s^2 d(log sigma)/dt``, per step."""
        return -self.alpha(t) * self.noise_std(t) ** 2 * self._log_sigma(t)[1]

    def noise_std_rate(self, t: ArrayLike) -> jax.Array:
        """``s alpha^2 d(log sigma)/dt``, per step."""
        return self.noise_std(t) * self.alpha(t) ** 2 * self._log_sigma(t)[1]

    def sigma(self, t: ArrayLike) -> jax.Array:
        """``sqrt(1 / alpha_bar - 1)``."""
        return jnp.exp(self._log_sigma(t)[0])

    def time(self, sigma: ArrayLike) -> jax.Array:
        """The time as a float: between steps linear in ``log sigma``.

        ``-inf`` for sigma = 0; with ``integer_times`` the nearest step, from 0 to
        ``num_steps - 1``.
        """
        if self.integer_times:
            return self.nearest_step(sigma).astype(as_levels(sigma).dtype)
        return self._time_between_steps(sigma)

    def _time_between_steps(self, sigma: ArrayLike) -> jax.Array:
        log_sigma = jnp.log(as_levels(sigma))
        table = np.log(self.sigmas())
        levels = jnp.asarray(table, log_sigma.dtype)
        index = jnp.searchsorted(levels, log_sigma, side="right") - 1
        index = jnp.clip(index, 0, self.num_steps - 2)
        slope = jnp.asarray(np.diff(table), log_sigma.dtype)[index]
        return index.astype(log_sigma.dtype) + (log_sigma - levels[index]) / slope

    def nearest_step(self, sigma: ArrayLike) -> jax.Array:
        """The step nearest in ``log sigma``: int32, within ``0 .. num_steps - 1``."""
        step = jnp.round(self._time_between_steps(sigma))
        return jnp.clip(step, 0, self.num_steps - 1).astype(jnp.int32)

    @override
    def noisy_input(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(1.0 + sigma**2)


def process_from_fields(fields: Mapping[str, Any]) -> Process:
    """The process of its ``dataclasses.asdict``, as configurations are stored.

    Raises:
        ValueError: if they are not those of a process of this module.
    """
    known = {kind.name: kind for kind in (VE, VP, DDPM, RectifiedFlow)}
    try:
        rest = dict(fields)
        return known[rest.pop("name", None)](**rest)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"a process must have a name ({', '.join(known)}) and its own fields, got "
            f"{fields!r}; it may be of a newer or older version."
        ) from error


def as_times(t: ArrayLike, last: float = math.inf) -> jax.Array:
    """Times as floats, checked to be within ``0 .. last`` where they are known."""
    values = as_concrete(t)
    if values is not None and not np.all((values >= 0) & (values <= last)):
        raise ValueError(
            f"time must be in [0, {last:g}], got {_extremes(values)}; see the class "
            f"for the range of its times."
        )
    return as_floats(t)


def as_levels(sigma: ArrayLike) -> jax.Array:
    """Noise levels as floats, checked not to be negative where they are known."""
    values = as_concrete(sigma)
    if values is not None and not np.all(values >= 0):
        raise ValueError(
            f"sigma must be at least 0, got {_extremes(values)}; noise levels are "
            f"standard deviations in units of the data."
        )
    return as_floats(sigma)


def _extremes(values: np.ndarray) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:g}" if values.ndim == 0 else f"values from {low:g} to {high:g}"


@functools.cache
def _ddpm_tables(
    num_steps: int, beta_start: float, beta_end: float
) -> tuple[np.ndarray, np.ndarray]:
    log_alpha_bar = np.cumsum(np.log1p(-np.linspace(beta_start, beta_end, num_steps)))
    tables = np.exp(log_alpha_bar), np.sqrt(np.expm1(-log_alpha_bar))
    for table in tables:
        table.setflags(write=False)  # it is shared by all callers
    return tables
