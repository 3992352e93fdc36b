"""The discrete chain of DDPM as a noise process."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_concrete
from gmm_guidance.diffusion.process import Process, as_floats, as_levels


@dataclasses.dataclass(frozen=True)
class DDPM(Process):
    """The discrete chain of DDPM with linear betas: times ``0 .. num_steps - 1``.

    Ho et al. 2020 (arXiv 2006.11239): ``alpha_bar_t = prod_{i <= t} (1 - beta_i)``,
    ``alpha^2 = alpha_bar``, ``s^2 = 1 - alpha_bar``. Time 0 has one step of noise, not
    none: sigma runs from 0.01 to 157 for the defaults, which are also DiT's. Between
    integers ``log sigma`` is linear in t, and beyond both ends it goes on at the
    slope of the last interval, so that ``time`` has an inverse at all levels > 0; a
    network has not seen those times. Rates are those of the interval to the right of t.

    Args:
        num_steps: length of the chain, at least 2.
        beta_start: first beta, > 0.
        beta_end: last beta, at least ``beta_start`` and < 1.

    Raises:
        ValueError: for values out of these ranges, and by methods for a concrete
            integer time outside of the chain.
    """

    num_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2

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
        """Time by interpolation in ``log sigma``, a float; ``-inf`` for sigma = 0."""
        log_sigma = jnp.log(as_levels(sigma))
        table = np.log(self.sigmas())
        levels = jnp.asarray(table, log_sigma.dtype)
        index = jnp.searchsorted(levels, log_sigma, side="right") - 1
        index = jnp.clip(index, 0, self.num_steps - 2)
        slope = jnp.asarray(np.diff(table), log_sigma.dtype)[index]
        return index.astype(log_sigma.dtype) + (log_sigma - levels[index]) / slope

    def nearest_step(self, sigma: ArrayLike) -> jax.Array:
        """The step nearest in ``log sigma``: int32, within ``0 .. num_steps - 1``."""
        step = jnp.clip(jnp.round(self.time(sigma)), 0, self.num_steps - 1)
        return step.astype(jnp.int32)


@functools.cache
def _ddpm_tables(
    num_steps: int, beta_start: float, beta_end: float
) -> tuple[np.ndarray, np.ndarray]:
    log_alpha_bar = np.cumsum(np.log1p(-np.linspace(beta_start, beta_end, num_steps)))
    tables = np.exp(log_alpha_bar), np.sqrt(np.expm1(-log_alpha_bar))
    for table in tables:
        table.setflags(write=False)  # it is shared by all callers
    return tables
