"""Gaussian noise processes: data under noise along a clock of their own.

``x_t = alpha(t) x0 + s(t) noise``. As ``x_t / alpha = x0 + sigma * noise`` with ``sigma
= s / alpha``, all are one process in ``sigma``, the library's one clock, after a change
of variables (Karras et al. 2022, arXiv 2206.00364, Sec. 2 and App. B), which
``conversions`` makes. Times may be scalars or one for each sample, ``[n]``.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_concrete


class Process(abc.ABC):
    """Base of all processes: hashable and static, with arrays of times as arguments.

    All methods are elementwise and keep the shape of their argument. ``alpha``,
    ``noise_std`` and their rates belong to ``x_t``;
    ``sigma`` is the noise level of ``x_t / alpha``.
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


@dataclasses.dataclass(frozen=True)
class VE(Process):
    """Variance exploding, as in EDM: ``alpha = 1``, ``s = t``; the time is sigma.

    Karras et al. 2022 (arXiv 2206.00364). Valid times: ``t >= 0``.
    """

    def alpha(self, t: ArrayLike) -> jax.Array:
        """One."""
        return jnp.ones_like(as_times(t))

    def noise_std(self, t: ArrayLike) -> jax.Array:
        """``t``."""
        return as_times(t)

    def alpha_rate(self, t: ArrayLike) -> jax.Array:
        """Zero."""
        return jnp.zeros_like(as_times(t))

    def noise_std_rate(self, t: ArrayLike) -> jax.Array:
        """One."""
        return jnp.ones_like(as_times(t))

    def sigma(self, t: ArrayLike) -> jax.Array:
        """``t``."""
        return as_times(t)

    def time(self, sigma: ArrayLike) -> jax.Array:
        """``sigma``."""
        return as_levels(sigma)


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
        # Squares of large levels overflow float32, those of small ones vanish beside 1.
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


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Process):
    """The straight path: ``alpha = 1 - t``, ``s = t``; data at 0, noise at 1.

    Liu et al. 2022 (arXiv 2209.03003), Lipman et al. 2022 (arXiv 2210.02747); the clock
    is SD3's (2403.03206). Valid times: ``[0, 1]``, with sigma infinite at noise.
    Float32 resolves sigma to relative 1e-7 (1 + sigma), or, with ``data_at_one``,
    1e-7 (1 + 1 / sigma): times near 1 are the coarse ones.

    Args:
        data_at_one: run the clock from noise at 0 to data at 1, as SiT does
            (2401.08740). The velocity, a derivative in t, changes its sign with it.
    """

    data_at_one: bool = False

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


def as_floats(value: ArrayLike) -> jax.Array:
    """As floats of at least 32 bits; bfloat16 could not even count to 1000."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(jnp.result_type(float))
    narrow = jnp.finfo(array.dtype).bits < 32
    return array.astype(jnp.float32) if narrow else array


def as_times(t: ArrayLike, last: float = math.inf) -> jax.Array:
    """Times as floats, checked to be within ``0 .. last`` where they are known."""
    values = as_concrete(t)
    if values is not None and not np.all((values >= 0) & (values <= last)):
        raise ValueError(
            f"time must be in [0, {last:g}], got {_extremes(values)}; see the class "
            f"for the process's clock."
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
