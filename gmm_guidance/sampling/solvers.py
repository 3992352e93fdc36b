"""Solvers of the sampling equation in the variance-exploding clock.

The probability-flow equation is ``dx/dsigma = (x - D(x, sigma)) / sigma`` (Karras et
al. 2022, arXiv 2206.00364, Eq. 4). A solver advances ``x`` from one noise level to the
next. It sees a denoiser and nothing else: guidance is already inside of it. A denoiser
may return ``Renoised``, a value whose noise is that of another prediction: first-order
steps and multistep solvers take it, solvers of several stages refuse it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from gmm_guidance.guidance.renoised import Guided, Renoised
from gmm_guidance.sampling.ancestral import Ancestral

Noise = Callable[[], jax.Array]


class Denoise(Protocol):
    """The denoiser as a solver sees it, with a state that is opaque to solvers."""

    @property
    def is_uniform(self) -> bool:
        """Whether ``evaluation`` may be traced, so that stages can share a program."""
        ...

    def __call__(
        self, x: jax.Array, sigma: jax.Array, state: Any, evaluation: Any
    ) -> tuple[Guided, Any]:
        """Denoise in the given evaluation of the step; the samples and next state."""
        ...


class Solver(Protocol):
    """One step of a solver, and what it carries from step to step."""

    def num_evaluations(self, is_final: bool) -> int:
        """Denoiser evaluations in a step; the final one leads to noise level 0."""
        ...

    def init(self, x: jax.Array) -> Any:
        """What is carried into the first step."""
        ...

    def step(
        self,
        denoise: Denoise,
        x: jax.Array,
        sigma: jax.Array,
        sigma_next: jax.Array,
        carry: Any,
        state: Any,
        noise: Noise,
        num_steps: int,
        is_final: bool,
    ) -> tuple[jax.Array, Any, Any]:
        """Advance ``x``; returns it with the new carry and the denoiser's state."""
        ...


@dataclasses.dataclass(frozen=True)
class Euler:
    """First order, one evaluation a step; in this clock it is DDIM."""

    def num_evaluations(self, is_final: bool) -> int:
        """One."""
        return 1

    def init(self, x: jax.Array) -> Any:
        """Nothing."""
        return ()

    def step(
        self, denoise, x, sigma, sigma_next, carry, state, noise, num_steps, is_final
    ):
        """``D + sigma_next / sigma (x - D)``: exact for a constant ``D``."""
        denoised, state = denoise(x, sigma, state, 0)
        return _euler(x, denoised, sigma, sigma_next), carry, state


@dataclasses.dataclass(frozen=True)
class Heun:
    """Second order, two evaluations a step, one in the last (EDM, Algorithm 1)."""

    def num_evaluations(self, is_final: bool) -> int:
        """Two, but one in the last step."""
        return 1 if is_final else 2

    def init(self, x: jax.Array) -> Any:
        """Nothing."""
        return ()

    def step(
        self, denoise, x, sigma, sigma_next, carry, state, noise, num_steps, is_final
    ):
        """Euler, then the mean of the slopes at both ends."""
        if is_final:
            denoised, state = denoise(x, sigma, state, 0)
            return _euler(x, _plain(denoised), sigma, sigma_next), carry, state
        levels = jnp.stack([sigma, sigma_next])

        def stage(k, loop):
            point, slopes, state = loop
            denoised, state = denoise(point, levels[k], state, k)
            slopes = slopes + (point - _plain(denoised)) / levels[k]
            return x + (sigma_next - sigma) * slopes / (k + 1), slopes, state

        loop: Any = (x, jnp.zeros_like(x), state)
        if denoise.is_uniform:  # one program for both stages halves the compilation
            loop = jax.lax.fori_loop(0, 2, stage, loop)
        else:
            loop = stage(1, stage(0, loop))
        return loop[0], carry, loop[2]


@dataclasses.dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++(2M): second-order multistep, one evaluation a step.

    Lu et al. 2022 (arXiv 2211.01095, Algorithm 2), in ``lambda = -log sigma``. The
    first and the last step are of first order. Of a ``Renoised`` value the correction
    extrapolates the prediction of the noise, as the code of the authors of CFG++ does;
    its first-order part is that of ``Euler``.
    """

    def num_evaluations(self, is_final: bool) -> int:
        """One."""
        return 1

    def init(self, x: jax.Array) -> Any:
        """The previous denoised samples and step in lambda: none yet."""
        return jnp.zeros_like(x), jnp.asarray(jnp.inf, x.dtype)

    def step(
        self, denoise, x, sigma, sigma_next, carry, state, noise, num_steps, is_final
    ):
        """Exponential integrator on a linear extrapolation of ``D`` in lambda."""
        previous, h_previous = carry
        guided, state = denoise(x, sigma, state, 0)
        denoised, renoise = _parts(guided)
        if is_final:
            return denoised, carry, state
        h = jnp.log(sigma / sigma_next)
        # The infinite step before the first makes this zero: first order.
        correction = h / (2.0 * h_previous) * (renoise - previous)
        extrapolated = denoised + correction
        if isinstance(guided, Renoised):
            guided = Renoised(extrapolated, renoise + correction)
        else:
            guided = extrapolated
        return _euler(x, guided, sigma, sigma_next), (renoise, h), state


@dataclasses.dataclass(frozen=True)
class EDMStochastic:
    """EDM's stochastic sampler: noise is added before each Heun step (Algorithm 2).

    Args:
        churn: S_churn >= 0, the total amount; 0 gives ``Heun``.
        sigma_min: S_tmin, no noise is added below.
        sigma_max: S_tmax, nor above.
        noise_scale: S_noise > 0, standard deviation of the added noise.

    Raises:
        ValueError: for a negative churn or a noise scale that is not positive.
    """

    churn: float = 40.0
    sigma_min: float = 0.05
    sigma_max: float = 50.0
    noise_scale: float = 1.003

    def __post_init__(self):
        if not (math.isfinite(self.churn) and self.churn >= 0):
            raise ValueError(f"churn must be finite and >= 0, got {self.churn}.")
        if not self.noise_scale > 0:
            raise ValueError(f"noise_scale must be > 0, got {self.noise_scale}.")

    def num_evaluations(self, is_final: bool) -> int:
        """Two, but one in the last step."""
        return 1 if is_final else 2

    def init(self, x: jax.Array) -> Any:
        """Nothing."""
        return ()

    def step(
        self, denoise, x, sigma, sigma_next, carry, state, noise, num_steps, is_final
    ):
        """Raise the noise level by gamma, then a Heun step down."""
        churned = (sigma >= self.sigma_min) & (sigma <= self.sigma_max)
        most = min(self.churn / num_steps, math.sqrt(2.0) - 1.0)
        gamma = jnp.where(churned, most, 0.0)
        raised = sigma * (1.0 + gamma)
        # The root of raised^2 - sigma^2, whose rounding would leave noise at gamma = 0.
        extra = sigma * jnp.sqrt(gamma * (2.0 + gamma))
        x = x + extra * self.noise_scale * noise()
        return Heun().step(
            denoise, x, raised, sigma_next, carry, state, noise, num_steps, is_final
        )


SOLVERS: dict[str, Solver] = {
    "euler": Euler(),
    "ddim": Euler(),
    "heun": Heun(),
    "dpmpp_2m": DPMSolverPP2M(),
    "edm_stochastic": EDMStochastic(),
    "ancestral": Ancestral(),
}


def as_solver(solver: str | Solver) -> Solver:
    """A solver from its name; solver objects pass through.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    if not isinstance(solver, str):
        return solver
    if solver not in SOLVERS:
        near = difflib.get_close_matches(solver, SOLVERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"solver must be one of {', '.join(SOLVERS)} or a Solver object, got "
            f"{solver!r}.{hint}"
        )
    return SOLVERS[solver]


def _euler(x, guided, sigma, sigma_next):
    denoised, renoise = _parts(guided)
    return denoised + (sigma_next / sigma) * (x - renoise)


def _parts(guided: Guided) -> tuple[jax.Array, jax.Array]:
    """The denoised value, and the prediction from which its noise is taken."""
    return guided if isinstance(guided, Renoised) else (guided, guided)


def _plain(guided: Guided) -> jax.Array:
    """The denoised value of a solver that knows no other noise than its own."""
    if isinstance(guided, Renoised):
        raise TypeError(
            "this guidance rule takes the noise from another prediction (CFGPlusPlus "
            'does), which Heun and EDMStochastic do not support; use "euler" or '
            '"dpmpp_2m".'
        )
    return guided
