"""The denoising loss, for any denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gmm_guidance._runtime.checks import as_labels, as_samples, check_key, check_real
from gmm_guidance.blocks.evaluate import check_denoiser, check_output
from gmm_guidance.blocks.process_stack import WrappedStack
from gmm_guidance.diffusion.denoiser import Denoiser

#: Weight of a noise level: a name, or a function of sigma ``[n]``.
Weight = Literal["edm", "epsilon", "x0"] | Callable[[jax.Array], jax.Array]


def denoising_loss(
    denoiser: Denoiser,
    key: jax.Array,
    samples: jax.Array,
    label: jax.Array | None = None,
    *,
    data_scale: float = 1.0,
    log_sigma_offset: float = -0.8,
    log_sigma_std: float = 1.6,
    weight: Weight = "edm",
    label_dropout: float = 0.0,
) -> jax.Array:
    """The weighted squared error of a denoiser on a batch of clean samples.

    ``mean w(sigma) (D(x0 + sigma noise, sigma, label) - x0)^2`` over samples and
    coordinates, with a noise level for each sample whose logarithm is normal (Karras et
    al. 2022, arXiv 2206.00364, Eq. 2 and Table 1). Its minimum is the posterior mean,
    whatever the weight.

    Args:
        denoiser: the denoiser, of noise levels ``[n]``.
        key: a JAX random key, which decides noise, levels and dropped labels.
        samples: clean samples ``[n, ...]``.
        label: integers ``[n]``, or ``None`` for no condition.
        data_scale: standard deviation s of the data, > 0.
        log_sigma_offset: mean of ``ln(sigma / s)``.
        log_sigma_std: its standard deviation, > 0.
        weight: ``"edm"``, ``(sigma^2 + s^2) / (sigma s)^2``, which gives each level
            equal weight at the start; ``"epsilon"``, ``1 / sigma^2``, the error of the
            predicted noise; ``"x0"``, 1; or a function of sigma ``[n]``.
        label_dropout: fraction of samples, in [0, 1), whose label is replaced by
            ``denoiser.num_labels``, "no condition", for classifier-free guidance.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: for values out of range, labels to drop of a denoiser without
            ``num_labels``, or an output that has not the shape of the samples.
        TypeError: for arguments of another kind.
    """
    check_key(key)
    check_denoiser(denoiser)
    samples = as_samples(samples, getattr(denoiser, "sample_shape", None), "samples")
    num_labels = getattr(denoiser, "num_labels", None)
    label = as_labels(label, samples.shape[:1], num_labels)
    for name, value in (("data_scale", data_scale), ("log_sigma_std", log_sigma_std)):
        if not isinstance(value, jax.core.Tracer) and not check_real(name, value) > 0:
            raise ValueError(f"{name} must be > 0, got {value}.")
    if not 0 <= label_dropout < 1:
        raise ValueError(f"label_dropout must be in [0, 1), got {label_dropout}.")
    sigma_key, noise_key, drop_key = jax.random.split(key, 3)
    n = samples.shape[0]
    sigma = log_normal_levels(
        sigma_key, n, data_scale, log_sigma_offset, log_sigma_std, samples.dtype
    )
    level = sigma.reshape(n, *(1,) * (samples.ndim - 1))
    noisy = samples + level * jax.random.normal(noise_key, samples.shape, samples.dtype)
    if label is not None and label_dropout:
        dropped = jax.random.bernoulli(drop_key, label_dropout, (n,))
        label = jnp.where(dropped, null_label(denoiser), label)
    model: Any = denoiser
    if isinstance(denoiser, WrappedStack):
        # A plain forward pass, where there is one: its gradient is cheaper.
        model = getattr(denoiser, "forward", denoiser)
    output = check_output(denoiser, model(noisy, sigma, label), noisy)
    error = (output[..., : samples.shape[-1]] - samples) ** 2
    if weight == "edm":
        weights = edm_weight(sigma, data_scale)
    elif weight == "epsilon":
        weights = 1.0 / sigma**2
    elif weight == "x0":
        weights = jnp.ones_like(sigma)
    elif callable(weight):
        weights = weight(sigma)
    else:
        raise ValueError(
            f"weight must be 'edm', 'epsilon', 'x0' or a function, got {weight!r}."
        )
    return jnp.mean(weights * error.reshape(n, -1).mean(axis=1))


def edm_weight(sigma: jax.Array, data_scale: float) -> jax.Array:
    """EDM's weight of the squared error of denoised samples, ``[n]``."""
    return (sigma**2 + data_scale**2) / (sigma * data_scale) ** 2


def log_normal_levels(
    key: jax.Array, n: int, data_scale: float, offset: float, std: float, dtype: Any
) -> jax.Array:
    """Noise levels ``[n]`` around the scale of the data."""
    return data_scale * jnp.exp(offset + std * jax.random.normal(key, (n,), dtype))


def null_label(denoiser: Any) -> int:
    """The label that means "no condition".

    Raises:
        ValueError: if the number of labels is not known.
    """
    num_labels = getattr(denoiser, "num_labels", None)
    if num_labels is None:
        raise ValueError(
            f"label_dropout replaces labels by num_labels, 'no condition', but "
            f"{type(denoiser).__name__} has no num_labels; give it one, or set "
            f"label_dropout=0."
        )
    if not getattr(denoiser, "null_label", True):
        raise ValueError(
            f"label_dropout replaces labels by 'no condition', but "
            f"{type(denoiser).__name__} has no null class; set label_dropout=0."
        )
    return num_labels
