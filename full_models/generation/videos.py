"""Videos as files: mp4 by PyAV (the extra ``video``), and sheets of frames as PNG."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from full_models.generation.images import make_grid
from gmm_guidance._runtime.files import atomic

# The same for all rules, and part of the record of a run.
WRITER = {"codec": "libx264", "crf": "18", "pixel_format": "yuv420p"}
_SHOWN = 8  # frames of a sheet
_SMALLEST = 96  # side of a video among others; smaller ones are enlarged
_TITLE = 24  # pixels of the line above a column


def has_writer() -> bool:
    """Whether mp4 files can be written: PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def save_mp4(path: Path, frames: np.ndarray, fps: int = 16) -> None:
    """Write a video; nothing is left at the path unless all of it is written.

    H.264 loses a little: 1.5 to 2.5 of 255 on average. Evaluate the bytes instead.

    Args:
        path: file ending in ``.mp4``.
        frames: uint8 ``[F, H, W, 3]`` or ``[F, H, W, 1]``, height and width even.
        fps: frames a second, at least 1.

    Raises:
        ImportError: without PyAV.
        ValueError: for other frames, odd sizes, or no frames a second.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] not in (1, 3):
        raise ValueError(
            f"frames must be uint8 [F, H, W, 3 or 1], got {frames.dtype} "
            f"{frames.shape}."
        )
    count, height, width, _ = frames.shape
    if not count or height % 2 or width % 2:
        raise ValueError(
            f"an mp4 needs frames of even height and width, got {count} of {width} x "
            f"{height}; cut or pad them."
        )
    if fps < 1:
        raise ValueError(f"fps must be at least 1, got {fps}.")
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "mp4 files need PyAV: pip install 'gmm-guidance[video]'. Sheets of frames "
            "and .npz files need nothing more."
        ) from error
    with atomic(path) as partial, av.open(partial, "w", format="mp4") as container:
        stream: Any = container.add_stream(WRITER["codec"], rate=fps)
        stream.width, stream.height = width, height
        stream.pix_fmt, stream.options = WRITER["pixel_format"], {"crf": WRITER["crf"]}
        for frame in np.broadcast_to(frames, (*frames.shape[:3], 3)):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def contact_sheet(videos: np.ndarray, frames: int = _SHOWN) -> np.ndarray:
    """Frames of videos at even times, the first and last among them: one video a row.

    Args:
        videos: uint8 ``[n, F, H, W, C]``.
        frames: at most how many of each.

    Returns:
        An image, uint8 ``[H', W', C]``, for ``save_png``.
    """
    count = min(frames, videos.shape[1])
    chosen = np.round(np.linspace(0, videos.shape[1] - 1, count)).astype(int)
    shown = videos[:, chosen]
    return make_grid(shown.reshape(-1, *shown.shape[2:]), count)


def side_by_side(videos: Mapping[str, np.ndarray]) -> np.ndarray:
    """One video of several rules: a column for each, under its name.

    Args:
        videos: of each rule, by its name, uint8 ``[n, F, H, W, 3 or 1]`` of equal
            shapes; the ``n`` videos of a rule are below each other. Small ones are
            enlarged, each pixel to a square.

    Returns:
        Frames for ``save_mp4``, uint8 ``[F, H', W', 3]`` of even sides.
    """
    _, frames, height, width, _ = next(iter(videos.values())).shape
    factor = max(1, -(-_SMALLEST // min(height, width)))
    columns = []
    for name, several in videos.items():
        large = several.repeat(factor, axis=2).repeat(factor, axis=3)
        column = np.concatenate(list(large), axis=1)
        column = np.broadcast_to(column, (*column.shape[:3], 3))
        title = Image.new("RGB", (column.shape[2], _TITLE), "white")
        ImageDraw.Draw(title).text((4, 4), name, "black", _font())
        above = np.repeat(np.asarray(title)[None], frames, axis=0)
        columns.append(np.concatenate([above, column], axis=1))
    joined = np.concatenate(columns, axis=2)
    odd = [(0, side % 2) for side in joined.shape[1:3]]
    return np.pad(joined, [(0, 0), *odd, (0, 0)], constant_values=255)


def _font() -> Any:
    try:
        return ImageFont.load_default(14)
    except (ImportError, TypeError):  # a Pillow without FreeType
        return ImageFont.load_default()
