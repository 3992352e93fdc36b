"""Temporal statistics of videos, by which guidance rules are compared."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (Rec. 601)


class TemporalStatistics(NamedTuple):
    """Statistics of ``n`` videos of ``F`` frames, in the unit of their values.

    Attributes:
        frame_difference: mean absolute difference of consecutive frames, ``[n]``. Both
            motion and flicker raise it.
        flicker: mean absolute second difference of three consecutive frames over two,
            ``[n]``. A value that changes evenly has none, one that alternates by ``a``
            has ``a``, its frame difference.
        sharpness: variance of the Laplacian of the luminance of each frame, ``[n, F]``,
            in squared units.
    """

    frame_difference: np.ndarray
    flicker: np.ndarray
    sharpness: np.ndarray


def temporal_statistics(videos: ArrayLike) -> TemporalStatistics:
    """Differences of frames, flicker and sharpness of each video.

    Compare rules on the same seeds and prompts, with ``confidence_interval`` of the
    paired differences: content alone changes these numbers more than guidance does.

    Args:
        videos: ``[n, F, H, W, C]`` with at least 3 frames of at least 3 x 3 pixels and
            1 or 3 channels (red, green, blue); bytes or floats.

    Returns:
        The statistics of each video, float64.

    Raises:
        ValueError: for other shapes, or values that are not finite.
    """
    shape = np.shape(videos)
    if (
        len(shape) != 5
        or min(shape) < 1
        or min(shape[1:4]) < 3
        or shape[4] not in (1, 3)
    ):
        raise ValueError(
            f"videos must have shape [n, F, H, W, 1 or 3] with at least 3 frames of at "
            f"least 3 x 3 pixels, got {shape}."
        )
    rows = [_of_one(np.asarray(video, np.float64)) for video in np.asarray(videos)]
    differences, flickers, sharpness = zip(*rows, strict=True)
    return TemporalStatistics(
        np.array(differences), np.array(flickers), np.stack(sharpness)
    )


def _of_one(video: np.ndarray) -> tuple[float, float, np.ndarray]:
    if not np.isfinite(video).all():
        raise ValueError(
            "videos must be finite, got NaN or infinite values; count such videos as "
            "failures of the sampler and pass the rest."
        )
    changes = np.diff(video, axis=0)
    gray = video @ np.array(_LUMINANCE) if video.shape[-1] == 3 else video[..., 0]
    center = gray[:, 1:-1, 1:-1]
    laplacian = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1]
    laplacian = laplacian + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:] - 4.0 * center
    return (
        float(np.abs(changes).mean()),
        float(np.abs(np.diff(changes, axis=0)).mean() / 2.0),
        laplacian.var(axis=(1, 2)),
    )
