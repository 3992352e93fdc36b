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
from full_models.generation.plan import Plan, read_plan
from full_models.generation.run import MANIFEST
from full_models.generation.shards import read_shard
from gmm_guidance._runtime.directory_lock import DirectoryLock
from gmm_guidance._runtime.files import atomic, atomic_folder

PackLayout = Literal["npz", "folder", "by-label"]
Progress = Callable[[int], None]


def complete_plan(run: Path) -> Plan:
    """The plan of a directory in which every shard is there.

    Raises:
        FileNotFoundError: if there is no plan.
        ValueError: if shards or the manifest are missing.
    """
    plan = read_plan(run)
    if plan is None:
        raise FileNotFoundError(
            f"{run} holds no set of samples; make one with full-models generate."
        )
    absent = [s.name for s in plan.shards() if not (run / f"{s.name}.json").exists()]
    if absent or not (run / MANIFEST).exists():
        raise ValueError(
            f"{run} is not complete: {len(absent)} of {len(plan.shards())} shards are "
            f"missing ({', '.join(absent[:3])}{'...' if len(absent) > 3 else ''}); go "
            f"on with generate --resume."
        )
    return plan


def pack(run: Path, out: Path, layout: PackLayout, progress: Progress) -> Path:
    """Write a complete set in one of the layouts; returns the file or folder.

    - ``"npz"``: ``samples_<n>x<H>x<W>x3.npz`` with ``arr_0`` uint8 ``[n, H, W, 3]``, as
      the evaluators of ADM's kind read it, and ``labels``; grey images are repeated in
      three channels.
    - ``"folder"``: ``images/<index>.png``.
    - ``"by-label"``: ``images/<label>/<index>.png``.

    Args:
        run: the directory of ``generate``.
        out: folder for the result.
        layout: see above.
        progress: told the number of images done.

    Raises:
        FileNotFoundError: if there is no set.
        FileExistsError: if the result is there already.
        BlockingIOError: if a run is at work there.
        ValueError: if the set is not complete, a shard is damaged, or it has no images.
    """
    with contextlib.ExitStack() as stack:
        if os.access(run, os.W_OK):  # else nobody changes it meanwhile
            stack.enter_context(DirectoryLock(run))
        return _pack(run, out, layout, progress)


def _pack(run: Path, out: Path, layout: PackLayout, progress: Progress) -> Path:
    plan = complete_plan(run)
    first = read_shard(run, plan, plan.shards()[0]).images
    if first is None:
        raise ValueError(
            f"{run} holds latents without images; generate it with --vae to pack it."
        )
    height, width = first.shape[1:3]
    shape = (plan.num, height, width, 3)
    name = "images" if layout != "npz" else f"samples_{'x'.join(map(str, shape))}.npz"
    path = out / name
    if path.exists():
        raise FileExistsError(f"{path} is there already; delete it, or choose --out.")
    out.mkdir(parents=True, exist_ok=True)
    images = _images(run, plan, progress)
    if layout == "npz":
        with atomic(path) as temporary:
            _write_npz(temporary, shape, plan.labels, images)
        return path
    with atomic_folder(path) as temporary:
        _write_folder(temporary, plan.labels, images, layout == "by-label")
    return path


def _images(run: Path, plan: Plan, progress: Progress) -> Iterator[np.ndarray]:
    """The images of each shard in turn."""
    for shard in plan.shards():
        images = read_shard(run, plan, shard).images
        if images is None or len(images) != shard.count:
            raise ValueError(f"{run}: {shard.name} does not hold {shard.count} images.")
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
                file.write(np.ascontiguousarray(_in_colour(part)).data)
        with archive.open("labels.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, labels, allow_pickle=False)


def _write_folder(
    folder: Path, labels: np.ndarray, images: Iterator[np.ndarray], by_label: bool
) -> None:
    index = 0
    for part in images:
        for image in part:
            place = folder / str(labels[index]) if by_label else folder
            place.mkdir(exist_ok=True)
            save_png(place / f"{index:09d}.png", image)
            index += 1


def _in_colour(images: np.ndarray) -> np.ndarray:
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
