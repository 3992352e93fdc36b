"""Validation and diagonalisation of the parameters of a Gaussian mixture."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import as_concrete

_WEIGHT_SUM_TOLERANCE = 1e-5  # what float32 leaves of 2,000 normalised weights


def prepare_means(means: ArrayLike) -> jax.Array:
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


def diagonalise(
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
        variances = jnp.asarray(covariances, dtype)
    elif shape == (count, dim, dim):
        if values is None:
            eigenvalues, axes = jnp.linalg.eigh(jnp.asarray(covariances, dtype))
            return eigenvalues, axes
        return _diagonalise_concrete(values, dtype)
    else:
        raise ValueError(
            f"covariances must be a scalar or have shape [{count}], [{count}, {dim}] "
            f"or [{count}, {dim}, {dim}] for {count} components of dimension {dim}, "
            f"got {shape}."
        )
    if values is not None:
        _check_positive(np.asarray(values, np.float64).reshape(shape), "variance")
    return variances, None


def _diagonalise_concrete(
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
            f"transpose by {asymmetry[worst]:.3g}. Symmetrise with (S + S.T) / 2."
        )
    eigenvalues, axes = np.linalg.eigh(exact)  # float64, whatever the mixture's dtype
    _check_positive(eigenvalues, "smallest eigenvalue")
    return jnp.asarray(eigenvalues, dtype), jnp.asarray(axes, dtype)


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


def prepare_weights(
    weights: ArrayLike | None, count: int, dtype: jnp.dtype
) -> jax.Array:
    """Log weights of shape ``[K]``, normalised."""
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
            f"Leave out components without mass."
        )
    excess = exact.sum() - 1.0
    if abs(excess) > _WEIGHT_SUM_TOLERANCE:
        raise ValueError(
            f"weights must sum to one; they sum to {exact.sum():.6g}, off by "
            f"{excess:+.3g}. Divide them by their sum."
        )
    return jnp.asarray(np.log(exact / exact.sum()), dtype)


def prepare_labels(labels: ArrayLike | None, count: int) -> tuple[int, ...]:
    """The class of each component as a tuple of ``K`` integers."""
    if labels is None:
        return (0,) * count
    values = as_concrete(labels)
    if values is None:
        raise ValueError("labels must be concrete integers; they shape the program.")
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
