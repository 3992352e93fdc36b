"""``calibrate``: measure how well each guidance correction matches the true error.

``E[x0 | x]`` is the exact denoiser, so that ``x0 - D_c`` is the error of the network
plus noise orthogonal to all functions of ``x``. Regressing it on the corrections that a
guidance rule can make, ``D_c - D_u`` and ``D_c - D_weak``, gives the best coefficients
at each noise level from data alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from gmm_guidance._runtime.checks import (
    as_labels,
    as_samples,
    check_count,
    check_finite,
    check_key,
    shown,
)
from gmm_guidance.analysis.calibration import Calibration
from gmm_guidance.analysis.moments import gather_moments
from gmm_guidance.blocks.evaluate import check_denoiser
from gmm_guidance.blocks.stack import is_block_stack, relative_costs
from gmm_guidance.guidance.calibrated import all_features, check_features
from gmm_guidance.mixture.gaussian_mixture import GaussianMixture
from gmm_guidance.mixture.parameters import check_label


def calibrate(
    model: Any,
    data: GaussianMixture | tuple[ArrayLike, ArrayLike | None],
    key: jax.Array,
    *,
    features: Sequence[Any] | None = None,
    sigmas: ArrayLike | None = None,
    num_samples: int = 20000,
    label: int | None = None,
    num_groups: int = 24,
    batch_size: int = 4096,
    gate: float = 3.0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Measure guidance coefficients over the noise level by least squares.

    The aim is fidelity to ``p(x | label)``: the coefficients bring the guided denoiser
    as close to the conditional mean as the features allow. They do not account for
    perceptual preference, for which CFG is often set far higher.

    Args:
        model: a denoiser; a ``BlockStack`` if features drop blocks.
        data: a mixture, whose exact denoiser is then known as well; or a pair of clean
            samples ``[n, ...]`` and labels ``[n]`` (or ``None``), preferably data that
            the model was not trained on.
        key: a JAX random key.
        features: ``"cfg"`` for ``D_c - D_u``, tuples of blocks for ``D_c`` minus the
            model without them. By default CFG and each single block but the first.
        sigmas: noise levels > 0, ``[S]``; by default 12 levels from 0.01 to 20 data
            standard deviations.
        num_samples: samples at each level, at least 10 for each group. Memory does not
            grow with it.
        label: of a mixture, one class; by default all, in their proportions.
        num_groups: independent groups of samples, at least 8; the last quarter is held
            out.
        batch_size: samples evaluated at once.
        gate: a level keeps its coefficients if their cross-validated gain exceeds this
            many standard errors; else they are zero, so that noise is not fitted.
        progress: called with the number of finished groups and of all groups.

    Returns:
        The calibration, from which coefficients, rankings and rules are derived.

    Raises:
        ValueError: for bad features, levels, counts or shapes.
        TypeError: if a feature drops blocks of a model without blocks.
    """
    check_key(key)
    check_denoiser(model)
    if features is None:
        features = all_features(model)
    chosen = check_features(features, model)
    _check_counts(num_samples, num_groups, batch_size)
    clean = _check_data(data, label, num_groups, model)
    levels = _levels(sigmas, data if isinstance(data, GaussianMixture) else clean)
    moments = gather_moments(
        key,
        model,
        data,
        chosen,
        levels,
        label=label,
        num_samples=num_samples,
        num_groups=num_groups,
        batch_size=batch_size,
        progress=progress or (lambda done, total: None),
    )
    return Calibration(
        features=chosen,
        sigmas=levels,
        products=moments.products,
        output_products=moments.output,
        data_variance=moments.clean,
        num_samples=num_samples,
        block_costs=relative_costs(model) if is_block_stack(model) else np.zeros(0),
        gate=gate,
    )


def _check_counts(num_samples: int, num_groups: int, batch_size: int) -> None:
    for name, value in (("num_groups", num_groups), ("num_samples", num_samples)):
        check_count(name, value)
    check_count("batch_size", batch_size)
    if num_groups < 8:
        raise ValueError(
            f"num_groups must be at least 8, since a quarter is held out and standard "
            f"errors are over groups, got {num_groups}."
        )
    if num_samples < 10 * num_groups:
        raise ValueError(
            f"num_samples must be at least 10 for each of the {num_groups} groups, got "
            f"{num_samples}."
        )


def _check_data(
    data: Any, label: int | None, num_groups: int, model: Any
) -> np.ndarray | None:
    if isinstance(data, GaussianMixture):
        if label is not None:
            check_label(data.parameters, label)
        return None
    if not (isinstance(data, tuple | list) and len(data) == 2):
        raise TypeError(
            f"data must be a GaussianMixture or a pair of samples [n, ...] and labels "
            f"[n] (or None), got {shown(data)}."
        )
    clean, labels = data
    shape = getattr(model, "sample_shape", None)
    clean = np.asarray(as_samples(clean, shape, "samples"))
    if label is not None:
        raise ValueError(
            "label chooses a class of a mixture; for a data set pass the samples of "
            "that class only."
        )
    if clean.ndim < 2 or len(clean) < num_groups:
        raise ValueError(
            f"samples must have shape [n, ...] with n at least num_groups "
            f"({num_groups}), got {clean.shape}."
        )
    check_finite(clean, "samples", "Leave them out or mend them.")
    if labels is not None:
        if np.shape(labels) != (len(clean),):
            raise ValueError(
                f"labels must have shape [{len(clean)}], one for each sample, got "
                f"{np.shape(labels)}."
            )
        num_labels = getattr(model, "num_labels", None)
        as_labels(labels, (len(clean),), num_labels, null_allowed=False, name="labels")
    return clean


def _levels(sigmas: ArrayLike | None, data: Any) -> np.ndarray:
    if sigmas is None:
        scale = data.scale if isinstance(data, GaussianMixture) else np.std(data)
        return float(scale) * np.geomspace(0.01, 20.0, 12)
    levels = np.sort(np.atleast_1d(np.asarray(sigmas, np.float64)))
    if levels.ndim != 1 or not (np.isfinite(levels) & (levels > 0)).all():
        raise ValueError(f"sigmas must be finite and > 0, got {sigmas!r}.")
    if len(np.unique(levels)) != len(levels):
        raise ValueError(f"sigmas must differ from each other, got {levels.tolist()}.")
    return levels
