"""The tilted distribution p(x) p(label | x)^scale, CFG's commonly stated target."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_concrete, as_float, check_count, check_key
from gmm_guidance.exact._posterior import (
    NUM_NODES,
    Quadrature,
    Tilt,
    clean_log_mean,
    log_label_posterior,
    tilted_posterior,
)
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.mixture.parameters import check_label, check_points

_PROPOSALS = 8192  # in a round of rejection
_LEAST_ACCEPTANCE = 1e-4
# Clean components are wider than posterior ones in units of the classes' borders.
_NUM_CLEAN_NODES = {1: 1024, 2: 160}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TiltedTarget:
    """``p(x) p(label | x)^scale / Z`` of a mixture, sampled and denoised exactly.

    It is also a denoiser, that of its own noised versions: ``guided_sample`` of it
    draws the tilted distribution by its probability flow. That flow is what CFG would
    have to follow to sample this distribution, and CFG's differs (Bradley & Nakkiran
    2024, arXiv 2408.09000).

    Denoising is an expectation over the posterior of the label's components,

        D*(x, sigma) = E[y p(label | y)^(scale - 1) | x, label]
                       / E[p(label | y)^(scale - 1) | x, label],

    by a lattice in each component in one and two dimensions, and by random nodes if a
    key is given. With a lattice of spacing h (0.38 standard deviations on a line, 0.45
    in the plane) the relative error of these expectations is about ``exp(-2 pi^2 / (h
    k))``, where k is the change of the log odds of the label over a standard deviation
    of ``y``: below float32's rounding up to k = 3, and up to about 1e-4 where widths
    of overlapping components differ five-fold. The lattice reaches 12 standard
    deviations, 7 in the plane; a tilt that moves the posterior further, at points deep
    inside of other classes, is cut off there.

    Args:
        mixture: the clean mixture.
        label: the class, an integer.
        scale: the total CFG scale, >= 1; 1 gives ``p(x | label)``.
        num_nodes: lattice nodes along each axis; 64 on a line and 32 in the plane by
            default.
        key: use random nodes, the same at every point, instead of the lattice: for more
            than two dimensions, or many components.
        num_draws: how many of these, an even number; the error falls with its root, and
            is about 0.01 standard deviations for the default.

    Raises:
        ValueError: for a scale below 1, an unknown label, counts out of range, or more
            than two dimensions without a key.
    """

    mixture: GaussianMixture
    label: int = dataclasses.field(metadata={"static": True})
    scale: ArrayLike
    num_nodes: int | None = dataclasses.field(default=None, metadata={"static": True})
    key: jax.Array | None = None
    num_draws: int = dataclasses.field(default=1024, metadata={"static": True})

    def __post_init__(self):
        scale = as_float(self.scale)
        if scale is not None and not 1.0 <= scale < np.inf:
            raise ValueError(
                f"scale must be finite and at least 1, got {scale}: below 1 the factor "
                f"p(label | x)^(scale - 1) exceeds 1, so it is not an acceptance "
                f"probability."
            )
        if self.num_nodes is not None and self.num_nodes < 2:
            raise ValueError(f"num_nodes must be at least 2, got {self.num_nodes}.")
        if self.num_draws < 2 or self.num_draws % 2:
            raise ValueError(
                f"num_draws must be even and at least 2, got {self.num_draws}."
            )
        if isinstance(self.mixture, GaussianMixture):
            check_label(self.mixture.parameters, self.label)
            if self.key is None and self._dim() > 2:
                raise ValueError(
                    f"a lattice in {self._dim()} dimensions is too large; give "
                    f"key=jax.random.key(0) for random nodes."
                )

    def _dim(self) -> int:
        # Pytree transformations put placeholders without a shape in place of arrays.
        shape: tuple[int, ...] = getattr(self.mixture.means, "shape", ())
        return shape[-1] if len(shape) > 1 else 0

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, ``(d,)``."""
        return (self.mixture.dim,)

    # -- clean samples --------------------------------------------------------------

    def sample(self, key: jax.Array, num_samples: int) -> jax.Array:
        """Draw clean samples by rejection, without bias in any dimension.

        Draws ``p(x | label)``, accepted with probability ``p(label | x)^(scale - 1)``.
        A longer draw begins with the shorter one. Not for use under ``jit``.

        Args:
            key: a JAX random key.
            num_samples: how many, at least 1.

        Returns:
            Samples of shape ``[num_samples, d]``.

        Raises:
            ValueError: for a count below 1, or if fewer than one of 10,000 proposals is
                accepted.
        """
        check_key(key)
        num_samples = check_count("num_samples", num_samples)
        kept: list[np.ndarray] = []
        count = rounds = 0
        while count < num_samples:
            x, accepted = _propose(self, jax.random.fold_in(key, rounds), _PROPOSALS)
            rounds += 1
            kept.append(np.asarray(x)[np.asarray(accepted)])
            count += len(kept[-1])
            proposals = rounds * _PROPOSALS
            if proposals > 50_000 and count < _LEAST_ACCEPTANCE * proposals:
                raise ValueError(
                    f"only {count} of {proposals} draws of p(x | label={self.label}) "
                    f"were accepted at scale {self.scale}: the tilted distribution "
                    f"lies where the class has almost no mass. Lower the scale."
                )
        return jnp.asarray(np.concatenate(kept)[:num_samples])

    def acceptance(
        self, key: jax.Array | None = None, num_samples: int = 65536
    ) -> tuple[jax.Array, jax.Array]:
        """Acceptance rate of ``sample``, ``E[p(label | x)^(scale - 1) | label]``.

        Args:
            key: estimate it from samples; by default the target's own key, and without
                one a lattice of 1,024 (160 x 160 in the plane) nodes per component.
            num_samples: how many samples, with a key.

        Returns:
            Value and standard error, scalars; the error of the lattice is taken as 0.
        """
        key = self.key if key is None else key
        if key is None:
            nodes = _NUM_CLEAN_NODES[self.mixture.dim]
            value = jnp.exp(_clean_log_mean(self, nodes))
            return value, jnp.zeros_like(value)
        values = jnp.exp(_log_acceptances(self, key, num_samples))
        return jnp.mean(values), jnp.std(values, ddof=1) / jnp.sqrt(1.0 * num_samples)

    def log_normalizer(
        self, key: jax.Array | None = None, num_samples: int = 65536
    ) -> jax.Array:
        """``log Z = log p(label) + log(acceptance)``; arguments as ``acceptance``."""
        log_weight = self.mixture.parameters.label_log_weights()[self.label]
        return log_weight + jnp.log(self.acceptance(key, num_samples)[0])

    def log_prob(self, x: ArrayLike, sigma: ArrayLike = 0.0) -> jax.Array:
        """Log density of the tilted distribution, or of its noised version.

        Args:
            x: points of shape ``[..., d]``.
            sigma: noise level >= 0, a scalar or one for each point, either all zero or
                all positive.

        Returns:
            Normalized log densities of x's leading shape.
        """
        x, sigma = check_points(self.mixture.parameters, x, sigma)
        log_p = self.mixture.log_prob(x, sigma, self.label)
        levels = as_concrete(sigma)
        if levels is not None and not levels.any():
            own = log_label_posterior(self.mixture.parameters, x, 0.0, self.label)
            log_tilt = (jnp.asarray(self.scale, own.dtype) - 1.0) * own
        else:
            log_tilt = self.tilt(x, sigma).log_mean
        return log_p + log_tilt - jnp.log(self.acceptance()[0])

    # -- noised samples -------------------------------------------------------------

    def denoise(self, x: ArrayLike, sigma: ArrayLike) -> jax.Array:
        """Posterior mean ``D*`` of a clean tilted sample, given its noisy version.

        Args:
            x: noisy points of shape ``[..., d]``.
            sigma: noise level > 0, a scalar or one for each point.

        Returns:
            Array of x's shape.
        """
        return self.tilt(x, sigma).denoised

    def score(self, x: ArrayLike, sigma: ArrayLike) -> jax.Array:
        """Gradient of ``log_prob(x, sigma)``, for sigma > 0; shapes as ``denoise``."""
        return self.tilt(x, sigma).score

    def __call__(self, x: jax.Array, sigma: ArrayLike, label: Any = None) -> jax.Array:
        """``denoise``; ``label`` is ignored, since the target fixes its own label.

        So the target can be used wherever a denoiser can.
        """
        return self.denoise(x, sigma)

    def tilt(self, x: ArrayLike, sigma: ArrayLike) -> Tilt:
        """Moments of the tilted posterior, from which the above derive."""
        x, sigma = check_points(self.mixture.parameters, x, sigma)
        levels = as_concrete(sigma)
        if levels is not None and not (levels > 0).all():
            raise ValueError(
                "sigma must be > 0: without noise the posterior mean is x itself."
            )
        return tilted_posterior(
            self.mixture.parameters,
            x,
            sigma,
            jnp.asarray(self.scale, x.dtype),
            self.key,
            label=self.label,
            quadrature=self._quadrature(),
        )

    def _quadrature(self) -> Quadrature:
        if self.key is not None:
            return Quadrature(0, self.num_draws)
        return Quadrature(self.num_nodes or NUM_NODES[self.mixture.dim], 0)


def _log_acceptance_of(target: TiltedTarget, x: jax.Array) -> jax.Array:
    log_p = log_label_posterior(target.mixture.parameters, x, 0.0, target.label)
    return (jnp.asarray(target.scale, log_p.dtype) - 1.0) * log_p


def _proposals(target: TiltedTarget, key: jax.Array, count: int) -> jax.Array:
    return target.mixture.sample(key, count, target.label)[0]


def _propose_(target, key, count):
    draw_key, accept_key = jax.random.split(key)
    x = _proposals(target, draw_key, count)
    # -log u is exponential: no logarithm of a uniform number that is 0.
    threshold = -jax.random.exponential(accept_key, (count,), x.dtype)
    return x, threshold < _log_acceptance_of(target, x)


def _log_acceptances_(target, key, count):
    return _log_acceptance_of(target, _proposals(target, key, count))


def _clean_log_mean_(target, num_nodes):
    scale = jnp.asarray(target.scale, target.mixture.means.dtype)
    return clean_log_mean(target.mixture.parameters, scale, target.label, num_nodes)


_propose = jax.jit(_propose_, static_argnums=2)
_log_acceptances = jax.jit(_log_acceptances_, static_argnums=2)
_clean_log_mean = jax.jit(_clean_log_mean_, static_argnums=1)
