"""``ShardSet``: a large set of samples in a directory, planned first, kept in shards.

::

    plan.json           what the samples depend on, number and size of the shards
    labels.npy          the label of each sample
    shard-00000.npz     arr_0 (images), samples (latents), labels, index
    shard-00000.json    first index, count and SHA-256 of the shard
    manifest.json       the plan and all records; there when the set is complete

Each file appears by a rename when all of it is written. A shard counts when its record
is there and the checksums agree; the record is written after the shard.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.lib import format as npy

from full_models.generation.images import read_image, save_png
from gmm_guidance._runtime.files import (
    atomic,
    atomic_folder,
    jsonable,
    sha256,
    to_disk,
    write_text,
)
from gmm_guidance._runtime.npz import DAMAGE, headers, read_array
from gmm_guidance._runtime.schema import (
    Count,
    Index,
    Object,
    Sha256,
    brief,
    damaged,
    read_json,
)
from gmm_guidance._runtime.tensor_files import differences

ShardFormat = Literal["npz", "png"]
PLAN, LABELS, MANIFEST = "plan.json", "labels.npy", "manifest.json"
_KIND = "full_models generation"
_REMEDIES = {"latents": "name an autoencoder with --vae, or ", "videos": ""}


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part ``number`` of a set: ``count`` samples from global index ``first`` on."""

    number: int
    first: int
    count: int

    @property
    def name(self) -> str:
        """Name of its files, without suffix."""
        return f"shard-{self.number:05d}"


class ShardArrays(NamedTuple):
    """Content of a shard.

    Attributes:
        labels: int32 ``[n]``.
        images: bytes ``[n, H, W, C]``, of videos ``[n, F, H, W, C]``, or ``None``.
        samples: as the model has them, float32 ``[n, (t,) h, w, c]``, or ``None``.
    """

    labels: np.ndarray
    images: np.ndarray | None
    samples: np.ndarray | None


class _Plan(msgspec.Struct, forbid_unknown_fields=True):
    """Content of ``plan.json``."""

    kind: Literal["full_models generation"]
    run: Object
    num: Count
    shard_size: Count
    format: ShardFormat
    labels_sha256: Sha256


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    """Content of the record of a shard."""

    first: Index
    count: Count
    file: str
    sha256: Sha256


class ShardSet:
    """A planned set of samples in a directory.

    Args:
        out: the directory.
        run: what the samples depend on; kept as JSON.
        labels: label of each sample, ``[num]``.
        shard_size: samples in each shard but the last, at least 1.
        format: ``"npz"``, a file for each shard, or ``"png"``, a folder of images.

    Raises:
        ValueError: for no labels, or shards of no samples.
    """

    def __init__(
        self,
        out: Path,
        run: dict[str, Any],
        labels: np.ndarray,
        shard_size: int,
        format: ShardFormat,
    ):
        if shard_size < 1 or not len(labels):
            raise ValueError(
                f"shard_size and the number of samples must be at least 1, got "
                f"{shard_size} and {len(labels)}."
            )
        self.out = Path(out)
        self.run = json.loads(json.dumps(jsonable(run), default=str))
        self.labels = np.asarray(labels, np.int32)
        self.shard_size = shard_size
        self.format = format

    @classmethod
    def read(cls, out: Path) -> ShardSet | None:
        """The set that a directory holds; ``None`` if it has no plan.

        Raises:
            ValueError: if the plan is damaged.
        """
        path = out / PLAN
        if not path.exists():
            return None
        try:
            plan = read_json(path, _Plan)
            labels = _read_labels(out / LABELS, plan.num)
            result = cls(out, plan.run, labels, plan.shard_size, plan.format)
            if result.description() != msgspec.to_builtins(plan):
                raise ValueError(f"{path} and {LABELS} do not belong together.")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{error} Delete the directory, or choose another with --out."
            ) from error
        return result

    @property
    def num(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def shards(self) -> list[Shard]:
        """All shards, in order."""
        return [
            Shard(number, first, min(self.shard_size, self.num - first))
            for number, first in enumerate(range(0, self.num, self.shard_size))
        ]

    def description(self) -> dict[str, Any]:
        """The plan as JSON; labels by their checksum."""
        return {
            "kind": _KIND,
            "run": self.run,
            "num": self.num,
            "shard_size": self.shard_size,
            "format": self.format,
            "labels_sha256": hashlib.sha256(self.labels.tobytes()).hexdigest(),
        }

    def is_begun(self, resume: bool) -> bool:
        """Whether the directory already holds this very plan.

        Raises:
            FileExistsError: if it holds another one, whose differences are named; this
                one without ``resume``; or foreign files.
            ValueError: if its plan is damaged.
        """
        found = ShardSet.read(self.out)
        if found is None:
            names = {p.name for p in self.out.iterdir() if not p.name.startswith(".")}
            if names - {LABELS}:
                raise FileExistsError(
                    f"{self.out} must be empty or hold this run, found "
                    f"{', '.join(sorted(names)[:3])}; choose another with --out."
                )
            return False
        differing = differences(self.description(), found.description())
        if differing:
            raise FileExistsError(
                f"{self.out} holds another run: {'; '.join(differing[:6])}. Choose "
                f"another directory with --out, or delete this one."
            )
        if not resume:
            raise FileExistsError(
                f"{self.out} already holds this run; add --resume to resume it, or "
                f"delete it."
            )
        return True

    def write_plan(self) -> None:
        """Write the labels, then the plan that makes them count."""
        with atomic(self.out / LABELS) as temporary, temporary.open("wb") as file:
            np.save(file, self.labels, allow_pickle=False)
        write_text(self.out / PLAN, json.dumps(self.description(), indent=1) + "\n")

    def write(self, shard: Shard, arrays: ShardArrays) -> None:
        """Write a shard, then its record, in place of former ones.

        Raises:
            ValueError: for PNG files without images.
            OSError: if the disk is full or not writable.
        """
        path = self.path(shard)
        self.record_path(shard).unlink(missing_ok=True)
        _remove(path)
        index = np.arange(shard.first, shard.first + shard.count)
        if self.format == "npz":
            named = {"arr_0": arrays.images, "samples": arrays.samples}
            kept: dict[str, Any] = {n: a for n, a in named.items() if a is not None}
            kept |= {"labels": arrays.labels, "index": index}
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **kept)
        elif arrays.images is None or arrays.images.ndim != 4:
            what = "latents" if arrays.images is None else "videos"
            raise ValueError(
                f"PNG shards hold images, but these are {what}; "
                f"{_REMEDIES[what]}use --format npz."
            )
        else:
            with atomic_folder(path) as temporary:
                named_images = zip(index, arrays.labels, arrays.images, strict=True)
                for number, label, image in named_images:
                    file_path = temporary / f"{number:09d}-{label}.png"
                    save_png(file_path, image)
                    to_disk(file_path)
        record = {
            "first": shard.first,
            "count": shard.count,
            "file": path.name,
            "sha256": sha256(path),
        }
        write_text(self.record_path(shard), json.dumps(record) + "\n")

    def read_shard(self, shard: Shard) -> ShardArrays:
        """The arrays of a shard, whose checksum is verified.

        Raises:
            ValueError: if it is absent or damaged, or holds something else.
        """
        path, fault = self.path(shard), self.fault(shard)
        labels = self.labels[shard.first : shard.first + shard.count]
        try:
            if fault is not None:
                raise ValueError(f"{path} is {fault}.")
            if self.format == "npz":
                found = _read_npz(path, shard.count)
            else:
                found = ShardArrays(labels, _read_pngs(path, shard, labels), None)
            if not np.array_equal(found.labels, labels):
                raise damaged(path, "its labels are not those of the plan")
        except ValueError as error:
            raise ValueError(
                f"{error} Run generate with --resume to make it again."
            ) from error
        return found

    def fault(self, shard: Shard) -> str | None:
        """``"absent"`` or ``"damaged"`` if a shard does not count, else ``None``."""
        if not self.path(shard).exists():
            return "absent"
        record = self.record(shard)
        if record is None:  # killed between the shard and its record, or damaged
            return "damaged" if self.record_path(shard).exists() else "absent"
        try:
            intact = sha256(self.path(shard)) == record["sha256"]
        except OSError:
            intact = False
        return None if intact else "damaged"

    def record(self, shard: Shard) -> dict[str, Any] | None:
        """The record of a shard, if there is a sound one."""
        try:
            record = read_json(self.record_path(shard), _Record)
        except (OSError, ValueError):
            return None
        found = (record.first, record.count, record.file)
        whole = found == (shard.first, shard.count, self.path(shard).name)
        return msgspec.to_builtins(record) if whole else None

    def path(self, shard: Shard) -> Path:
        """The file of a shard, or its folder of PNG files."""
        return self.out / (shard.name + (".npz" if self.format == "npz" else ""))

    def record_path(self, shard: Shard) -> Path:
        """The file of a shard's record."""
        return self.out / f"{shard.name}.json"

    def num_done(self) -> int:
        """Samples in shards that have a record; nothing else is read."""
        shards = self.shards()
        return sum(s.count for s in shards if self.record(s) is not None)

    def is_complete(self) -> bool:
        """Whether all records and the manifest are there."""
        return self.num_done() == self.num and (self.out / MANIFEST).exists()

    def write_manifest(self) -> Path:
        """Bind all shards by the manifest.

        Raises:
            ValueError: if shards are missing.
        """
        records = [self.record(shard) for shard in self.shards()]
        if not all(records):
            raise ValueError(
                f"shards of {self.out} vanished while it was filled; run generate with "
                f"--resume to make them again."
            )
        content = {**self.description(), "shards": records}
        return write_text(self.out / MANIFEST, json.dumps(content, indent=1) + "\n")

    def remove_leftovers(self) -> None:
        """Remove the temporary files of killed writers."""
        for path in self.out.glob(".partial-*"):
            _remove(path)


def _read_labels(path: Path, num: int) -> np.ndarray:
    """int32 ``[num]``, each at least 0."""
    with path.open("rb") as file:
        try:
            if npy.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            shape, _, dtype = npy.read_array_header_1_0(file)
            if shape != (num,) or dtype != np.int32:
                raise ValueError(f"it must hold int32 [{num}], got {dtype} {shape}")
            labels = np.frombuffer(file.read(), np.int32)
            if len(labels) != num or (labels < 0).any():
                raise ValueError(f"it must hold {num} labels of at least 0")
        except DAMAGE as error:
            raise damaged(path, brief(error)) from error
    return labels


def _read_npz(path: Path, count: int) -> ShardArrays:
    """The arrays of a shard; types and shapes are checked before they are read."""
    found = headers(path)
    wanted = {
        "labels": lambda a: a.dtype == np.int32 and a.shape == (count,),
        "arr_0": lambda a: a.dtype == np.uint8 and len(a.shape) in (4, 5),
        "samples": lambda a: a.dtype == np.float32 and len(a.shape) in (4, 5),
    }
    present = [name for name in wanted if name in found]
    if "labels" not in present or len(present) < 2:
        raise damaged(path, f"it must hold labels and images, but has {list(found)}")
    for name in present:
        shape, dtype = found[name].shape, found[name].dtype
        channels = name != "arr_0" or shape[-1:] in ((1,), (3,))
        if not wanted[name](found[name]) or shape[0] != count or not channels:
            raise damaged(path, f"its {name} are {dtype} {shape}")
    arrays = {name: read_array(path, name) for name in present}
    return ShardArrays(arrays["labels"], arrays.get("arr_0"), arrays.get("samples"))


def _read_pngs(folder: Path, shard: Shard, labels: np.ndarray) -> np.ndarray:
    names = [f"{shard.first + i:09d}-{label}.png" for i, label in enumerate(labels)]
    if sorted(names) != sorted(file.name for file in folder.iterdir()):
        raise damaged(folder, "its images are not those of the plan")
    images = [read_image(folder / name) for name in names]
    pixels = [i if i.ndim == 3 else i[..., None] for i in map(np.asarray, images)]
    if len({(p.shape, p.dtype.name) for p in pixels}) > 1 or pixels[0].dtype != "uint8":
        raise damaged(folder, "its images are of several kinds")
    return np.stack(pixels)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():  # never what a link leads to
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
