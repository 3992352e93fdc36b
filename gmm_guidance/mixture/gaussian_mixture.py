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
diagonalized once, ``S_k = Q_k diag(v_k) Q_k^T``, which makes ``C_k^-1`` cost O(d) at
any noise level. All of it is computed in log space from differences ``x - m_k``: the
products of densities that a direct evaluation forms underflow away from the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import check_count, check_key, shown
from gmm_guidance.mixture.closed_forms import (
    denoise_at,
    denoise_rows_at,
    evaluate,
    label_posterior_at,
    log_prob_at,
    map_samples,
    posterior_covariance_at,
    responsibilities_at,
    score_at,
)
from gmm_guidance.mixture.draw import sample_by_index
from gmm_guidance.mixture.parameters import (
    Label,
    MixtureParameters,
    check_label,
    check_points,
    prepare_parameters,
    spread_label,
)


class GaussianMixture:
    """A mixture of labeled Gaussians with the closed forms of its noised versions.

    A registered pytree whose leaves are the parameters (labels are static), so ``jit``,
    ``vmap`` and ``grad`` work through it. Gradients with respect to a *full* covariance
    go through an eigendecomposition and need distinct eigenvalues; else they raise.

    Attributes describe the components, ``[K, ...]``; methods with a ``label`` describe
    the distribution of all classes or of one.

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

    Attributes:
        parameters: the pytree on which the closed forms are evaluated.
    """

    parameters: MixtureParameters

    def __init__(
        self,
        means: ArrayLike,
        covariances: ArrayLike,
        weights: ArrayLike | None = None,
        labels: ArrayLike | None = None,
    ):
        self.parameters = prepare_parameters(means, covariances, weights, labels)

    @classmethod
    def from_parameters(cls, parameters: MixtureParameters) -> GaussianMixture:
        """The mixture with these parameters, which are not validated."""
        mixture = object.__new__(cls)
        mixture.parameters = parameters
        return mixture

    @classmethod
    def from_sklearn(
        cls, fitted: Any, labels: ArrayLike | None = None
    ) -> GaussianMixture:
        """The mixture that scikit-learn fitted, of any ``covariance_type``.

        Args:
            fitted: a fitted ``sklearn.mixture.GaussianMixture`` or
                ``BayesianGaussianMixture``.
            labels: the class of each component, as of the class.

        Raises:
            TypeError: for anything else, or before ``fit``.
            ValueError: as the class.
        """
        names = ("means_", "covariances_", "weights_", "covariance_type")
        if isinstance(fitted, type) or not all(hasattr(fitted, n) for n in names):
            raise TypeError(
                f"fitted must be a fitted mixture of scikit-learn, got "
                f"{type(fitted).__name__}; call its fit(samples) first."
            )
        means = np.asarray(fitted.means_)
        covariances = np.asarray(fitted.covariances_)
        if fitted.covariance_type == "tied":
            covariances = np.broadcast_to(covariances, (len(means), *covariances.shape))
        return cls(means, covariances, fitted.weights_, labels)

    def __repr__(self) -> str:
        return (
            f"GaussianMixture(num_components={self.num_components}, dim={self.dim}, "
            f"num_labels={self.num_labels})"
        )

    # -- components -----------------------------------------------------------------

    @property
    def num_components(self) -> int:
        """Number of Gaussians, K."""
        return self.parameters.num_components

    @property
    def dim(self) -> int:
        """Dimension of the samples, d."""
        return self.parameters.dim

    @property
    def num_labels(self) -> int:
        """Number of classes; the label ``num_labels`` itself means "no condition"."""
        return self.parameters.num_labels

    @property
    def means(self) -> jax.Array:
        """Component means, shape ``[K, d]``."""
        return self.parameters.means

    @property
    def variances(self) -> jax.Array:
        """Eigenvalues of the covariances, ``[K, d]``, or ``[K, 1]`` if isotropic."""
        return self.parameters.variances

    @property
    def eigenvectors(self) -> jax.Array | None:
        """Eigenvectors in columns, ``[K, d, d]``; ``None`` for diagonal covariances."""
        return self.parameters.eigenvectors

    @property
    def covariances(self) -> jax.Array:
        """Full covariances, shape ``[K, d, d]``."""
        variances = jnp.broadcast_to(self.variances, self.means.shape)
        q = self.eigenvectors
        if q is None:
            eye = jnp.eye(self.dim, dtype=self.means.dtype)
            return variances[:, :, None] * eye[None]
        return jnp.einsum("kij,kj,klj->kil", q, variances, q)

    @property
    def weights(self) -> jax.Array:
        """Component weights, shape ``[K]``, summing to one."""
        return jnp.exp(self.log_weights)

    @property
    def log_weights(self) -> jax.Array:
        """Log weights of the components, shape ``[K]``."""
        return self.parameters.log_weights

    @property
    def labels(self) -> np.ndarray:
        """Class of each component, integers of shape ``[K]``."""
        return np.asarray(self.parameters.labels, np.int32)

    # -- classes --------------------------------------------------------------------

    @property
    def label_weights(self) -> jax.Array:
        """Probability of each class, shape ``[num_labels]``."""
        return jnp.exp(self.parameters.label_log_weights()[:-1])

    def condition(self, label: int) -> GaussianMixture:
        """The mixture of one class: its components alone, renormalized, labeled 0.

        Raises:
            ValueError: if ``label`` is not an integer in ``0 .. num_labels - 1``.
        """
        value = check_label(self.parameters, label)
        return GaussianMixture.from_parameters(self.parameters.condition(value))

    def mean(self, label: int | None = None) -> jax.Array:
        """Mean of the mixture or of one class, shape ``[d]``."""
        part = self if label is None else self.condition(label)
        return part.weights @ part.means

    def covariance(self, label: int | None = None) -> jax.Array:
        """Covariance of the mixture or of one class, shape ``[d, d]``."""
        part = self if label is None else self.condition(label)
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
        return evaluate(log_prob_at, self.parameters, x, sigma, label)

    def score(self, x: ArrayLike, sigma: ArrayLike, label: Label = None) -> jax.Array:
        """Gradient of ``log_prob`` with respect to ``x``; same shapes, ``[..., d]``."""
        return evaluate(score_at, self.parameters, x, sigma, label)

    def denoise(self, x: ArrayLike, sigma: ArrayLike, label: Label = None) -> jax.Array:
        """Posterior mean of the clean sample, ``E[x0 | x, label]``: ``[..., d]``."""
        return evaluate(denoise_at, self.parameters, x, sigma, label)

    def denoise_rows(
        self, x: ArrayLike, sigma: ArrayLike, labels: Sequence[Label]
    ) -> jax.Array:
        """``denoise`` under several labels, ``[row, ..., d]``, the shared terms once.

        The component densities, most of the cost, do not depend on the label.
        """
        x, sigma = check_points(self.parameters, x, sigma)
        shape = x.shape[:-1]
        rows = tuple(spread_label(self.parameters, label, shape) for label in labels)
        results = map_samples(denoise_rows_at, self.parameters, x, sigma, rows)
        return jnp.moveaxis(results, -2, 0)

    def posterior_covariance(
        self, x: ArrayLike, sigma: ArrayLike, label: Label = None
    ) -> jax.Array:
        """Covariance of the clean sample given ``x``, shape ``[..., d, d]`` (Eq. 5)."""
        return evaluate(posterior_covariance_at, self.parameters, x, sigma, label)

    def responsibilities(
        self, x: ArrayLike, sigma: ArrayLike = 0.0, label: Label = None
    ) -> jax.Array:
        """Posterior probability of each component, ``[..., K]``; 0 outside a label."""
        x, sigma = check_points(self.parameters, x, sigma)
        label = spread_label(self.parameters, label, x.shape[:-1])
        return map_samples(responsibilities_at, self.parameters, x, sigma, label)

    def label_posterior(self, x: ArrayLike, sigma: ArrayLike = 0.0) -> jax.Array:
        """Posterior probability of each class, shape ``[..., num_labels]``."""
        return evaluate(label_posterior_at, self.parameters, x, sigma, None)

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
        num_samples = check_count("num_samples", num_samples)
        label = spread_label(self.parameters, label, (num_samples,))
        return sample_by_index(self.parameters, key, num_samples, label)


def check_mixture(mixture: Any) -> None:
    """Raise ``TypeError`` for anything but a mixture."""
    if not isinstance(mixture, GaussianMixture):
        raise TypeError(
            f"mixture must be a GaussianMixture, got {shown(mixture)}; the mixture of "
            f"an ExactDenoiser is its attribute mixture."
        )


jax.tree_util.register_pytree_node(
    GaussianMixture,
    lambda mixture: ((mixture.parameters,), None),
    lambda _, children: GaussianMixture.from_parameters(*children),
)
