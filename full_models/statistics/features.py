"""Features of images: extracted by a custom function, kept in .npz files."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gmm_guidance._runtime.files import atomic
from gmm_guidance._runtime.npz import headers, read_array
from gmm_guidance.metrics import FeatureMoments, feature_moments

#: Takes uint8 images ``[n, H, W, 3]``; returns features ``[n, d]``, or these and logits
#: ``[n, classes]``. Anything that NumPy reads as an array will do.
Extractor = Callable[[np.ndarray], Any]

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
        origin: where the set comes from, for messages.

    Raises:
        ValueError: if a shape does not fit, there are fewer than 2 samples, a value is
            not finite, or too little or too much is given.
    """

    features: np.ndarray | None = None
    logits: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    mu: np.ndarray | None = None
    sigma: np.ndarray | None = None
    origin: str = "the features"

    def __post_init__(self) -> None:
        if (self.mu is None) != (self.sigma is None):
            raise ValueError(
                f"{self.origin} must hold mu and sigma together, but one is missing."
            )
        if (self.mu is None) == (self.features is None):
            raise ValueError(
                f"{self.origin} must hold either features or mu and sigma, got "
                f"{'neither' if self.mu is None else 'both'}."
            )
        if self.logits is not None and self.probabilities is not None:
            raise ValueError(
                f"{self.origin} must hold logits or probabilities, got both; leave one "
                f"out."
            )
        if self.features is None:
            self.moments()  # checks mean and covariance
        for name in ("features", *_PREDICTION_KEYS):
            self._check_matrix(name, getattr(self, name))

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
            # Their number is unknown; it matters for merging only.
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

    def _check_matrix(self, name: str, array: np.ndarray | None) -> None:
        if array is None:
            return
        columns = "d" if name == "features" else "classes"
        finite = np.ones(0, np.bool_)
        if array.ndim != 2 or 0 in array.shape[1:]:
            fault = f"have shape [n, {columns}], got {array.shape}; reshape them"
        elif array.dtype.kind not in "fiu":
            fault = f"be real numbers, got {array.dtype}; store them as float32"
        elif len(array) < 2:
            fault = f"be of at least 2 samples, got {len(array)}; fewer have no spread"
        elif not (finite := np.isfinite(array).all(axis=1)).all():
            fault = (
                f"be finite; {int((~finite).sum())} of {len(array)} rows hold NaN or "
                f"infinity, the first is row {int(np.argmin(finite))}. Look at its "
                f"image, or leave it out"
            )
        elif self.count not in (None, len(array)):
            fault = (
                f"have a row for each of the {self.count} features, got {len(array)}; "
                f"extract both from the same images"
            )
        else:
            return
        raise ValueError(f"{self.origin}: {name} must {fault}.")


def load_features(path: str | os.PathLike) -> FeatureSet:
    """Read an .npz file of features or of their moments.

    The first that exists is read: ``features``, ``pool_3``, a two-dimensional
    ``arr_0``, all ``[n, d]``; else the moments ``mu`` ``[d]`` and ``sigma`` ``[d, d]``,
    as in the reference files of the field's evaluators. ``logits`` or
    ``probabilities``, ``[n, classes]``, may come with either. Other arrays, such as the
    images of a reference file, are not read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds none of these, or is no ``FeatureSet``.
    """
    path = Path(path)
    found = headers(path)
    names = {name: name for name in _PREDICTION_KEYS if name in found}
    images = "arr_0" in found and len(found["arr_0"].shape) != 2
    keys = [k for k in _FEATURE_KEYS if k in found and not (k == "arr_0" and images)]
    moments = {key: key for key in _MOMENT_KEYS if key in found}
    if keys:
        names["features"] = keys[0]
    elif moments:
        names |= moments
    elif images:
        raise ValueError(
            f"{path} must hold features [n, d], but its arr_0 has shape "
            f"{found['arr_0'].shape}, as images have. Make features of them first: "
            f"full-models features --images {path} --using package.module:function "
            f"--out features.npz."
        )
    else:
        raise ValueError(
            f"{path} must hold an array features, pool_3 or arr_0 of shape [n, d], or "
            f"mu and sigma; found {', '.join(sorted(found)) or 'none'}. Rename one, or "
            f"make features with full-models features."
        )
    arrays: dict[str, Any] = {n: read_array(path, key) for n, key in names.items()}
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
    names = ("features", *_PREDICTION_KEYS, *_MOMENT_KEYS)
    arrays = {name: getattr(features, name) for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        np.savez(temporary, **{n: a for n, a in arrays.items() if a is not None})
    return path


def extract_features(
    function: Extractor,
    batches: Iterable[np.ndarray],
    progress: Callable[[int], None] = lambda done: None,
) -> FeatureSet:
    """Run images through a function, batch by batch; only the results are kept.

    Args:
        function: see ``Extractor``.
        batches: the images.
        progress: called with the number of images done.

    Returns:
        The features, in float32 unless the function gives float64.

    Raises:
        ValueError: if the function returns something else, or not the same for each
            batch; if there are fewer than 2 images, or features are not finite.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    done = 0
    for images in batches:
        results = _results(function(images), len(images))
        widths = [[r.shape[1] for r in batch] for batch in (*parts[:1], results)]
        if widths[0] != widths[-1]:
            before, after = (" and ".join(map(str, w)) for w in widths)
            raise ValueError(
                f"the function must return arrays of the same widths for each batch, "
                f"got {before} first and {after} after {done} images."
            )
        parts.append(results)
        done += len(images)
        progress(done)
    if done < 2:
        raise ValueError(f"features need at least 2 images, got {done}.")
    features, *logits = (np.concatenate(part) for part in zip(*parts, strict=True))
    return FeatureSet(
        features, logits[0] if logits else None, origin="what the function returned"
    )


def load_callable(name: str) -> Extractor:
    """The function named ``package.module:function``.

    Raises:
        ValueError: if the name has another form, or what it names is no function.
        ImportError: if the module, or something that it imports, cannot be found, or
            the module has no such function.
    """
    module_name, _, path = name.partition(":")
    if not (module_name and path):
        raise ValueError(
            f"the function must be named as package.module:function, got {name!r}."
        )
    try:
        module = importlib.import_module(module_name)
        found = functools.reduce(getattr, path.split("."), module)
    except ModuleNotFoundError as error:
        # Not when the module is there, but something that it imports is not.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ImportError(
            f"no module {error.name}, which {name} needs; install it, or add its "
            f"folder to PYTHONPATH."
        ) from error
    except AttributeError as error:
        names = [n for n in vars(module) if not n.startswith("_")]
        raise ImportError(
            f"{module_name} has no {path}; it has {', '.join(sorted(names)[:20])}."
        ) from error
    if not callable(found):
        raise ValueError(
            f"{name} must be a function of images, but is a {type(found).__name__}."
        )
    return found


def _results(found: Any, count: int) -> tuple[np.ndarray, ...]:
    """Features, and logits if there are any; narrow types widened."""
    results = found if isinstance(found, tuple) else (found,)
    if len(results) not in (1, 2):
        raise ValueError(
            f"the function must return features, or features and logits; got "
            f"{len(results)} results."
        )
    arrays = tuple(map(np.asarray, results))
    for array in arrays:
        if array.ndim != 2 or len(array) != count:
            raise ValueError(
                f"the function must return a row for each image, shape [{count}, d], "
                f"got {array.shape}; flatten what it returns."
            )
    return tuple(
        array.astype(np.float64 if array.dtype == np.float64 else np.float32)
        for array in arrays
    )
