"""Images as bytes, PNG files and grids."""

from __future__ import annotations

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gmm_guidance._runtime.schema import brief

_GAP = 2  # pixels between the images of a grid
_MOST_PIXELS = 1 << 26  # of an image that is read
_SMALLEST = 64  # side of an image in a grid; smaller ones are enlarged


def save_png(path: Path, image: np.ndarray) -> None:
    """Write one image, uint8 ``[H, W, 3]`` or ``[H, W, 1]``."""
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)


def read_image(path: Path) -> Image.Image:
    """One image of at most 2^26 pixels, loaded.

    Raises:
        ValueError: if the file is damaged, no image, or larger.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels")
                image.load()
                return image
    except Exception as error:  # damaged files make Pillow fail in any way
        raise ValueError(
            f"{path} is damaged or no image ({brief(error)}); write it again."
        ) from error


def make_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images ``[n, H, W, C]`` in rows, on white, uint8: ``[H', W', C]``.

    Images too small to be seen are enlarged, each pixel to a square.
    """
    factor = max(1, _SMALLEST // max(images.shape[1:3]))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    shape = (
        rows * (height + _GAP) - _GAP,
        columns * (width + _GAP) - _GAP,
        channels,
    )
    grid = np.full(shape, 255, np.uint8)
    for index, image in enumerate(images):
        top = index // columns * (height + _GAP)
        left = index % columns * (width + _GAP)
        grid[top : top + height, left : left + width] = image
    return grid


def grid_columns(num_images: int, num_labels: int) -> int:
    """Columns of a nearly square grid in which each column has one label.

    Images come with the labels in turn, so that this is so for multiples of the number
    of labels.
    """
    square = max(1, round(num_images**0.5))
    if num_labels > num_images or num_labels > 2 * square:
        return square
    return num_labels * max(1, round(square / num_labels))


def to_uint8(images: jax.typing.ArrayLike) -> jax.Array:
    """Values in [-1, 1] as bytes; those beyond are clipped."""
    scaled = (jnp.asarray(images, jnp.float32) + 1.0) * 127.5
    return jnp.clip(jnp.round(scaled), 0, 255).astype(jnp.uint8)
