"""Solvers of the sampling equation, in the noise level sigma.

The probability-flow equation is ``dx/dsigma = (x - D(x, sigma)) / sigma`` (Karras et
al. 2022, arXiv 2206.00364, Eq. 4). A solver advances ``x`` from one noise level to the
next. It sees only a denoiser, which contains the guidance. A denoiser may return
``Renoised``, a value whose noise is that of another prediction: ``Euler`` and
``DPMSolverPP2M`` support it, the others raise a ``TypeError``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from typing_extensions import override

from gmm_guidance._runtime.checks import shown
from gmm_guidance._runtime.hooks import shapes_of
from gmm_guidance.diffusion.denoiser import Guided, Renoised


class Step(NamedTuple):
    """One step of a run, from one noise level to the next.

    Attributes:
        sigma: noise level at the start, a scalar.
        sigma_next: noise level at the end; 0 in the final step.
        is_final: whether it is the last step of the run.
        num_steps: number of steps of the run.
        noise: fresh standard normal noise of the shape of ``x``, the same at each call.
    """

    sigma: jax.Array
    sigma_next: jax.Array
    is_final: bool
    num_steps: int
    noise: Callable[[], jax.Array]


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


@runtime_checkable
class Solver(Protocol):
    """Advances samples step by step. Solvers are hashable; they shape the program."""

    def num_evaluations(self, is_final: bool) -> int:
        """Number of denoiser evaluations in a step; the final one leads to sigma 0."""
        return 1

    def init(self, x: jax.Array) -> Any:
        """What is carried into the first step, a pytree of arrays; ``()`` for nothing.

        Args:
            x: initial noisy samples ``[n, ...]``.
        """
        return ()

    def step(
        self, denoise: Denoise, x: jax.Array, step: Step, carry: Any, state: Any
    ) -> tuple[jax.Array, Any, Any]:
        """Advance the samples by one step.

        Args:
            denoise: the guided denoiser.
            x: noisy samples ``[n, ...]`` at ``step.sigma``.
            step: noise levels and position of the step.
            carry: what the previous step carried.
            state: state of the denoiser.

        Returns:
            Samples at ``step.sigma_next``, the new carry, and the denoiser's state.
        """
        ...


def run_step(
    solver: Solver, denoise: Denoise, x: jax.Array, step: Step, carry: Any, state: Any
) -> tuple[jax.Array, Any, Any]:
    """A step of a solver.

    Raises:
        TypeError: if ``step`` does not return samples, carry and state like those that
            it was given.
    """
    hook = f"{type(solver).__name__}.step"
    result = solver.step(denoise, x, step, carry, state)
    if not isinstance(result, tuple) or len(result) != 3:
        raise TypeError(
            f"{hook} must return the tuple (samples, carry, state), got "
            f"{shapes_of(result)}. Return the state that denoise returned last."
        )
    for name, before, after in zip(
        ("samples", "carry", "state"), (x, carry, state), result, strict=True
    ):
        if shapes_of(before) != shapes_of(after):
            raise TypeError(
                f"{hook} must return the {name} in the structure, shapes and types in "
                f"which they were given, {shapes_of(before)}, got {shapes_of(after)}."
            )
    return result


@dataclasses.dataclass(frozen=True)
class Euler(Solver):
    """First order, one evaluation a step: DDIM."""

    @override
    def step(self, denoise, x, step, carry, state):
        denoised, state = denoise(x, step.sigma, state, 0)
        return _euler(x, denoised, step), carry, state


@dataclasses.dataclass(frozen=True)
class Heun(Solver):
    """Second order, two evaluations a step, one in the last (EDM, Algorithm 1)."""

    @override
    def num_evaluations(self, is_final: bool) -> int:
        return 1 if is_final else 2

    @override
    def step(self, denoise, x, step, carry, state):
        if step.is_final:
            denoised, state = denoise(x, step.sigma, state, 0)
            return _euler(x, _plain(denoised), step), carry, state
        levels = jnp.stack([step.sigma, step.sigma_next])

        def stage(k, loop):
            point, slopes, state = loop
            denoised, state = denoise(point, levels[k], state, k)
            slopes = slopes + (point - _plain(denoised)) / levels[k]
            # Euler at first, then the mean of the slopes at both ends.
            span = step.sigma_next - step.sigma
            return x + span * slopes / (k + 1), slopes, state

        loop: Any = (x, jnp.zeros_like(x), state)
        if denoise.is_uniform:  # one program for both stages halves the compilation
            loop = jax.lax.fori_loop(0, 2, stage, loop)
        else:
            loop = stage(1, stage(0, loop))
        return loop[0], carry, loop[2]


@dataclasses.dataclass(frozen=True)
class DPMSolverPP2M(Solver):
    """DPM-Solver++(2M): second-order multistep, one evaluation a step.

    Lu et al. 2022 (arXiv 2211.01095, Algorithm 2), in ``lambda = -log sigma``. The
    first and the last step are of first order. For a ``Renoised`` value the correction
    extrapolates the prediction from which the noise is taken, as the code of the
    authors of CFG++ does; the first-order part is that of ``Euler``.
    """

    @override
    def init(self, x: jax.Array) -> Any:
        # The previous denoised samples and step in lambda: none yet.
        return jnp.zeros_like(x), jnp.asarray(jnp.inf, x.dtype)

    @override
    def step(self, denoise, x, step, carry, state):
        previous, h_previous = carry
        guided, state = denoise(x, step.sigma, state, 0)
        denoised, renoise = _parts(guided)
        if step.is_final:
            return denoised, carry, state
        # Exponential integrator on a linear extrapolation of D in lambda.
        h = jnp.log(step.sigma / step.sigma_next)
        # The infinite step before the first makes this zero: first order.
        correction = h / (2.0 * h_previous) * (renoise - previous)
        extrapolated = denoised + correction
        if isinstance(guided, Renoised):
            guided = Renoised(extrapolated, renoise + correction)
        else:
            guided = extrapolated
        return _euler(x, guided, step), (renoise, h), state


@dataclasses.dataclass(frozen=True)
class UniPC(Solver):
    """UniPC of second order (B2): DPM-Solver++(2M) and a corrector, one evaluation.

    Zhao et al. 2023 (arXiv 2302.04867, Algorithms 5 and 6, data prediction, ``B(h) =
    e^h - 1``), the solver of Wan. The denoiser is evaluated at the predicted samples;
    its value first corrects them, which adds an order, and then predicts the next ones.
    The first step is of first order, the last returns its denoised samples. A
    trajectory holds the predicted samples, before their correction.

    Raises:
        TypeError: if a rule takes the noise from another prediction (``CFGPlusPlus``).
    """

    @override
    def init(self, x: jax.Array) -> Any:
        none = jnp.zeros_like(x)
        level = jnp.ones((), x.dtype)
        # Corrected samples, two denoised ones and their levels, the number of steps.
        return none, (none, none), (level, level), jnp.int32(0)

    @override
    def step(self, denoise, x, step, carry, state):
        corrected, (before, last), (sigma_before, sigma_last), count = carry
        sigma = step.sigma
        denoised, state = denoise(x, sigma, state, 0)
        denoised = _plain(denoised)
        if step.is_final:
            return denoised, carry, state
        # Levels that are not known yet: any others, whose terms are left out.
        sigma_last = jnp.where(count >= 1, sigma_last, 2.0 * sigma)
        sigma_before = jnp.where(count >= 2, sigma_before, 4.0 * sigma)
        ratio = sigma / sigma_last
        h = -jnp.log(ratio)
        h_before = jnp.log(sigma_before / sigma_last)
        slope = (last - before) * (h / h_before)
        rho_before, rho = _unipc_weights(h, h_before)
        rho_before = jnp.where(count >= 2, rho_before, 0.0)
        rho = jnp.where(count >= 2, rho, 0.5)
        change = rho_before * slope + rho * (denoised - last)
        drift = ratio * corrected + (1.0 - ratio) * (last + change)
        corrected = jnp.where(count >= 1, drift, x)
        # The predictor: DPM-Solver++(2M), from the corrected samples.
        h_next = jnp.log(sigma / step.sigma_next)
        correction = (denoised - last) * (h_next / (2.0 * h))
        guided = denoised + jnp.where(count >= 1, correction, 0.0)
        carry = corrected, (last, denoised), (sigma_last, sigma), count + 1
        return _euler(corrected, guided, step), carry, state


def _unipc_weights(h: jax.Array, h_before: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights of the corrector's older and newer difference (Eq. 5, order 2).

    Args:
        h: step in lambda, > 0.
        h_before: the step before it, > 0.
    """
    # Integrals of the exponential, (1 - e^-h) / h and its two remainders. The series
    # serves where subtracting nearly equal numbers would lose all digits.
    series = sum((-h) ** k / math.factorial(k + 3) for k in range(10))
    first = -jnp.expm1(-h) / h
    direct = (0.5 - (1.0 - first) / h) / h
    third = jnp.where(h < 1.0, series, direct)
    second = 0.5 - h * third
    first = 1.0 - h * second
    b1, b2 = second / first, 2.0 * third / first
    rho_before = (b1 - b2) / (1.0 + h_before / h)
    return rho_before, b1 - rho_before


@dataclasses.dataclass(frozen=True)
class EDMStochastic(Solver):
    """EDM's stochastic sampler: noise is added before each Heun step (Algorithm 2).

    Args:
        churn: S_churn >= 0, the total amount of noise added; 0 gives ``Heun``.
        sigma_min: S_tmin, the lowest noise level at which noise is added.
        sigma_max: S_tmax, the highest.
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

    @override
    def num_evaluations(self, is_final: bool) -> int:
        return 1 if is_final else 2

    @override
    def step(self, denoise, x, step, carry, state):
        sigma = step.sigma
        churned = (sigma >= self.sigma_min) & (sigma <= self.sigma_max)
        most = min(self.churn / step.num_steps, math.sqrt(2.0) - 1.0)
        gamma = jnp.where(churned, most, 0.0)
        raised = sigma * (1.0 + gamma)
        # The root of raised^2 - sigma^2, whose rounding would leave noise at gamma = 0.
        extra = sigma * jnp.sqrt(gamma * (2.0 + gamma))
        x = x + extra * self.noise_scale * step.noise()
        return Heun().step(denoise, x, step._replace(sigma=raised), carry, state)


@dataclasses.dataclass(frozen=True)
class Ancestral(Solver):
    """DDPM's ancestral sampler: the posterior mean of the noising chain, and noise.

    Ho et al. 2020 (arXiv 2006.11239, Eqs. 6 and 7), for any two noise levels of a
    variance-preserving chain, in sigma. First order, one evaluation a step; no noise is
    added in the last step.

    Args:
        variance: ``"posterior"``, that of ``q(x_{t-1} | x_t, x0)``, the smallest;
            ``"beta"``, that of the forward step, the largest; or ``"learned"``, an
            interpolation of their logarithms (Nichol & Dhariwal 2021, arXiv 2102.09672,
            Eq. 15) by a ``v`` in [-1, 1], which the denoiser returns in as many further
            channels (last axis) as the sample has. These must not be guided, see
            ``GuidedChannels``.

    Raises:
        ValueError: for an unknown variance; and, in a sampling run, for a denoiser
            without the channels of a learned variance.
        TypeError: if a rule takes the noise from another prediction (``CFGPlusPlus``).
    """

    variance: Literal["posterior", "beta", "learned"] = "posterior"

    def __post_init__(self):
        if self.variance not in ("posterior", "beta", "learned"):
            raise ValueError(
                f"variance must be 'posterior', 'beta' or 'learned', got "
                f"{self.variance!r}."
            )

    @override
    def step(self, denoise, x, step, carry, state):
        sigma, sigma_next = step.sigma, step.sigma_next
        output, state = denoise(x, sigma, state, 0)
        if isinstance(output, Renoised):
            raise TypeError(
                "this guidance rule takes the noise from another prediction "
                '(CFGPlusPlus does), but Ancestral draws its own; use "euler".'
            )
        denoised, v = self._split(output, x)
        if step.is_final:
            return denoised, carry, state
        ratio = (sigma_next / sigma) ** 2
        mean = denoised + ratio * (x - denoised)
        # The steps of x_t, divided by alpha at the next level.
        smallest = sigma_next**2 * (1.0 - ratio)
        if self.variance == "posterior":
            std = jnp.sqrt(smallest)
        else:
            ahead = sigma**2 - sigma_next**2
            largest = ahead * (1.0 + sigma_next**2) / (1.0 + sigma**2)
            if self.variance == "beta":
                std = jnp.sqrt(largest)
            else:
                above = (v + 1.0) / 2.0
                low, high = jnp.log(smallest), jnp.log(largest)
                std = jnp.exp(0.5 * (low + above * (high - low)))
        return mean + std * step.noise(), carry, state

    def _split(self, output: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        channels = x.shape[-1]
        wanted = 2 * channels if self.variance == "learned" else channels
        if output.shape[-1] != wanted:
            raise ValueError(
                f"variance={self.variance!r} needs a denoiser that returns {wanted} "
                f"channels for samples of {channels}, got {output.shape[-1]}."
            )
        return output[..., :channels], output[..., channels:]


@dataclasses.dataclass(frozen=True)
class NoiseFree(Solver):
    """A solver that must not add noise, so that its output is a map of its start."""

    inner: Solver

    @override
    def num_evaluations(self, is_final: bool) -> int:
        return self.inner.num_evaluations(is_final)

    @override
    def init(self, x: jax.Array) -> Any:
        return self.inner.init(x)

    @override
    def step(self, denoise, x, step, carry, state):
        silent = step._replace(noise=self._no_noise)
        return self.inner.step(denoise, x, silent, carry, state)

    def _no_noise(self) -> jax.Array:
        raise ValueError(
            f"{type(self.inner).__name__} adds noise, so that its output is no map of "
            f'its start; use "euler" or "heun".'
        )


SOLVERS: dict[str, Solver] = {
    "euler": Euler(),
    "ddim": Euler(),
    "heun": Heun(),
    "dpmpp_2m": DPMSolverPP2M(),
    "unipc": UniPC(),
    "edm_stochastic": EDMStochastic(),
    "ancestral": Ancestral(),
}


def as_solver(solver: str | Solver) -> Solver:
    """A solver from its name; solver objects pass through.

    Raises:
        TypeError: for anything but a name or a solver.
        ValueError: for an unknown name, with the nearest known one.
    """
    if isinstance(solver, type) or not isinstance(solver, str | Solver):
        remedy = f" Write {solver.__name__}()." if isinstance(solver, type) else ""
        raise TypeError(
            f"solver must be one of {', '.join(SOLVERS)} or a Solver object, got "
            f"{shown(solver)}.{remedy}"
        )
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


def _euler(x: jax.Array, guided: Guided, step: Step) -> jax.Array:
    """``D + sigma_next / sigma (x - D)``: exact for a constant ``D``."""
    denoised, renoise = _parts(guided)
    return denoised + (step.sigma_next / step.sigma) * (x - renoise)


def _parts(guided: Guided) -> tuple[jax.Array, jax.Array]:
    """The denoised value, and the prediction from which its noise is taken."""
    return guided if isinstance(guided, Renoised) else (guided, guided)


def _plain(guided: Guided) -> jax.Array:
    """The denoised value of a solver that knows no other noise than its own."""
    if isinstance(guided, Renoised):
        raise TypeError(
            "this guidance rule takes the noise from another prediction (CFGPlusPlus "
            "does), which Heun, EDMStochastic and UniPC do not support; use "
            '"euler" or "dpmpp_2m".'
        )
    return guided
