"""Complete sets in the forms that evaluators read, in the memory of one shard."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from full_models.generation.images import save_png
from full_models.generation.shard_set import MANIFEST, ShardSet
from full_models.generation.videos import save_mp4
from gmm_guidance._runtime.files import atomic, atomic_folder, locked_folder

PackLayout = Literal["npz", "folder", "by-label"]
Progress = Callable[[int], None]


def complete_set(folder: Path) -> ShardSet:
    """The set of a directory in which every shard has a record.

    Raises:
        FileNotFoundError: if there is no plan.
        ValueError: if the plan is damaged, or records or the manifest are missing.
    """
    found = ShardSet.read(folder)
    if found is None:
        raise FileNotFoundError(
            f"{folder} holds no set of samples; make one with full-models generate."
        )
    shards = found.shards()
    absent = [s.name for s in shards if not found.record_path(s).exists()]
    if absent or not (folder / MANIFEST).exists():
        raise ValueError(
            f"{folder} is not complete: {len(absent)} of {len(shards)} shards are "
            f"missing ({', '.join(absent[:3])}{'...' if len(absent) > 3 else ''}); "
            f"resume it with generate --resume."
        )
    return found


def pack(
    folder: Path, out: Path, layout: PackLayout, progress: Progress, fps: int = 16
) -> Path:
    """Write a complete set in one of the layouts; returns the file or folder.

    - ``"npz"``: ``samples_<n>x<H>x<W>x3.npz`` with ``arr_0`` uint8 ``[n, H, W, 3]``, as
      ADM's evaluator and others read it, and ``labels``; gray images are repeated in
      three channels.
    - ``"folder"``: ``images/<index>.png``.
    - ``"by-label"``: ``images/<label>/<index>.png``.

    Videos are ``arr_0`` ``[n, F, H, W, 3]``, or ``videos/<index>.mp4``.

    Args:
        folder: the directory of ``generate``.
        out: folder for the result.
        layout: see above.
        progress: called with the number of images done.
        fps: frames a second of mp4 files.

    Raises:
        ImportError: for mp4 files, without PyAV.
        FileNotFoundError: if there is no set.
        FileExistsError: if the result is there already.
        BlockingIOError: if another process holds the directory.
        ValueError: if the set is not complete, a shard is damaged, or it has no images.
    """
    with contextlib.ExitStack() as stack:
        if os.access(folder, os.W_OK):  # else nobody changes it meanwhile
            stack.enter_context(locked_folder(folder))
        return _pack(complete_set(folder), out, layout, progress, fps)


def _pack(
    found: ShardSet, out: Path, layout: PackLayout, progress: Progress, fps: int
) -> Path:
    first = found.read_shard(found.shards()[0]).images
    if first is None:
        raise ValueError(
            f"{found.out} holds latents without images; generate it with --vae to pack "
            f"it."
        )
    shape = (found.num, *first.shape[1:-1], 3)
    name = "videos" if first.ndim == 5 else "images"
    if layout == "npz":
        name = f"samples_{'x'.join(map(str, shape))}.npz"
    path = out / name
    if path.exists():
        raise FileExistsError(f"{path} exists already; delete it, or choose --out.")
    out.mkdir(parents=True, exist_ok=True)
    images = _images(found, first.shape[1:], progress)
    if layout == "npz":
        with atomic(path) as temporary:
            _write_npz(temporary, shape, found.labels, images)
    else:
        with atomic_folder(path) as temporary:
            _write_folder(temporary, found.labels, images, layout == "by-label", fps)
    return path


def _images(
    found: ShardSet, shape: tuple[int, ...], progress: Progress
) -> Iterator[np.ndarray]:
    """The images of each shard in turn, all of one shape."""
    for shard in found.shards():
        images = found.read_shard(shard).images
        if images is None or images.shape[1:] != shape:
            raise ValueError(
                f"{found.path(shard)} is damaged or of another kind: its images must "
                f"be {shape}, as those of the first shard, got "
                f"{None if images is None else images.shape[1:]}; make it again with "
                f"generate --resume."
            )
        yield images
        progress(shard.first + shard.count)


def _write_npz(
    path: Path,
    shape: tuple[int, ...],
    labels: np.ndarray,
    images: Iterator[np.ndarray],
) -> None:
    """As ``np.savez(path, arr_0=images, labels=labels)``, shard by shard."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in images:
                file.write(np.ascontiguousarray(_in_color(part)).data)
        with archive.open("labels.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, labels, allow_pickle=False)


def _write_folder(
    folder: Path,
    labels: np.ndarray,
    images: Iterator[np.ndarray],
    by_label: bool,
    fps: int,
) -> None:
    index = 0
    for part in images:
        for image in part:
            place = folder / str(labels[index]) if by_label else folder
            place.mkdir(exist_ok=True)
            if image.ndim == 4:
                save_mp4(place / f"{index:09d}.mp4", image, fps)
            else:
                save_png(place / f"{index:09d}.png", image)
            index += 1


def _in_color(images: np.ndarray) -> np.ndarray:
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
