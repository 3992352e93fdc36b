"""Tensors of safetensors files, read one at a time: memory holds them once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import safetensors

from full_models.weights.table import Stored, StoredTensor
from gmm_guidance._runtime.schema import damaged, read_json
from gmm_guidance._runtime.tensor_files import check_array, read_checksums


def read_safetensors(path: str | os.PathLike) -> Stored:
    """The tensors of a safetensors file, or of an index of several (``*.index.json``).

    Raises:
        FileNotFoundError: if there is no such file, or a part is missing.
        ValueError: if a file is truncated or foreign, or an index names a tensor that
            its part does not hold.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}.")
    if path.suffix == ".json":
        return _read_index(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            sums = read_checksums(file.metadata() or {}, path)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: StoredTensor(
                    tuple(part.get_shape()), part.get_dtype(), _reader(path, name, sums)
                )
                for name, part in slices.items()
            }
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({error}); fetch or write it "
            f"again."
        ) from error


def _reader(path: Path, name: str, sums: dict[str, int]) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        # Opened anew for each tensor: a mapping that stays open keeps the pages of all
        # that was read, a second copy of the weights.
        with safetensors.safe_open(path, framework="numpy") as file:
            return check_array(name, file.get_tensor(name), sums, path)

    return read


class _Index(msgspec.Struct):
    """An index of several files; others also hold metadata."""

    weight_map: dict[str, str]


def _read_index(path: Path) -> Stored:
    places = read_json(path, _Index).weight_map
    result: Stored = {}
    for part in sorted(set(places.values())):
        if Path(part).name != part:
            raise ValueError(f"{path} points out of its folder, to {part}.")
        if not part.endswith(".safetensors"):
            raise damaged(path, f"the part {part} is no .safetensors file")
        stored = read_safetensors(path.parent / part)
        expected = {name for name, place in places.items() if place == part}
        if expected != stored.keys():
            differing = sorted(expected ^ stored.keys())
            raise ValueError(
                f"{path} and {part} disagree on {', '.join(differing[:5])}"
                f"{' and others' if len(differing) > 5 else ''}; fetch both again."
            )
        result |= stored
    return result
