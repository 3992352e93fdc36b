"""Features of a set of images, or their moments alone, and the files that hold them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from full_models.npz import Header, headers, read_array
from gmm_guidance._runtime.files import atomic
from gmm_guidance.metrics import FeatureMoments, feature_moments

_FEATURE_KEYS = ("features", "pool_3", "arr_0")
_PREDICTION_KEYS = ("logits", "probabilities")
_MOMENT_KEYS = ("mu", "sigma")


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of a set of images, or mean and covariance of features alone.

    Attributes:
        features: ``[n, d]``, numbers of any type; ``None`` if only moments are known.
        logits: of a classifier, ``[n, classes]``; without ``probabilities``.
        probabilities: of a classifier, ``[n, classes]``; without ``logits``.
        mu: mean of the features, ``[d]``, in place of ``features``.
        sigma: covariance of the features, ``[d, d]``, with ``mu``.
        origin: where it comes from, for messages.

    Raises:
        ValueError: if a shape does not fit, there are fewer than 2 samples, a value is
            not finite, or what is given is too little or too much.
    """

    features: np.ndarray | None = None
    logits: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    mu: np.ndarray | None = None
    sigma: np.ndarray | None = None
    origin: str = "the features"

    def __post_init__(self) -> None:
        self._check_what_is_given()
        if self.features is not None:
            _check_matrix(self.features, "features", "d", self.origin)
        else:
            self.moments()  # checks mean and covariance
        for name in _PREDICTION_KEYS:
            predictions = getattr(self, name)
            if predictions is not None:
                _check_matrix(predictions, name, "classes", self.origin)
                self._check_count(name, len(predictions))

    @property
    def count(self) -> int | None:
        """Number of samples; ``None`` if only moments are known."""
        return None if self.features is None else len(self.features)

    @property
    def dim(self) -> int:
        """Dimension of the features."""
        known = self.mu if self.features is None else self.features
        return np.asarray(known).shape[-1]

    def moments(self) -> FeatureMoments:
        """Mean and covariance, in float64.

        Raises:
            ValueError: if the covariance is not finite or not symmetric.
        """
        if self.features is not None:
            return feature_moments(self.features)
        try:
            # Of how many they are is not known; the number matters for merging only.
            return FeatureMoments(self.mu, self.sigma, 2)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{self.origin}: mu and sigma do not fit: {error}") from (
                error
            )

    def class_probabilities(self) -> np.ndarray | None:
        """The classifier's predictions, ``[n, classes]`` float64; ``None`` without."""
        if self.logits is None:
            known = self.probabilities
            return None if known is None else np.asarray(known, np.float64)
        logits = np.asarray(self.logits, np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def _check_what_is_given(self) -> None:
        moments = [getattr(self, name) is not None for name in _MOMENT_KEYS]
        if any(moments) != all(moments):
            raise ValueError(
                f"{self.origin} must hold mu and sigma together, but one is missing."
            )
        if any(moments) == (self.features is not None):
            raise ValueError(
                f"{self.origin} must hold either features or mu and sigma, got "
                f"{'both' if any(moments) else 'neither'}."
            )
        if self.logits is not None and self.probabilities is not None:
            raise ValueError(
                f"{self.origin} must hold logits or probabilities, got both; leave one "
                f"out."
            )

    def _check_count(self, name: str, found: int) -> None:
        if self.count not in (None, found):
            raise ValueError(
                f"{self.origin}: {name} must have a row for each of the {self.count} "
                f"features, got {found}; extract both from the same images."
            )


def load_features(path: str | os.PathLike) -> FeatureSet:
    """Read an .npz file of features or of their moments.

    The first that is there is read: ``features``, ``pool_3``, a two-dimensional
    ``arr_0``, all ``[n, d]``; else the moments ``mu`` ``[d]`` and ``sigma`` ``[d, d]``,
    as in the reference files of the field's evaluators. ``logits`` or
    ``probabilities``, ``[n, classes]``, may come with either. Other arrays, such as the
    images of a reference file, are not read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds none of these, or what it holds is no
            ``FeatureSet``.
    """
    path = Path(path)
    found = headers(path)
    names = _wanted(found, path)
    arrays = {name: read_array(path, key) for name, key in names.items()}
    return FeatureSet(**arrays, origin=str(path))


def save_features(path: str | os.PathLike, features: FeatureSet) -> Path:
    """Write an .npz file that ``load_features`` reads; complete or not at all.

    Raises:
        ValueError: if the path does not end in ``.npz``.
        OSError: if it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(
            f"the path must end in .npz, got {path}; use {path.with_suffix('.npz')}."
        )
    arrays = {
        name: array
        for name in ("features", *_PREDICTION_KEYS, *_MOMENT_KEYS)
        if (array := getattr(features, name)) is not None
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        np.savez(temporary, **arrays)
    return path


def _wanted(found: Mapping[str, Header], path: Path) -> dict[str, str]:
    """Which arrays to read: from the field of a ``FeatureSet`` to the file's key."""
    names = {name: name for name in _PREDICTION_KEYS if name in found}
    for key in _FEATURE_KEYS:
        if key in found and (key != "arr_0" or len(found[key].shape) == 2):
            return {"features": key, **names}
    if any(key in found for key in _MOMENT_KEYS):
        return {**{key: key for key in _MOMENT_KEYS if key in found}, **names}
    if "arr_0" in found:
        raise ValueError(
            f"{path} must hold features [n, d], but its arr_0 has shape "
            f"{found['arr_0'].shape}, as images have. Make features of them first: "
            f"full-models features --images {path} --using package.module:function "
            f"--out features.npz."
        )
    raise ValueError(
        f"{path} must hold an array features, pool_3 or arr_0 of shape [n, d], or mu "
        f"and sigma; found {', '.join(sorted(found)) or 'none'}. Rename one, or make "
        f"features with full-models features."
    )


def _check_matrix(array: np.ndarray, name: str, columns: str, origin: str) -> None:
    if array.ndim != 2 or 0 in array.shape[1:]:
        raise ValueError(
            f"{origin}: {name} must have shape [n, {columns}], got {array.shape}; "
            f"reshape them to a row for each sample."
        )
    if array.dtype.kind not in "fiu":
        raise ValueError(
            f"{origin}: {name} must be real numbers, got {array.dtype}; store them as "
            f"float32."
        )
    if len(array) < 2:
        raise ValueError(
            f"{origin}: {name} must be of at least 2 samples, got {len(array)}; "
            f"statistics of fewer have no spread."
        )
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{origin}: {name} must be finite; {int((~finite).sum())} of {len(array)} "
            f"rows hold NaN or infinity, the first is row {int(np.argmin(finite))}. "
            f"Look at its image, or leave it out."
        )
