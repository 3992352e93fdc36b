"""Conversions between the predictions of networks and the denoised samples.

A network trained on any process is a denoiser ``(x, sigma, label) -> D``, the library's
one currency, after a change of variables. With ``x_t = alpha x0 + s noise``, ``D = E[x0
| x_t]`` and ``epsilon = (x_t - alpha D) / s``, it may predict

    x0         D
    epsilon    epsilon                                    Ho et al. 2020, 2006.11239
    v          alpha epsilon - s D                        Salimans & Ho 2022, 2202.00512
    velocity   E[dx_t/dt | x_t] = alpha' D + s' epsilon   Lipman et al. 2022, 2210.02747
    score      grad log p_t(x_t) = -epsilon / s           Song et al. 2021, 2011.13456

where ' is d/dt, and ``x = x_t / alpha``. All is computed, and returned, in float32 or
better: differences of large numbers are taken here.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_floats
from gmm_guidance.diffusion.process import Process

PredictionName = Literal["x0", "epsilon", "v", "velocity", "score"]
PREDICTIONS: tuple[str, ...] = get_args(PredictionName)


@dataclasses.dataclass(frozen=True)
class ScaledPrediction:
    """The output ``F`` of a network for data of mean m and standard deviation S.

    ``D = m + a (x - m) + b F``, where F is of order one at every noise level:

        edm       a = S^2 / (sigma^2 + S^2)   b = sigma S / sqrt(sigma^2 + S^2)
        epsilon   a = 1                       b = -sigma
        velocity  a = S / (S + sigma)         b = -sigma S / (S + sigma)
        x0        a = 0                       b = S

    ``"edm"`` is Karras et al. 2022 (arXiv 2206.00364, Eq. 7 and Table 1); for data of
    unit variance, F is minus the v-prediction. ``"velocity"`` is that of the straight
    path between noise and ``(x0 - m) / S``, data at time 0.

    Args:
        kind: ``"edm"``, ``"epsilon"``, ``"velocity"`` or ``"x0"``.
        scale: standard deviation S of the data, > 0.
        mean: mean of the data, a number for each entry of the last axis of a sample;
            the origin if empty.

    Raises:
        ValueError: for an unknown kind, or a scale that is not finite and positive.
    """

    kind: Literal["edm", "epsilon", "velocity", "x0"] = "edm"
    scale: float = 1.0
    mean: tuple[float, ...] = ()

    def __post_init__(self):
        if self.kind not in ("edm", "epsilon", "velocity", "x0"):
            raise ValueError(
                f"the prediction must be 'edm', 'epsilon', 'velocity' or 'x0', got "
                f"{self.kind!r}."
            )
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be finite and above 0, got {self.scale}.")

    def denoised(self, output: jax.Array, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """``D`` of the network's output; sigma broadcasts to x."""
        a, b, mean = self._terms(x, sigma)
        return mean + a * (x - mean) + b * output

    def output(self, denoised: jax.Array, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """The network's output that amounts to ``D``: the inverse of ``denoised``."""
        a, b, mean = self._terms(x, sigma)
        return (denoised - mean - a * (x - mean)) / b

    def _terms(self, x, sigma) -> tuple[jax.Array, jax.Array, jax.Array]:
        mean = jnp.asarray(self.mean or (0.0,) * x.shape[-1], x.dtype)
        a, b = self.coefficients(sigma)
        return a, b, mean[(None,) * (x.ndim - 1)]

    def coefficients(self, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``a`` and ``b`` at noise levels > 0, the shape of sigma."""
        scale = self.scale
        if self.kind == "edm":
            total = sigma**2 + scale**2
            return scale**2 / total, sigma * scale / jnp.sqrt(total)
        if self.kind == "epsilon":
            return jnp.ones_like(sigma), -sigma
        if self.kind == "velocity":
            a = scale / (scale + sigma)
            return a, -sigma * a
        return jnp.zeros_like(sigma), jnp.full_like(sigma, scale)


Prediction = PredictionName | ScaledPrediction


def to_denoised(
    process: Process,
    prediction: ArrayLike,
    x_t: ArrayLike,
    t: ArrayLike,
    kind: Prediction,
) -> jax.Array:
    """The denoised samples that a network's prediction amounts to.

    Singular, that is infinite or NaN: ``epsilon`` and ``score`` where ``alpha = 0``
    (no data left, the flow's pure noise), and large errors of the network grow by
    ``sigma`` near there; ``velocity`` where ``sigma`` is stationary or ``s'`` is
    infinite (VP at ``t = 0``). ``x0`` and ``v`` never are.

    Args:
        process: the process of ``x_t``.
        prediction: what the network returned, the shape of ``x_t``.
        x_t: noisy samples in the process's own scale, ``[n, ...]``.
        t: the process's time, a scalar or ``[n]``.
        kind: ``"x0"``, ``"epsilon"``, ``"v"``, ``"velocity"``, ``"score"`` or an
            ``ScaledPrediction``, see above.

    Returns:
        ``E[x0 | x_t]``, the shape of ``x_t``.

    Raises:
        ValueError: for an unknown kind, or shapes that do not fit.
    """
    check_prediction(kind)
    x, y = _pair(x_t, prediction, "prediction")
    if isinstance(kind, ScaledPrediction):
        x, sigma = to_sigma_space(process, x, t)
        return kind.denoised(y, x, _spread(sigma, x, "t"))
    alpha, std = (_spread(a, x, "t") for a in (process.alpha(t), process.noise_std(t)))
    return _solve(kind, y, x, alpha, std, _rates(process, x, t, kind))


def from_denoised(
    process: Process,
    denoised: ArrayLike,
    x_t: ArrayLike,
    t: ArrayLike,
    kind: Prediction,
) -> jax.Array:
    """The prediction that denoised samples amount to: the inverse of ``to_denoised``.

    All kinds but ``x0`` are singular where ``s = 0``: without noise there is nothing to
    tell it from.

    Args:
        process: the process of ``x_t``.
        denoised: ``E[x0 | x_t]``, the shape of ``x_t``.
        x_t: noisy samples in the process's own scale, ``[n, ...]``.
        t: the process's time, a scalar or ``[n]``.
        kind: ``"x0"``, ``"epsilon"``, ``"v"``, ``"velocity"``, ``"score"`` or an
            ``ScaledPrediction``, see above.

    Returns:
        The prediction, the shape of ``x_t``.

    Raises:
        ValueError: for an unknown kind, or shapes that do not fit.
    """
    check_prediction(kind)
    x, denoised = _pair(x_t, denoised, "denoised")
    if kind == "x0":
        return denoised
    if isinstance(kind, ScaledPrediction):
        x, sigma = to_sigma_space(process, x, t)
        return kind.output(denoised, x, _spread(sigma, x, "t"))
    alpha, std = (_spread(a, x, "t") for a in (process.alpha(t), process.noise_std(t)))
    epsilon = (x - alpha * denoised) / std
    return _mix(kind, denoised, epsilon, alpha, std, _rates(process, x, t, kind))


def training_target(
    process: Process,
    clean: ArrayLike,
    noise: ArrayLike,
    sigma: ArrayLike,
    kind: Prediction,
) -> jax.Array:
    """What a network is trained to predict at ``x = clean + sigma * noise``.

    Args:
        process: the process that the network is trained with.
        clean: samples ``[n, ...]``.
        noise: standard normal noise, the shape of ``clean``.
        sigma: noise level > 0, a scalar or ``[n]``.
        kind: as in ``to_denoised``.

    Returns:
        The target, the shape of ``clean``.

    Raises:
        ValueError: for an unknown kind, or shapes that do not fit.
    """
    check_prediction(kind)
    clean, noise = _pair(clean, noise, "noise")
    level = _spread(as_floats(sigma), clean, "sigma")
    if isinstance(kind, ScaledPrediction):
        return kind.output(clean, clean + level * noise, level)
    alpha = process.noisy_input(jnp.ones_like(level), level)
    rates = _rates(process, clean, process.time(sigma), kind)
    return _mix(kind, clean, noise, alpha, alpha * level, rates)


def denoised_at_sigma(
    process: Process,
    prediction: ArrayLike,
    x: ArrayLike,
    sigma: ArrayLike,
    kind: Prediction,
) -> jax.Array:
    """``to_denoised`` for ``x = x0 + sigma * noise``: what a denoiser returns.

    The coefficients are those of sigma itself, as are those of the network's input in
    ``from_sigma_space``: the time rounds, to an integer where the process says so.

    Args:
        process: the process that the network was trained with.
        prediction: what the network returned, the shape of ``x``.
        x: noisy samples ``[n, ...]``.
        sigma: noise level > 0, a scalar or ``[n]``.
        kind: as in ``to_denoised``.

    Returns:
        ``E[x0 | x]``, the shape of ``x``.

    Raises:
        ValueError: for an unknown kind, or shapes that do not fit.
    """
    check_prediction(kind)
    x, y = _pair(x, prediction, "prediction")
    level = _spread(as_floats(sigma), x, "sigma")
    if isinstance(kind, ScaledPrediction):
        return kind.denoised(y, x, level)
    if kind in ("v", "score"):  # in units of x_t, but x0 and epsilon in none
        alpha = process.noisy_input(jnp.ones_like(level), level)
        y = y / alpha if kind == "v" else y * alpha
    rates = _rates(process, x, process.time(sigma), kind)
    return _solve(kind, y, x, jnp.ones_like(level), level, rates)


def to_sigma_space(
    process: Process, x_t: ArrayLike, t: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """From a process's own scale and time to ``x = x0 + sigma * noise``.

    Singular where ``alpha = 0``.

    Args:
        process: the process of ``x_t``.
        x_t: noisy samples ``[n, ...]``.
        t: the process's time, a scalar or ``[n]``.

    Returns:
        ``x_t / alpha``, the shape of ``x_t``, and ``sigma``, the shape of ``t``.

    Raises:
        ValueError: if ``t`` is neither a scalar nor ``[n]``.
    """
    x = as_floats(x_t)
    return x / _spread(process.alpha(t), x, "t"), process.sigma(t)


def from_sigma_space(
    process: Process, x: ArrayLike, sigma: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """From ``x = x0 + sigma * noise`` to a process's own scale and time.

    Args:
        process: the process to convert to.
        x: noisy samples ``[n, ...]``.
        sigma: noise level, a scalar or ``[n]``.

    Returns:
        ``x_t = alpha x``, the shape of ``x``, and the time ``t``, that of ``sigma``.

    Raises:
        ValueError: if ``sigma`` is neither a scalar nor ``[n]``, or negative.
    """
    x = as_floats(x)
    t = process.time(sigma)
    return process.noisy_input(x, _spread(as_floats(sigma), x, "sigma")), t


def check_prediction(kind: Any) -> None:
    """Raise ``ValueError`` unless ``kind`` is a prediction that is known here."""
    if isinstance(kind, ScaledPrediction) or kind in PREDICTIONS:
        return
    raise ValueError(
        f"unknown kind of prediction {kind!r}; choose one of {', '.join(PREDICTIONS)} "
        f"or, for EDM's F, a ScaledPrediction with the data's scale and mean."
    )


def _mix(kind, denoised, epsilon, alpha, std, rates) -> jax.Array:
    """The prediction, a linear combination of the sample and the noise."""
    if kind == "epsilon":
        return epsilon
    if kind == "v":
        return alpha * epsilon - std * denoised
    if kind == "velocity":
        alpha_rate, std_rate = rates
        return alpha_rate * denoised + std_rate * epsilon
    return -epsilon / std if kind == "score" else denoised


def _solve(kind, y, x, alpha, std, rates) -> jax.Array:
    """``D`` from a prediction y, where ``x = alpha x0 + std noise``."""
    if kind == "epsilon":
        return (x - std * y) / alpha
    if kind == "v":
        return (alpha * x - std * y) / (alpha**2 + std**2)
    if kind == "velocity":
        alpha_rate, std_rate = rates
        return (std_rate * x - std * y) / (alpha * std_rate - std * alpha_rate)
    if kind == "score":
        return (x + std**2 * y) / alpha
    return y


def _rates(process, x, t, kind) -> tuple[jax.Array, ...]:
    """Alpha' and s' where they are needed: elsewhere they may be infinite."""
    if kind != "velocity":
        return ()
    rates = process.alpha_rate(t), process.noise_std_rate(t)
    return tuple(_spread(value, x, "t") for value in rates)


def _spread(value: jax.Array, x: jax.Array, name: str) -> jax.Array:
    """A scalar or ``[n]`` in the dtype of x, shaped to multiply it."""
    if value.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{name} must be a scalar or have one value for each sample, got shape "
            f"{value.shape} for samples of shape {x.shape}."
        )
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim)).astype(x.dtype)


def _pair(x_t: ArrayLike, other: ArrayLike, name: str) -> tuple[jax.Array, jax.Array]:
    x = as_floats(x_t)
    if jnp.shape(other) != x.shape:
        raise ValueError(
            f"{name} must have the shape of x_t, {x.shape}, got {jnp.shape(other)}; "
            f"networks with learned variances return extra channels, drop those first."
        )
    return x, jnp.asarray(other, x.dtype)
