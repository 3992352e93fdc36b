"""Images in an .npz file or a folder, read in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from full_models.generation.images import read_image
from gmm_guidance._runtime.npz import headers, read_batches

_SUFFIXES = (".png", ".jpg", ".jpeg")
_KEY = "arr_0"


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Images of one size.

    Attributes:
        count: number of images.
        batches: of a size: the images in order, uint8 ``[n, H, W, 3]``.
    """

    count: int
    batches: Callable[[int], Iterator[np.ndarray]]


def open_images(path: Path) -> ImageSource:
    """The images of an .npz file, or all PNG and JPEG files in a folder.

    Args:
        path: a file with ``arr_0``, uint8 ``[n, H, W, 3]`` (or 1 for gray); or a
            folder, whose images are taken in the order of their paths, subfolders
            included. Gray images get three equal channels, transparency is dropped.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if there are no images; when reading, also if images are damaged or
            differ in size.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}.")
    return _in_folder(path) if path.is_dir() else _in_npz(path)


def _in_npz(path: Path) -> ImageSource:
    found = headers(path)
    if _KEY not in found:
        raise ValueError(
            f"{path} must hold images as {_KEY}; found "
            f"{', '.join(sorted(found)) or 'none'}."
        )
    shape, _, dtype = found[_KEY]
    images = len(shape) == 4 and shape[-1] in (1, 3) and 0 not in shape
    if not images or dtype != np.uint8:
        raise ValueError(
            f"{path}: {_KEY} must be images, uint8 [n, H, W, 3], got {dtype} {shape}."
        )

    def batches(size: int) -> Iterator[np.ndarray]:
        for part in read_batches(path, _KEY, size):
            yield np.ascontiguousarray(np.broadcast_to(part, (*part.shape[:3], 3)))

    return ImageSource(shape[0], batches)


def _in_folder(folder: Path) -> ImageSource:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(
            f"{folder} must hold images ({', '.join(_SUFFIXES)}), but has none."
        )

    def batches(size: int) -> Iterator[np.ndarray]:
        first = _read(files[0]).shape[:2]
        for start in range(0, len(files), size):
            images = []
            for file in files[start : start + size]:
                images.append(_read(file))
                if images[-1].shape[:2] != first:
                    raise ValueError(
                        f"all images of {folder} must be of one size; {file} is "
                        f"{images[-1].shape[:2]}, those before are {first} (height, "
                        f"width). Resize them, or move it elsewhere."
                    )
            yield np.stack(images)

    return ImageSource(len(files), batches)


def _read(file: Path) -> np.ndarray:
    """One image, uint8 ``[H, W, 3]``."""
    image = read_image(file)
    if image.mode[0] in "IF":  # converting these cuts values above 255
        raise ValueError(
            f"{file} must have 8 bits for each channel, but its mode is "
            f"{image.mode}; convert it."
        )
    return np.asarray(image.convert("RGB"))
