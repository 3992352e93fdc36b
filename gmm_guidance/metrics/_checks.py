"""Checks of what the metrics are given: samples as float64, labels as int32."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gmm_guidance.mixture.gaussian_mixture import GaussianMixture


def check_samples(
    samples: ArrayLike, dim: int | None = None, least: int = 1
) -> np.ndarray:
    """Samples as float64 ``[n, d]``."""
    x = np.asarray(samples, np.float64)
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2 or x.shape[1] == 0 or dim not in (None, x.shape[1]):
        wanted = "d" if dim is None else dim
        raise ValueError(
            f"samples must have shape [n, {wanted}] (or [n] on a line), got "
            f"{np.shape(samples)}."
        )
    if len(x) < least:
        raise ValueError(f"at least {least} samples are needed, got {len(x)}.")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"samples must be finite; {int((~finite).sum())} of {len(x)} hold NaN or "
            f"infinity, the first at index {int(np.argmin(finite))}. Count them as "
            f"failures of the sampler and pass the rest."
        )
    return x


def check_label_values(
    labels: np.ndarray, mixture: GaussianMixture, null_allowed: bool = True
) -> np.ndarray:
    """Labels of any shape as int32, each of a class or, where allowed, of none."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got dtype {labels.dtype}.")
    last = mixture.num_labels - (not null_allowed)
    bad = labels[(labels < 0) | (labels > last)]
    if bad.size:
        null = f", or {last} for no condition" if null_allowed else ""
        raise ValueError(
            f"labels must be in 0..{mixture.num_labels - 1}{null}; got "
            f"{np.unique(bad)[:5].tolist()}."
        )
    return labels.astype(np.int32)


def check_labeled(
    samples: ArrayLike,
    labels: ArrayLike | None,
    mixture: GaussianMixture,
    null_allowed: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Samples ``[n, d]`` float64 and one label each, ``[n]`` int32."""
    x = check_samples(samples, mixture.dim)
    label = np.asarray(mixture.num_labels if labels is None else labels)
    if label.shape not in ((), (len(x),)):
        raise ValueError(
            f"labels must be an integer or have shape [{len(x)}], one for each sample, "
            f"got {label.shape}."
        )
    label = check_label_values(label, mixture, null_allowed)
    return x, np.broadcast_to(label, (len(x),))


def check_one_label(label: int | None, mixture: GaussianMixture) -> int | None:
    """One label for all samples, or ``None``."""
    if label is None:
        return None
    value = np.asarray(label)
    if value.ndim:
        raise ValueError(
            f"label must be None or one integer, got an array of shape {value.shape}. "
            f"Compare the samples of each label with that label's truth."
        )
    return int(check_label_values(value, mixture))
