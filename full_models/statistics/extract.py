"""Features of images by a function of the user's own."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from full_models.statistics.feature_files import FeatureSet

#: Takes uint8 images ``[n, H, W, 3]``; returns features ``[n, d]``, or these and logits
#: ``[n, classes]``.
Extractor = Callable[[np.ndarray], Any]


def extract_features(
    function: Extractor,
    batches: Iterable[np.ndarray],
    progress: Callable[[int], None] = lambda done: None,
) -> FeatureSet:
    """Run images through a function, batch by batch; only the results are kept.

    Args:
        function: takes uint8 images ``[n, H, W, 3]``; returns features ``[n, d]``, or a
            pair of features and logits ``[n, classes]``. Anything that NumPy reads as
            an array will do.
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
        if parts and [r.shape[1:] for r in results] != [r.shape[1:] for r in parts[0]]:
            raise ValueError(
                f"the function must return arrays of the same widths for each batch, "
                f"got {_widths(parts[0])} first and {_widths(results)} after {done} "
                f"images."
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
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise ValueError(
            f"the function must be named as package.module:function, got {name!r}."
        )
    module = _import(module_name, name)
    try:
        found = functools.reduce(getattr, path.split("."), module)
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


def _import(module_name: str, name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Not when the module is there, but something that it imports is not.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ImportError(
            f"no module {error.name}, which {name} needs; install it, or add its "
            f"folder to PYTHONPATH."
        ) from error


def _results(found: Any, count: int) -> tuple[np.ndarray, ...]:
    """Features, and logits if there are any."""
    pair = found if isinstance(found, tuple) else (found,)
    if len(pair) not in (1, 2):
        raise ValueError(
            f"the function must return features, or features and logits; got "
            f"{len(pair)} results."
        )
    return tuple(_rows(array, count) for array in pair)


def _rows(values: Any, count: int) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 2 or len(array) != count:
        raise ValueError(
            f"the function must return a row for each image, shape [{count}, d], got "
            f"{array.shape}; flatten what it returns."
        )
    # Narrow types, and those that NumPy does not know by itself, widened.
    return array.astype(np.float64 if array.dtype == np.float64 else np.float32)


def _widths(results: tuple[np.ndarray, ...]) -> str:
    return " and ".join(str(r.shape[1]) for r in results)
