"""CFG repaired by weights: particles that sample the tilted distribution.

The densities that CFG's score belongs to, ``h = p(x | label)^scale p(x)^(1 - scale)``
at each noise level, are no diffusion's (see ``fokker_planck_defect``). Particles of the
reverse diffusion with this score, weighted by the exponential of the accumulated
defect, do follow them, down to the clean tilted distribution (Skreta et al. 2025, arXiv
2503.02819). Resampling keeps the weights even.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import check_count, check_key
from gmm_guidance._runtime.pytree import Static, join, split
from gmm_guidance.blocks.evaluate import Pass, check_denoiser, evaluate_passes
from gmm_guidance.diffusion.denoiser import Denoiser
from gmm_guidance.diffusion.schedule import Karras, Schedule, levels_of
from gmm_guidance.guidance.scale import check_scale
from gmm_guidance.mixture.exact_denoiser import ExactDenoiser
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.mixture.parameters import check_label


class WeightedSamples(NamedTuple):
    """Particles of ``repaired_sample``.

    Attributes:
        samples: clean samples ``[n, d]``, which follow the tilted distribution when
            weighted.
        log_weights: normalized log weights since the last resampling, ``[n]``.
        ess: effective sample size over the number of particles before the resampling of
            each step, in (0, 1], ``[steps]``.
        num_resamplings: number of resampling steps.
    """

    samples: jax.Array
    log_weights: jax.Array
    ess: jax.Array
    num_resamplings: jax.Array

    @property
    def weights(self) -> jax.Array:
        """Weights ``[n]``, summing to one."""
        return jnp.exp(self.log_weights)

    def resample(self, key: jax.Array) -> jax.Array:
        """The same number of samples with equal weights, some repeated: ``[n, d]``."""
        return self.samples[_systematic(key, self.log_weights)]


def repaired_sample(
    key: jax.Array,
    denoiser: GaussianMixture | Denoiser,
    label: int,
    scale: ArrayLike,
    num_samples: int,
    schedule: Schedule = Karras(128),
    ess_threshold: float = 0.5,
) -> WeightedSamples:
    """Sample ``p(x) p(label | x)^scale`` by CFG's reverse diffusion with weights.

    A step holds the denoiser values fixed, at the mean of both ends, and is exact
    otherwise (the bridge of a Brownian motion to that value); the weights use the
    trapezoidal rule in log sigma. Both are of second order. For two overlapping classes
    N(+-1, 1) at scale 4 the bias of mean and deviation is about 3 % with 64 steps and
    below 1 % with the default, 128. Two evaluations of both denoisers in a step, one in
    the last.

    Where classes overlap and the scale is large, a few particles carry most of the
    weight: the effective sample size is then optimistic, and ``TiltedTarget.sample``
    the better reference.

    Args:
        key: a JAX random key.
        denoiser: the mixture, or any denoiser of vectors. A mixture weights the initial
            particles by its noised tilted distribution; otherwise weights start equal.
        label: the class.
        scale: the total CFG scale, finite; 1 gives ``p(x | label)``.
        num_samples: number of particles, at least 2.
        schedule: noise levels; the start is ``N(0, sigma_max^2)``.
        ess_threshold: resample when ``ess`` falls below it; 0 never, 1 at every step.

    Returns:
        Weighted samples.

    Raises:
        ValueError: for values out of these ranges, or a denoiser without sample shape.
    """
    check_key(key)
    check_scale("scale", scale)
    num_samples = check_count("num_samples", num_samples, 2)
    levels_of(schedule)
    if not 0.0 <= ess_threshold <= 1.0:
        raise ValueError(f"ess_threshold must be in 0..1, got {ess_threshold}.")
    if isinstance(denoiser, ExactDenoiser):
        denoiser = denoiser.mixture
    mixture = denoiser if isinstance(denoiser, GaussianMixture) else None
    if mixture is not None:
        check_label(mixture.parameters, label)
        denoiser = ExactDenoiser(mixture)
    check_denoiser(denoiser)
    shape = getattr(denoiser, "sample_shape", None)
    if shape is None or len(shape) != 1:
        raise ValueError(
            f"{type(denoiser).__name__} must have a sample_shape (d,), got {shape}."
        )
    dtype = jnp.result_type(float)
    sigmas = jnp.asarray(schedule.sigmas(), dtype)
    scale = jnp.asarray(scale, dtype)
    start_key, key = jax.random.split(key)
    x = sigmas[0] * jax.random.normal(start_key, (num_samples, shape[0]), dtype)
    log_weights = jnp.zeros(num_samples, dtype)
    if mixture is not None:
        log_weights = _start_weights(mixture, x, sigmas[0], label, scale)
    arrays, static = split(denoiser)
    labels = jnp.full((num_samples,), label, jnp.int32)
    threshold = jnp.asarray(ess_threshold, dtype)
    return _run(static, arrays, key, x, log_weights, sigmas, labels, scale, threshold)


def _start_weights(mixture, x, sigma, label, scale) -> jax.Array:
    """Log ratio of ``h`` at the highest noise level to the Gaussian start, ``[n]``."""
    conditional = mixture.log_prob(x, sigma, label)
    log_h = scale * conditional + (1.0 - scale) * mixture.log_prob(x, sigma)
    return log_h + 0.5 * jnp.sum((x / sigma) ** 2, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _run(
    static: Static,
    arrays: list[Any],
    key: jax.Array,
    x: jax.Array,
    log_weights: jax.Array,
    sigmas: jax.Array,
    labels: jax.Array,
    scale: jax.Array,
    threshold: jax.Array,
) -> WeightedSamples:
    denoiser = join(arrays, static)
    passes = (Pass(None), Pass(labels))

    def guided(x, sigma):
        """Guided value, and the defect per unit of variance times the variance."""
        uncond, cond = evaluate_passes(denoiser, x, sigma, passes)
        push = cond - uncond
        rate = 0.5 * scale * (scale - 1.0) * jnp.sum(push**2, axis=1) / sigma**2
        return cond + (scale - 1.0) * push, rate

    def move(x, denoised, noise, sigma, sigma_next):
        ratio = (sigma_next / sigma) ** 2
        spread = sigma_next * jnp.sqrt(1.0 - ratio)
        return denoised + ratio * (x - denoised) + spread * noise

    def step(loop, inputs):
        x, log_weights, count = loop
        i, sigma, sigma_next = inputs
        noise_key, resample_key = jax.random.split(jax.random.fold_in(key, i))
        noise = jax.random.normal(noise_key, x.shape, x.dtype)
        denoised, rate = guided(x, sigma)
        ahead = move(x, denoised, noise, sigma, sigma_next)
        denoised_next, rate_next = guided(ahead, sigma_next)
        x = move(x, 0.5 * (denoised + denoised_next), noise, sigma, sigma_next)
        # Over log(sigma^2), whence the factor: 1/2 of the rule and 2 of the square.
        log_weights += (rate + rate_next) * jnp.log(sigma / sigma_next)
        log_weights -= jax.nn.logsumexp(log_weights)
        ess = jnp.exp(-jax.nn.logsumexp(2.0 * log_weights)) / x.shape[0]

        def resampled(x, log_weights):
            chosen = _systematic(resample_key, log_weights)
            return x[chosen], jnp.full_like(log_weights, -jnp.log(1.0 * x.shape[0]))

        low = ess < threshold
        x, log_weights = jax.lax.cond(
            low, resampled, lambda x, log_weights: (x, log_weights), x, log_weights
        )
        return (x, log_weights, count + low.astype(jnp.int32)), ess

    steps = jnp.arange(len(sigmas) - 2, dtype=jnp.uint32)
    (x, log_weights, count), ess = jax.lax.scan(
        step, (x, log_weights, jnp.int32(0)), (steps, sigmas[:-2], sigmas[1:-1])
    )
    # The last step leads to the denoised values, at one rate since the score is finite.
    denoised, rate = guided(x, sigmas[-2])
    log_weights += rate
    log_weights -= jax.nn.logsumexp(log_weights)
    last = jnp.exp(-jax.nn.logsumexp(2.0 * log_weights)) / x.shape[0]
    ess = jnp.append(ess, last)
    return WeightedSamples(denoised, log_weights, ess, count)


def _systematic(key: jax.Array, log_weights: jax.Array) -> jax.Array:
    """Indices ``[n]``: each of a particle's expected copies to within one."""
    count = log_weights.shape[0]
    cumulative = jnp.cumsum(jax.nn.softmax(log_weights))
    offset = jax.random.uniform(key, (), log_weights.dtype)
    levels = (jnp.arange(count, dtype=log_weights.dtype) + offset) / count
    chosen = jnp.searchsorted(cumulative, levels * cumulative[-1], side="right")
    return jnp.minimum(chosen, count - 1)
