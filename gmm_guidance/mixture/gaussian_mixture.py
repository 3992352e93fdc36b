"""Gaussian mixtures under Gaussian noise: every closed form of diffusion theory.

For data ``x0 ~ sum_k w_k N(m_k, S_k)`` and ``x = x0 + sigma * noise``, each component
stays Gaussian with covariance ``C_k = S_k + sigma^2 I``, so that

    log p_sigma(x)      = logsumexp_k [log w_k + log N(x; m_k, C_k)]             (1)
    r_k(x)              = softmax_k of the same terms (responsibilities)         (2)
    score               = sum_k r_k C_k^-1 (m_k - x)                             (3)
    E[x0 | x]           = sum_k r_k mu_k,  mu_k = m_k + S_k C_k^-1 (x - m_k)     (4)
    Cov[x0 | x]         = sum_k r_k [V_k + (mu_k - D)(mu_k - D)^T],  D as in (4),
                          V_k = sigma^2 S_k C_k^-1                               (5)

A condition on a label restricts the sums to the label's components. The covariances are
diagonalised once, ``S_k = Q_k diag(v_k) Q_k^T``, which makes ``C_k^-1`` cost O(d) at
any noise level. All of it is computed in log space from differences ``x - m_k``: the
products of densities that a direct evaluation forms underflow away from the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_concrete, check_key
from gmm_guidance.mixture.closed_forms import (
    denoise_at,
    denoise_rows_at,
    label_posterior_at,
    log_prob_at,
    map_samples,
    posterior_covariance_at,
    responsibilities_at,
    score_at,
)
from gmm_guidance.mixture.draw import sample_by_index
from gmm_guidance.mixture.parameters import (
    diagonalise,
    prepare_labels,
    prepare_means,
    prepare_weights,
)

Label = ArrayLike | None


class GaussianMixture:
    """A mixture of labelled Gaussians with the closed forms of its noised versions.

    A registered pytree whose leaves are the parameters (labels are static), so ``jit``,
    ``vmap`` and ``grad`` work through it. Gradients with respect to a *full* covariance
    go through an eigendecomposition and need distinct eigenvalues.

    Args:
        means: component means, array of shape ``[K, d]``.
        covariances: a scalar (one variance for all), ``[K]`` (a variance each),
            ``[K, d]`` (variances along the coordinates) or ``[K, d, d]`` (full,
            symmetric positive definite). Variances, not standard deviations.
        weights: positive component weights of shape ``[K]`` that sum to one; equal
            when ``None``.
        labels: the class of each component, ``[K]`` integers that cover
            ``0 .. num_labels - 1``; one common label 0 when ``None``. Must be concrete.

    Raises:
        ValueError: for non-finite means, covariances that are not symmetric positive
            definite, weights that are not positive or do not sum to one, labels that
            leave a class empty, or shapes that do not fit.
    """

    means: jax.Array
    variances: jax.Array  # [K, d] or [K, 1]: eigenvalues of the covariances
    axes: jax.Array | None  # [K, d, d]: eigenvectors in columns; None = coordinate axes
    log_weights: jax.Array
    _labels: tuple[int, ...]

    def __init__(
        self,
        means: ArrayLike,
        covariances: ArrayLike,
        weights: ArrayLike | None = None,
        labels: ArrayLike | None = None,
    ):
        self.means = prepare_means(means)
        count, dim = self.means.shape
        self.variances, self.axes = diagonalise(
            covariances, count, dim, self.means.dtype
        )
        self.log_weights = prepare_weights(weights, count, self.means.dtype)
        self._labels = prepare_labels(labels, count)

    def __repr__(self) -> str:
        return (
            f"GaussianMixture(num_components={self.num_components}, dim={self.dim}, "
            f"num_labels={self.num_labels})"
        )

    # -- what it is made of ---------------------------------------------------------

    @property
    def num_components(self) -> int:
        """Number of Gaussians, K."""
        return len(self._labels)

    @property
    def dim(self) -> int:
        """Dimension of the samples, d."""
        return self.means.shape[-1]

    @property
    def num_labels(self) -> int:
        """Number of classes; the label ``num_labels`` itself means "no condition"."""
        return max(self._labels) + 1

    @property
    def labels(self) -> np.ndarray:
        """Class of each component, integers of shape ``[K]``."""
        return np.asarray(self._labels, np.int32)

    @property
    def weights(self) -> jax.Array:
        """Component weights, shape ``[K]``, summing to one."""
        return jnp.exp(self.log_weights)

    @property
    def covariances(self) -> jax.Array:
        """Full covariances, shape ``[K, d, d]``."""
        variances = jnp.broadcast_to(self.variances, self.means.shape)
        if self.axes is None:
            eye = jnp.eye(self.dim, dtype=self.means.dtype)
            return variances[:, :, None] * eye[None]
        return jnp.einsum("kij,kj,klj->kil", self.axes, variances, self.axes)

    def label_weights(self) -> jax.Array:
        """Probability of each class, shape ``[num_labels]``."""
        return jnp.exp(self.label_log_weights()[:-1])

    def label_log_weights(self) -> jax.Array:
        """Log probability of each class, then 0 for "none": ``[num_labels + 1]``."""
        members = self.labels[None, :] == np.arange(self.num_labels)[:, None]
        terms = jnp.where(members, self.log_weights[None, :], -jnp.inf)
        logs = jax.nn.logsumexp(terms, axis=1)
        return jnp.concatenate([logs, jnp.zeros(1, logs.dtype)])

    def condition(self, label: int) -> GaussianMixture:
        """The mixture of one class: its components alone, renormalised, labelled 0.

        Raises:
            ValueError: if ``label`` is not an integer in ``0 .. num_labels - 1``.
        """
        label = self._check_label_value(label, null_allowed=False)
        members = np.flatnonzero(self.labels == label)
        log_weights = self.log_weights[members]
        children = (
            self.means[members],
            self.variances[members],
            None if self.axes is None else self.axes[members],
            log_weights - jax.nn.logsumexp(log_weights),
        )
        return _unflatten((0,) * len(members), children)

    def mean(self, label: Label = None) -> jax.Array:
        """Mean of the mixture or of one class, shape ``[d]``."""
        part = self if label is None else self.condition(_as_int(label))
        return part.weights @ part.means

    def covariance(self, label: Label = None) -> jax.Array:
        """Covariance of the mixture or of one class, shape ``[d, d]``."""
        part = self if label is None else self.condition(_as_int(label))
        offset = part.means - part.mean()[None]
        outer = offset[:, :, None] * offset[:, None, :]
        return jnp.einsum("k,kij->ij", part.weights, part.covariances + outer)

    @property
    def scale(self) -> jax.Array:
        """Root mean square standard deviation over the dimensions, a scalar."""
        return jnp.sqrt(jnp.trace(self.covariance()) / self.dim)

    # -- closed forms ---------------------------------------------------------------

    def log_prob(
        self, x: ArrayLike, sigma: ArrayLike = 0.0, label: Label = None
    ) -> jax.Array:
        """Log density of ``x0 + sigma * noise``, given the label if there is one.

        Args:
            x: points of shape ``[..., d]``.
            sigma: noise level >= 0, a scalar or one for each point.
            label: ``None`` (all classes), an integer, or integers of x's leading
                shape; ``num_labels`` also means all classes.

        Returns:
            Log densities (natural logarithm) of x's leading shape.
        """
        return self._over_samples(log_prob_at, x, sigma, label)

    def score(self, x: ArrayLike, sigma: ArrayLike, label: Label = None) -> jax.Array:
        """Gradient of ``log_prob`` with respect to ``x``; same shapes, ``[..., d]``."""
        return self._over_samples(score_at, x, sigma, label)

    def denoise(self, x: ArrayLike, sigma: ArrayLike, label: Label = None) -> jax.Array:
        """Posterior mean of the clean sample, ``E[x0 | x, label]``: ``[..., d]``."""
        return self._over_samples(denoise_at, x, sigma, label)

    def denoise_rows(
        self, x: ArrayLike, sigma: ArrayLike, labels: Sequence[Label]
    ) -> jax.Array:
        """``denoise`` under several labels, ``[row, ..., d]``, the shared terms once.

        The component densities, most of the cost, do not depend on the label.
        """
        x, sigma = self._check_points(x, sigma)
        rows = tuple(self._spread_label(label, x.shape[:-1]) for label in labels)
        results = map_samples(denoise_rows_at, self, x, sigma, rows)
        return jnp.moveaxis(results, -2, 0)

    def posterior_covariance(
        self, x: ArrayLike, sigma: ArrayLike, label: Label = None
    ) -> jax.Array:
        """Covariance of the clean sample given ``x``, shape ``[..., d, d]`` (Eq. 5)."""
        return self._over_samples(posterior_covariance_at, x, sigma, label)

    def responsibilities(
        self, x: ArrayLike, sigma: ArrayLike = 0.0, label: Label = None
    ) -> jax.Array:
        """Posterior probability of each component, ``[..., K]``; 0 outside a label."""
        x, sigma = self._check_points(x, sigma)
        label = self._spread_label(label, x.shape[:-1])
        return map_samples(responsibilities_at, self, x, sigma, label)

    def label_posterior(self, x: ArrayLike, sigma: ArrayLike = 0.0) -> jax.Array:
        """Posterior probability of each class, shape ``[..., num_labels]``."""
        return self._over_samples(label_posterior_at, x, sigma, None)

    def sample(
        self, key: jax.Array, num_samples: int, label: Label = None
    ) -> tuple[jax.Array, jax.Array]:
        """Draw clean samples.

        Sample ``i`` depends on the key and ``i`` alone: a longer draw begins with the
        shorter one.

        Args:
            key: a JAX random key.
            num_samples: how many, at least 1.
            label: ``None`` (labels drawn by class probability), an integer, or
                ``[num_samples]`` integers.

        Returns:
            Samples of shape ``[num_samples, d]`` and their labels ``[num_samples]``.
        """
        check_key(key)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
        return sample_by_index(
            self, key, num_samples, self._spread_label(label, (num_samples,))
        )

    # -- internals ------------------------------------------------------------------

    def _over_samples(
        self,
        function: Callable[..., jax.Array],
        x: ArrayLike,
        sigma: ArrayLike,
        label: Label,
    ) -> jax.Array:
        x, sigma = self._check_points(x, sigma)
        if _is_static_int(label):
            # A known class: evaluate its components alone.
            value = self._check_label_value(label, null_allowed=True)
            part = self if value == self.num_labels else self.condition(value)
            return map_samples(function, part, x, sigma, None)
        label = self._spread_label(label, x.shape[:-1])
        return map_samples(function, self, x, sigma, label)

    def _check_points(
        self, x: ArrayLike, sigma: ArrayLike
    ) -> tuple[jax.Array, jax.Array]:
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            x = x.astype(self.means.dtype)
        if x.ndim < 1 or x.shape[-1] != self.dim:
            raise ValueError(
                f"x must have shape [..., {self.dim}] (the mixture has dimension "
                f"{self.dim}), got {x.shape}. Reshape with x[..., None] for points on "
                f"a line."
            )
        sigma = jnp.asarray(sigma, x.dtype)
        if sigma.ndim and sigma.shape != x.shape[:-1]:
            raise ValueError(
                f"sigma must be a scalar or have x's leading shape {x.shape[:-1]}, "
                f"got {sigma.shape}."
            )
        values = as_concrete(sigma)
        if values is not None and not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(
                f"sigma must be finite and >= 0, got {np.unique(values)[:5]}."
            )
        return x, sigma

    def _check_label_value(self, label: Any, *, null_allowed: bool) -> int:
        value = _as_int(label)
        last = self.num_labels if null_allowed else self.num_labels - 1
        if not 0 <= value <= last:
            null = f" or {self.num_labels} for no condition" if null_allowed else ""
            raise ValueError(
                f"label must be in 0..{self.num_labels - 1}{null}, got {value}."
            )
        return value

    def _spread_label(self, label: Label, shape: tuple[int, ...]) -> jax.Array | None:
        """The label as one integer for each sample; None stays None."""
        if label is None:
            return None
        label = jnp.asarray(label)
        if not jnp.issubdtype(label.dtype, jnp.integer):
            raise ValueError(f"label must be an integer, got dtype {label.dtype}.")
        if label.ndim and label.shape != shape:
            raise ValueError(
                f"label must be None, an integer, or integers of shape {shape}, got "
                f"shape {label.shape}."
            )
        values = as_concrete(label)
        if values is not None and values.size:
            self._check_label_value(values.min(), null_allowed=True)
            self._check_label_value(values.max(), null_allowed=True)
        return jnp.broadcast_to(label.astype(jnp.int32), shape)


def _as_int(label: Any) -> int:
    value = as_concrete(label)
    if value is None or value.ndim or not np.issubdtype(value.dtype, np.integer):
        raise ValueError(f"label must be one concrete integer, got {label!r}.")
    return int(value)


def _is_static_int(label: Any) -> bool:
    return isinstance(label, (int, np.integer)) and not isinstance(label, bool)


def _flatten(mixture: GaussianMixture):
    children = (mixture.means, mixture.variances, mixture.axes, mixture.log_weights)
    return children, mixture._labels


def _unflatten(labels, children) -> GaussianMixture:
    mixture = object.__new__(GaussianMixture)
    mixture.means, mixture.variances, mixture.axes, mixture.log_weights = children
    mixture._labels = labels
    return mixture


jax.tree_util.register_pytree_node(GaussianMixture, _flatten, _unflatten)
