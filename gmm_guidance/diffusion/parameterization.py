"""Every way a network may speak about a noise process, and the denoiser in it.

A network trained on any process is a denoiser ``(x, sigma, label) -> D``, the library's
one currency, after a change of variables. With ``x_t = alpha x0 + s noise``, ``D = E[x0
| x_t]`` and ``eps = (x_t - alpha D) / s``, it may predict

    x0         D
    eps        eps                                    Ho et al. 2020, arXiv 2006.11239
    v          alpha eps - s D                        Salimans & Ho 2022, 2202.00512
    velocity   E[dx_t/dt | x_t] = alpha' D + s' eps   Lipman et al. 2022, 2210.02747
    score      grad log p_t(x_t) = -eps / s           Song et al. 2021, 2011.13456

where ' is d/dt. All is computed, and returned, in float32 or better: differences of
large numbers are taken here.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gmm_guidance.diffusion.process import Process, as_floats

KINDS = ("x0", "eps", "v", "velocity", "score")


def to_denoised(
    process: Process, prediction: ArrayLike, x_t: ArrayLike, t: ArrayLike, kind: str
) -> jax.Array:
    """The denoised samples that a network's prediction amounts to.

    Singular, that is infinite or NaN: ``eps`` and ``score`` where ``alpha = 0`` (no
    data left, the flow's pure noise), and large errors of the network grow by ``sigma``
    near there; ``velocity`` where ``sigma`` stands still or ``s'`` is infinite (VP at
    ``t = 0``). ``x0`` and ``v`` never are.

    Args:
        process: the process of ``x_t``.
        prediction: what the network returned, the shape of ``x_t``.
        x_t: noisy samples in the process's own scale, ``[n, ...]``.
        t: the process's time, a scalar or ``[n]``.
        kind: ``"x0"``, ``"eps"``, ``"v"``, ``"velocity"`` or ``"score"``, see above.

    Returns:
        ``E[x0 | x_t]``, the shape of ``x_t``.

    Raises:
        ValueError: for an unknown kind, or shapes that do not fit.
    """
    _check_kind(kind)
    x, y = _pair(x_t, prediction, "prediction")
    alpha, std, alpha_rate, std_rate = _coefficients(process, x, t, kind)
    if kind == "eps":
        return (x - std * y) / alpha
    if kind == "v":
        return (alpha * x - std * y) / (alpha**2 + std**2)
    if kind == "velocity":
        return (std_rate * x - std * y) / (alpha * std_rate - std * alpha_rate)
    if kind == "score":
        return (x + std**2 * y) / alpha
    return y


def from_denoised(
    process: Process, denoised: ArrayLike, x_t: ArrayLike, t: ArrayLike, kind: str
) -> jax.Array:
    """The prediction that denoised samples amount to: the inverse of ``to_denoised``.

    All kinds but ``x0`` are singular where ``s = 0``: without noise there is nothing to
    tell it from.

    Args:
        process: the process of ``x_t``.
        denoised: ``E[x0 | x_t]``, the shape of ``x_t``.
        x_t: noisy samples in the process's own scale, ``[n, ...]``.
        t: the process's time, a scalar or ``[n]``.
        kind: ``"x0"``, ``"eps"``, ``"v"``, ``"velocity"`` or ``"score"``, see above.

    Returns:
        The prediction, the shape of ``x_t``.

    Raises:
        ValueError: for an unknown kind, or shapes that do not fit.
    """
    _check_kind(kind)
    x, denoised = _pair(x_t, denoised, "denoised")
    if kind == "x0":
        return denoised
    alpha, std, alpha_rate, std_rate = _coefficients(process, x, t, kind)
    eps = (x - alpha * denoised) / std
    if kind == "v":
        return alpha * eps - std * denoised
    if kind == "velocity":
        return alpha_rate * denoised + std_rate * eps
    return -eps / std if kind == "score" else eps


def normalise(
    process: Process, x_t: ArrayLike, t: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """From a process's own scale and clock to ``x = x0 + sigma * noise``.

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


def denormalise(
    process: Process, x: ArrayLike, sigma: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """From ``x = x0 + sigma * noise`` to a process's own scale and clock.

    Args:
        process: the process to go to.
        x: noisy samples ``[n, ...]``.
        sigma: noise level, a scalar or ``[n]``.

    Returns:
        ``x_t = alpha x``, the shape of ``x``, and the time ``t``, that of ``sigma``.

    Raises:
        ValueError: if ``sigma`` is neither a scalar nor ``[n]``, or negative.
    """
    x = as_floats(x)
    t = process.time(sigma)
    return x * _spread(process.alpha(t), x, "sigma"), t


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["model"],
    meta_fields=["process", "prediction"],
)
@dataclasses.dataclass(frozen=True)
class ProcessDenoiser:
    """A network in its native form as a denoiser ``(x, sigma, label) -> D``.

    The network sees what it was trained on, ``x_t = alpha x`` at the process's own
    time. Times of ``DDPM`` arrive as floats, between integers for other noise levels.

    Args:
        model: callable ``model(x_t, t, label) -> prediction`` with x_t ``[n, ...]``,
            t ``[n]``, label handed on as it came; the result has the shape of ``x_t``
            (drop channels of learned variances before). Its ``sample_shape`` and
            ``num_labels``, where it has them, are the denoiser's.
        process: the process it was trained with.
        prediction: ``"x0"``, ``"eps"``, ``"v"``, ``"velocity"`` or ``"score"``.

    Raises:
        ValueError: for an unknown prediction.
    """

    model: Any
    process: Process
    prediction: str

    def __post_init__(self):
        _check_kind(self.prediction)

    @property
    def sample_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample, if the model tells it."""
        return getattr(self.model, "sample_shape", None)

    @property
    def num_labels(self) -> int | None:
        """Number of classes, if the model tells it."""
        return getattr(self.model, "num_labels", None)

    def __call__(self, x: jax.Array, sigma: ArrayLike, label: Any) -> jax.Array:
        """Denoise ``x`` ``[n, ...]`` at ``sigma`` > 0, a scalar or ``[n]``."""
        x_t, t = denormalise(self.process, x, sigma)
        t = jnp.broadcast_to(t, x_t.shape[:1])
        prediction = self.model(x_t, t, label)
        # With the rounded t, not sigma: scale and noise must be those the network saw.
        return to_denoised(self.process, prediction, x_t, t, self.prediction)


def _coefficients(
    process: Process, x: jax.Array, t: ArrayLike, kind: str
) -> tuple[jax.Array, ...]:
    """Alpha, s, alpha', s', in the dtype of x and shaped to multiply it."""
    values = [process.alpha(t), process.noise_std(t)]
    if kind == "velocity":
        values += [process.alpha_rate(t), process.noise_std_rate(t)]
    else:  # not needed, and they may be infinite
        values += [jnp.zeros_like(values[0])] * 2
    return tuple(_spread(value, x, "t") for value in values)


def _spread(value: jax.Array, x: jax.Array, name: str) -> jax.Array:
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


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(
            f"unknown kind of prediction {kind!r}; choose one of {', '.join(KINDS)}."
        )
