"""The parameters of a Gaussian mixture: their pytree and all input validation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_concrete, as_floats, as_labels, as_numbers

Label = ArrayLike | None

_WEIGHT_SUM_TOLERANCE = 1e-5  # rounding error of 2,000 float32 weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixtureParameters:
    """Parameters of a labeled Gaussian mixture, with diagonalized covariances.

    Not validated; ``prepare_parameters`` makes them from user input.

    Attributes:
        means: component means, ``[K, d]``.
        variances: eigenvalues of the covariances, ``[K, d]``, or ``[K, 1]`` if each
            component is isotropic.
        eigenvectors: eigenvectors in columns, ``[K, d, d]``; ``None`` if all
            covariances are diagonal.
        log_weights: normalized log weights, ``[K]``.
        labels: class of each component, ``K`` integers; static.
    """

    means: jax.Array
    variances: jax.Array
    eigenvectors: jax.Array | None
    log_weights: jax.Array
    labels: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def num_components(self) -> int:
        """Number of components, K."""
        return len(self.labels)

    @property
    def dim(self) -> int:
        """Dimension of a sample, d."""
        return self.means.shape[-1]

    @property
    def num_labels(self) -> int:
        """Number of classes; the label ``num_labels`` itself means "no condition"."""
        return max(self.labels) + 1

    def label_log_weights(self) -> jax.Array:
        """Log probability of each class, then 0 for "none": ``[num_labels + 1]``."""
        labels = np.asarray(self.labels, np.int32)
        members = labels[None, :] == np.arange(self.num_labels)[:, None]
        terms = jnp.where(members, self.log_weights[None, :], -jnp.inf)
        logs = jax.nn.logsumexp(terms, axis=1)
        return jnp.concatenate([logs, jnp.zeros(1, logs.dtype)])

    def condition(self, label: int) -> MixtureParameters:
        """The components of one class, with weights renormalized and label 0."""
        members = np.flatnonzero(np.asarray(self.labels) == label)
        log_weights = self.log_weights[members]
        return MixtureParameters(
            self.means[members],
            self.variances[members],
            None if self.eigenvectors is None else self.eigenvectors[members],
            log_weights - jax.nn.logsumexp(log_weights),
            (0,) * len(members),
        )


def prepare_parameters(
    means: ArrayLike,
    covariances: ArrayLike,
    weights: ArrayLike | None,
    labels: ArrayLike | None,
) -> MixtureParameters:
    """Validated parameters; arguments and errors as of ``GaussianMixture``."""
    checked = _prepare_means(means)
    count, dim = checked.shape
    variances, eigenvectors = _diagonalize(covariances, count, dim, checked.dtype)
    log_weights = _prepare_weights(weights, count, checked.dtype)
    return MixtureParameters(
        checked, variances, eigenvectors, log_weights, _prepare_labels(labels, count)
    )


# -- points and labels at which the closed forms are evaluated ----------------------


def check_points(
    parameters: MixtureParameters, x: ArrayLike, sigma: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Points ``[..., d]`` and noise levels ``[]`` or ``[...]`` as arrays of one dtype.

    Raises:
        ValueError: for points of the wrong dimension, or noise levels that do not fit
            them, are negative or not finite.
    """
    x = as_floats(as_numbers(x, "x"))  # squares of noise levels overflow in half types
    dim = parameters.dim
    if x.ndim < 1 or x.shape[-1] != dim:
        raise ValueError(
            f"x must have shape [..., {dim}] (the mixture has dimension {dim}), got "
            f"{x.shape}. Reshape with x[..., None] for points on a line."
        )
    sigma = jnp.asarray(as_numbers(sigma, "sigma"), x.dtype)
    if sigma.ndim and sigma.shape != x.shape[:-1]:
        raise ValueError(
            f"sigma must be a scalar or have x's leading shape {x.shape[:-1]}, got "
            f"{sigma.shape}."
        )
    values = as_concrete(sigma)
    if values is not None and not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"sigma must be finite and >= 0, got {np.unique(values)[:5]}.")
    return x, sigma


def check_label(
    parameters: MixtureParameters, label: Any, *, null_allowed: bool = False
) -> int:
    """One concrete label as an integer; ``num_labels`` only where ``null_allowed``.

    Raises:
        ValueError: if it is not a concrete integer in that range.
    """
    value = as_concrete(label)
    if value is None or value.ndim or not np.issubdtype(value.dtype, np.integer):
        raise ValueError(f"label must be one concrete integer, got {label!r}.")
    num_labels = parameters.num_labels
    if not 0 <= value <= num_labels - (not null_allowed):
        null = f" or {num_labels} for no condition" if null_allowed else ""
        raise ValueError(f"label must be in 0..{num_labels - 1}{null}, got {value}.")
    return int(value)


def spread_label(
    parameters: MixtureParameters, label: Label, shape: tuple[int, ...]
) -> jax.Array | None:
    """The label as one integer for each sample, of the given shape; None stays None.

    Raises:
        ValueError: for labels that are not integers, out of range or of another shape.
    """
    return as_labels(label, shape, parameters.num_labels)


# -- parameters given by the user ---------------------------------------------------


def _prepare_means(means: ArrayLike) -> jax.Array:
    """Means as a floating array of shape ``[K, d]``, checked to be finite."""
    means = jnp.asarray(means)
    if not jnp.issubdtype(means.dtype, jnp.floating):
        means = means.astype(jnp.result_type(float))
    if means.ndim != 2 or 0 in means.shape:
        raise ValueError(
            f"means must have shape [num_components, dim] with both at least 1, got "
            f"{means.shape}; write [[-4.0], [4.0]] for two modes on a line."
        )
    values = as_concrete(means)
    if values is not None and not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        raise ValueError(
            f"means must be finite; components {bad[:5].tolist()} are not."
        )
    return means


def _diagonalize(
    covariances: ArrayLike, count: int, dim: int, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array | None]:
    """Eigenvalues ``[K, d]`` or ``[K, 1]`` and eigenvectors ``[K, d, d]`` or None."""
    values = as_concrete(covariances)
    covariances = jnp.asarray(covariances) if values is None else values
    shape = covariances.shape
    if shape == ():
        variances = jnp.broadcast_to(jnp.asarray(covariances, dtype), (count, 1))
    elif shape == (count,):
        variances = jnp.asarray(covariances, dtype)[:, None]
    elif shape == (count, dim):
        _check_no_matrix(values)
        variances = jnp.asarray(covariances, dtype)
    elif shape == (count, dim, dim):
        if values is None:
            return _eigh(jnp.asarray(covariances, dtype))
        return _diagonalize_concrete(values, dtype)
    else:
        raise ValueError(
            f"covariances must be a scalar or have shape [{count}], [{count}, {dim}] "
            f"or [{count}, {dim}, {dim}] for {count} components of dimension {dim}, "
            f"got {shape}. Repeat one matrix of all components by "
            f"np.broadcast_to(matrix, ({count}, {dim}, {dim}))."
        )
    if values is not None:
        _check_positive(np.asarray(values, np.float64).reshape(shape), "variance")
    return variances, None


@jax.custom_jvp
def _eigh(covariances: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues and eigenvectors, whose derivative needs distinct eigenvalues."""
    return tuple(jnp.linalg.eigh(covariances))


@_eigh.defjvp
def _eigh_derivative(primals, tangents):
    result, change = jax.jvp(
        lambda matrix: tuple(jnp.linalg.eigh(matrix)), primals, tangents
    )
    eigenvalues = result[0]
    gap = jnp.min(jnp.diff(eigenvalues) / eigenvalues[..., 1:], initial=1.0)
    if (known := as_concrete(gap)) is not None:
        _check_distinct(known)
    else:
        jax.debug.callback(_check_distinct, gap)
    return result, change


def _check_distinct(gap: Any) -> None:
    if np.asarray(gap) <= 1e-6:
        raise ValueError(
            "gradients with respect to a full covariance are not defined where two of "
            "its eigenvalues are equal, as they are for the identity; start from "
            "variances of different sizes, such as np.diag([1.0, 1.1]), or pass "
            "variances [K, d]."
        )


def _check_no_matrix(values: np.ndarray | None) -> None:
    """Refuse what looks like one covariance matrix, where [K, d] variances may be."""
    if values is None or values.shape[0] != values.shape[1] or len(values) < 2:
        return
    off = values[~np.eye(len(values), dtype=bool)]
    if (values == values.T).all() and (off != 0).all() and (np.diag(values) > 0).all():
        matrix = np.asarray(values, np.float64)
        # Equal rows are variances that all components share.
        if (matrix != matrix[0]).any() and np.linalg.eigvalsh(matrix)[0] > 0:
            shape = (len(values),) * 3
            raise ValueError(
                f"covariances of shape {values.shape} are variances [K, d], but these "
                f"are symmetric like one covariance matrix. Write "
                f"np.broadcast_to(matrix, {shape}) for a matrix of all components, or "
                f"variances as np.diag matrices."
            )


def _diagonalize_concrete(
    covariances: np.ndarray, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    exact = np.asarray(covariances, np.float64)
    if not np.isfinite(exact).all():
        raise ValueError("covariances must be finite; found NaN or infinity.")
    asymmetry = np.abs(exact - exact.swapaxes(1, 2)).max(axis=(1, 2))
    worst = int(np.argmax(asymmetry - 1e-6 * np.abs(exact).max(axis=(1, 2))))
    if asymmetry[worst] > 1e-6 * np.abs(exact[worst]).max():
        raise ValueError(
            f"covariances must be symmetric; component {worst} differs from its "
            f"transpose by {asymmetry[worst]:.3g}. Symmetrize with (S + S.T) / 2."
        )
    # In float64, whatever the mixture's dtype.
    eigenvalues, eigenvectors = np.linalg.eigh(exact)
    _check_positive(eigenvalues, "smallest eigenvalue")
    return jnp.asarray(eigenvalues, dtype), jnp.asarray(eigenvectors, dtype)


def _check_positive(values: np.ndarray, what: str) -> None:
    # Also in float32, in which a tiny positive number may round to zero.
    bad = ~(np.isfinite(values) & (values.astype(np.float32) > 0))
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        component = f"component {index[0]}" if index else "all components"
        raise ValueError(
            f"covariances must be positive definite and finite; {component} has "
            f"{what} {values[index]:.3g}. Add a small multiple of the identity."
        )


def _prepare_weights(
    weights: ArrayLike | None, count: int, dtype: jnp.dtype
) -> jax.Array:
    """Log weights of shape ``[K]``, normalized."""
    if weights is None:
        return jnp.full((count,), -np.log(count), dtype)
    values = as_concrete(weights)
    shape = jnp.shape(weights if values is None else values)
    if shape != (count,):
        raise ValueError(
            f"weights must have shape [{count}], one for each component, got {shape}."
        )
    if values is None:
        logs = jnp.log(jnp.asarray(weights, dtype))
        return logs - jax.nn.logsumexp(logs)
    exact = np.asarray(values, np.float64)
    if not (np.isfinite(exact) & (exact > 0)).all():
        bad = int(np.flatnonzero(~(np.isfinite(exact) & (exact > 0)))[0])
        raise ValueError(
            f"weights must be positive and finite; weight {bad} is {exact[bad]:.3g}. "
            f"Remove components of zero weight."
        )
    excess = exact.sum() - 1.0
    if abs(excess) > _WEIGHT_SUM_TOLERANCE:
        raise ValueError(
            f"weights must sum to one; they sum to {exact.sum():.6g}, off by "
            f"{excess:+.3g}. Divide them by their sum."
        )
    return jnp.asarray(np.log(exact / exact.sum()), dtype)


def _prepare_labels(labels: ArrayLike | None, count: int) -> tuple[int, ...]:
    """The class of each component as a tuple of ``K`` integers."""
    if labels is None:
        return (0,) * count
    values = as_concrete(labels)
    if values is None:
        raise ValueError(
            "labels must be concrete integers, since they shape the program; got "
            "a traced array. Pass NumPy integers."
        )
    if values.shape != (count,) or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"labels must be {count} integers, one for each component, got shape "
            f"{values.shape} and dtype {values.dtype}."
        )
    if values.min() < 0:
        raise ValueError(f"labels must be 0 or more, got {int(values.min())}.")
    empty = np.setdiff1d(np.arange(values.max() + 1), values)
    if empty.size:
        raise ValueError(
            f"every label in 0..{int(values.max())} needs a component; label "
            f"{int(empty[0])} has none. Number the classes without gaps."
        )
    return tuple(int(v) for v in values)
