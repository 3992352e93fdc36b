"""Images in an .npz file or a folder, read in batches as they are needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from full_models.npz import headers, map_array

_SUFFIXES = (".png", ".jpg", ".jpeg")
_KEY = "arr_0"


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Images that are read when they are asked for.

    Attributes:
        count: number of images.
        read: images from one index up to another, uint8 ``[n, H, W, 3]``.
    """

    count: int
    read: Callable[[int, int], np.ndarray]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """All images in order, ``size`` at once; the last may be fewer."""
        for start in range(0, self.count, size):
            yield self.read(start, min(start + size, self.count))


def open_images(path: Path) -> ImageSource:
    """The images of an .npz file, or all PNG and JPEG files in a folder.

    Args:
        path: a file with ``arr_0``, uint8 ``[n, H, W, 3]`` (or 1 for grey), which is
            read in slices unless it is compressed; or a folder, whose images are taken
            in the order of their paths, those of folders inside of it too. Grey images
            get three equal channels, and transparency is dropped.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if there are no images; when reading, also if images are damaged or
            differ in size.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}.")
    return _open_npz(path)


def _open_npz(path: Path) -> ImageSource:
    header = headers(path).get(_KEY)
    if header is None:
        raise ValueError(
            f"{path} must hold images as {_KEY}; found "
            f"{', '.join(sorted(headers(path))) or 'none'}."
        )
    shape = header.shape
    images = len(shape) == 4 and shape[-1] in (1, 3) and 0 not in shape
    if not images or header.dtype != np.uint8:
        raise ValueError(
            f"{path}: {_KEY} must be images, uint8 [n, H, W, 3], got {header.dtype} "
            f"{shape}."
        )
    array = map_array(path, _KEY)

    def read(start: int, stop: int) -> np.ndarray:
        part = np.ascontiguousarray(array[start:stop])
        return part if part.shape[-1] == 3 else part.repeat(3, axis=-1)

    return ImageSource(len(array), read)


def _open_folder(folder: Path) -> ImageSource:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _SUFFIXES and file.is_file()
    )
    if not files:
        raise ValueError(
            f"{folder} must hold images ({', '.join(_SUFFIXES)}), but has none."
        )
    size: list[tuple[int, int]] = []  # of the first image

    def read(start: int, stop: int) -> np.ndarray:
        images = []
        for file in files[start:stop]:
            image = _read_image(file)
            size[:] = size or [image.shape[:2]]
            if image.shape[:2] != size[0]:
                raise ValueError(
                    f"all images of {folder} must be of one size; {file} is "
                    f"{image.shape[:2]}, those before are {size[0]} (height, width). "
                    f"Resize them, or move it elsewhere."
                )
            images.append(image)
        return np.stack(images)

    return ImageSource(len(files), read)


def _read_image(file: Path) -> np.ndarray:
    """One image, uint8 ``[H, W, 3]``."""
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, ValueError, SyntaxError) as error:  # all of them Pillow's
        raise ValueError(
            f"{file} is damaged or no image ({error}); write it again."
        ) from error
    if image.mode[0] in "IF":  # converting these cuts values above 255
        raise ValueError(
            f"{file} must have 8 bits for each channel, but its mode is "
            f"{image.mode}; convert it."
        )
    return np.asarray(image.convert("RGB"))
