"""``Prompts``: embedded prompts, and their files, which NumPy alone reads."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes  # noqa: F401  (NumPy's bfloat16)
import msgspec
import numpy as np
import safetensors

from gmm_guidance._runtime.checks import as_path
from gmm_guidance._runtime.schema import (
    Object,
    checked,
    damaged,
    parse_json,
    read_json,
    unsealed,
)
from gmm_guidance._runtime.tensor_files import check_array, read_checksums

KIND = "full_models prompts"
VERSION = 1
INDEX = "index.json"
# Features of the states of T5; the CLIP part of SD3 is filled up with zeros to them.
NEGATIVE = "negative."


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts as text encoders return them: the labels of a text-to-image model.

    Attributes:
        context: states of the tokens of each prompt, ``[N, S, C]``.
        negative_context: those of the negative prompt, ``[S, C]``.
        pooled: a vector for each prompt, ``[N, P]``; none for Wan.
        negative_pooled: that of the negative prompt, ``[P]``.
        family: the family they were embedded for (``"sd3"``, ``"flux1"``, ``"wan"``),
            which a model then requires; any if ``None``.
        texts: the prompts in words, ``N``, for file names and records.
        ids: names of the prompts, ``N``.

    Raises:
        ValueError: if the numbers of prompts differ.
    """

    context: Any
    negative_context: Any
    pooled: Any = None
    negative_pooled: Any = None
    family: str | None = None
    texts: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    def __post_init__(self):
        counts = {
            name: len(value)
            for name in ("context", "pooled", "texts", "ids")
            if (value := getattr(self, name)) is not None and len(value)
        }
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"the numbers of prompts must agree, got "
                f"{', '.join(f'{n} for {name}' for name, n in counts.items())}; embed "
                f"them again."
            )

    def __len__(self) -> int:
        return len(self.context)


def load_prompts(path: str | os.PathLike) -> Prompts:
    """Read the prompts of ``full-models embed-prompts``.

    Args:
        path: a safetensors file, or the folder of several with their ``index.json``.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: if it is no file of prompts, is incomplete, or of another version.
    """
    path = as_path(path)
    if path.is_dir():
        index = path / INDEX
        if not index.is_file():
            raise ValueError(
                f"{path} must hold an {INDEX}, which embed-prompts writes last; run "
                f"the command again to complete it."
            )
        found = checked(unsealed(read_json(index, Object), index), _Index, index)
        if any(Path(shard).name != shard for shard in found.shards):
            raise damaged(index, "it points out of its folder")
        return _joined([_read(path / shard) for shard in found.shards], path)
    if not path.is_file():
        raise FileNotFoundError(f"no prompts at {path}.")
    return _read(path)


def to_context(family: str, tensors: dict[str, np.ndarray], start: str = "") -> Any:
    """The context ``[N, S, C]`` of a family from what its encoders return.

    For SD3 CLIP's states come first, filled up with zeros to the width of T5's (Esser
    et al. 2024, arXiv 2403.03206, Sec. 4). For others the context is T5's.
    """
    t5 = tensors[f"{start}t5"]
    if family != "sd3":
        return t5
    clip = tensors[f"{start}clip"]
    filled = np.zeros((*clip.shape[:2], t5.shape[2]), t5.dtype)
    filled[..., : clip.shape[2]] = clip.astype(t5.dtype)
    return np.concatenate([filled, t5], axis=1)


class _Index(msgspec.Struct):
    """Content of the index of several files."""

    kind: str
    shards: Annotated[list[str], msgspec.Meta(min_length=1)]


def _read(path: Path) -> Prompts:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            sums = read_checksums(metadata, path)
            tensors = {
                name: check_array(name, file.get_tensor(name), sums, path)
                for name in file.keys()  # noqa: SIM118
            }
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({error}); embed the prompts "
            f"again."
        ) from error
    if metadata.get("kind") != KIND or metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path} must be a file of prompts of version {VERSION}, got kind "
            f"{metadata.get('kind')!r}, version {metadata.get('version')!r}; write it "
            f"by full-models embed-prompts."
        )
    family = metadata.get("family", "")
    texts, ids = (
        tuple(parse_json(metadata.get(name, ""), list[str], path))
        for name in ("prompts", "ids")
    )
    needed = {"t5", *(("clip",) if family == "sd3" else ())}
    needed |= {"pooled"} if family in ("sd3", "flux1") else set()
    needed |= {NEGATIVE + name for name in needed}
    if missing := sorted(needed - tensors.keys()):
        raise ValueError(
            f"{path} must have {', '.join(missing)}; embed the prompts again."
        )
    for name in needed:
        if tensors[name].ndim != (2 if name.endswith("pooled") else 3):
            raise damaged(path, f"{name} has the shape {tensors[name].shape}")
        rows = 1 if name.startswith(NEGATIVE) else len(texts)
        if len(tensors[name]) != rows:
            raise ValueError(
                f"{path} must have {rows} rows of {name}, one for each prompt, got "
                f"{len(tensors[name])}; embed the prompts again."
            )
    for name in ("t5", "clip"):
        if name in needed and tensors[name].shape[1:] != (
            found := tensors[NEGATIVE + name].shape[1:]
        ):
            raise ValueError(
                f"{path}: {name} has the shape {tensors[name].shape[1:]} for prompts, "
                f"but {found} for the negative one; embed both with the same lengths."
            )
    pooled = "pooled" in needed
    return Prompts(
        to_context(family, tensors),
        to_context(family, tensors, NEGATIVE)[0],
        tensors["pooled"] if pooled else None,
        tensors[f"{NEGATIVE}pooled"][0] if pooled else None,
        family,
        texts,
        ids,
    )


def _joined(parts: list[Prompts], path: Path) -> Prompts:
    first = parts[0]
    for part in parts:
        same = np.array_equal(part.negative_context, first.negative_context)
        if part.family != first.family or not same:
            raise ValueError(
                f"the files of {path} must be of one family with one negative prompt; "
                f"embed the prompts again, into an empty folder."
            )
    has_pooled = first.pooled is not None
    return dataclasses.replace(
        first,
        context=np.concatenate([part.context for part in parts]),
        pooled=np.concatenate([p.pooled for p in parts]) if has_pooled else None,
        texts=sum((part.texts for part in parts), ()),
        ids=sum((part.ids for part in parts), ()),
    )
