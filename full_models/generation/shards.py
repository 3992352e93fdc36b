"""Shards: written whole, and known by their checksum."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from full_models.generation.images import save_png
from full_models.generation.plan import Plan, Shard
from gmm_guidance._runtime.files import atomic, atomic_folder, to_disk, write_text

_CHUNK = 1 << 22


class ShardArrays(NamedTuple):
    """What a shard holds.

    Attributes:
        labels: int32 ``[n]``.
        images: bytes ``[n, H, W, C]``, or ``None``.
        samples: as the model has them, float32 ``[n, h, w, c]``, or ``None``.
    """

    labels: np.ndarray
    images: np.ndarray | None
    samples: np.ndarray | None


def shard_path(out: Path, plan: Plan, shard: Shard) -> Path:
    """The shard's file, or folder of PNG files."""
    return out / (shard.name + (".npz" if plan.format == "npz" else ""))


def record_path(out: Path, shard: Shard) -> Path:
    """The shard's record: what makes it count as complete."""
    return out / f"{shard.name}.json"


def write_shard(out: Path, plan: Plan, shard: Shard, arrays: ShardArrays) -> None:
    """Write a shard, then its record; each appears by a rename, replacing a former one.

    Raises:
        OSError: if the disk is full, or not writable.
    """
    path = shard_path(out, plan, shard)
    record_path(out, shard).unlink(missing_ok=True)
    _remove(path)
    indices = np.arange(shard.first, shard.first + shard.count)
    if plan.format == "npz":
        named = {"arr_0": arrays.images, "samples": arrays.samples}
        kept = {name: a for name, a in named.items() if a is not None}
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                labels=arrays.labels,
                index=indices,
                **kept,
            )
    else:
        with atomic_folder(path) as temporary:
            for name, image in zip(
                image_names(indices, arrays.labels), _images(arrays), strict=True
            ):
                save_png(temporary / name, image)
                to_disk(temporary / name)
    record = {
        "first": shard.first,
        "count": shard.count,
        "file": path.name,
        "sha256": checksum(path),
    }
    write_text(record_path(out, shard), json.dumps(record) + "\n")


def image_names(indices: np.ndarray, labels: np.ndarray) -> list[str]:
    """Names of single images: index and label."""
    return [f"{i:09d}-{c}.png" for i, c in zip(indices, labels, strict=True)]


def checksum(path: Path) -> str:
    """SHA-256 of a file; of a folder, of its files' names and contents."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def shard_record(out: Path, shard: Shard) -> dict[str, Any] | None:
    """The record of a shard, if there is a sound one."""
    try:
        record = json.loads(record_path(out, shard).read_text())
        whole = (record["first"], record["count"]) == (shard.first, shard.count)
        return record if whole and isinstance(record["sha256"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def shard_fault(out: Path, plan: Plan, shard: Shard) -> str | None:
    """What is wrong with a shard: ``"absent"``, ``"damaged"``, or nothing."""
    path = shard_path(out, plan, shard)
    record = shard_record(out, shard)
    if not path.exists():
        return "absent"
    if record is None:  # killed between the shard and its record, or damaged
        return "absent" if not record_path(out, shard).exists() else "damaged"
    try:
        return None if checksum(path) == record["sha256"] else "damaged"
    except OSError:
        return "damaged"


def read_shard(out: Path, plan: Plan, shard: Shard) -> ShardArrays:
    """The arrays of a shard, its checksum verified.

    Raises:
        ValueError: if it is absent or damaged.
    """
    fault = shard_fault(out, plan, shard)
    if fault is not None:
        raise ValueError(
            f"{shard_path(out, plan, shard)} is {fault}; run generate with --resume to "
            f"make it again."
        )
    path = shard_path(out, plan, shard)
    if plan.format == "npz":
        with np.load(path, allow_pickle=False) as file:
            return ShardArrays(
                file["labels"],
                file["arr_0"] if "arr_0" in file else None,
                file["samples"] if "samples" in file else None,
            )
    labels = plan.labels[shard.first : shard.first + shard.count]
    return ShardArrays(labels, np.stack(list(_read_images(path))), None)


def remove_leftovers(out: Path) -> None:
    """Remove what killed writers left under temporary names."""
    for path in out.glob(".partial-*"):
        _remove(path)


def _images(arrays: ShardArrays) -> np.ndarray:
    if arrays.images is None:
        raise ValueError(
            "PNG shards need images, but these are latents; name a VAE with --vae, or "
            "use --format npz."
        )
    return arrays.images


def _read_images(path: Path) -> Iterator[np.ndarray]:
    for file in sorted(path.iterdir()):
        with Image.open(file) as image:
            pixels = np.asarray(image)
        yield pixels if pixels.ndim == 3 else pixels[..., None]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
