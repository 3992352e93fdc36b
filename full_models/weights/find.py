"""Which weights lie at a path: their layout, and what is said of their model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from full_models.models.dit.config import DiTConfig
from full_models.models.dit.diffusers_layout import (
    POSITIONS,
    config_from_diffusers,
    diffusers_layout,
    process_from_diffusers,
)
from full_models.models.dit.infer import infer_shape
from full_models.models.dit.official_layout import official_layout
from full_models.weights.fill import Layout
from full_models.weights.messages import listed
from full_models.weights.native import (
    OFFICIAL,
    described_config,
    native_layout,
    read_description,
)
from full_models.weights.stored import Stored, read_safetensors
from full_models.weights.torch_file import read_torch

DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
_DIFFUSERS_FILES = (
    DIFFUSERS_FILE,
    f"{DIFFUSERS_FILE}.index.json",
    "diffusion_pytorch_model.bin",
)
_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


@dataclasses.dataclass(frozen=True)
class Found:
    """Weights at a path.

    Attributes:
        origin: the file or folder, for messages.
        fields: what is said of the model there: fields of ``DiTConfig``.
        stored: the tensors; ``None`` for a folder of orbax.
        layout: of the configuration and the module's shapes, how they are stored.
        otherwise: fields that hold unless the caller knows better.
    """

    origin: Path
    fields: dict[str, Any]
    stored: Stored | None
    layout: Callable[[DiTConfig, Any], Layout]
    otherwise: dict[str, Any] = dataclasses.field(default_factory=dict)


def find_weights(path: str | os.PathLike, root: str | None = None) -> Found:
    """Look at a file or folder, reading no tensor.

    Args:
        path: what ``load_weights`` takes.
        root: entry of a PyTorch file that holds the weights.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is of none of the known layouts, damaged, or of a model that
            this network cannot express.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}.")
    if path.is_dir():
        return _in_folder(path, root)
    description = read_description(path)
    stored = _read(path, root)
    if description is not None:
        fields = dataclasses.asdict(described_config(description, str(path)))
        if description["kind"] == OFFICIAL:
            return Found(path, fields, stored, _official)
        return Found(path, fields, stored, _native)
    if any(name.startswith("transformer_blocks.") for name in stored):
        return _of_diffusers(path, stored)
    if any(name.startswith(("blocks.", "x_embedder.")) for name in stored):
        return Found(path, infer_shape(stored), stored, _official)
    raise ValueError(
        f"{path} holds no DiT: names of tensors must be those of the published "
        f"checkpoints (x_embedder.proj.weight), of diffusers "
        f"(transformer_blocks.0...) or of export_weights; found {listed([*stored])}."
    )


def _read(path: Path, root: str | None) -> Stored:
    if path.suffix in _TORCH_SUFFIXES:
        return read_torch(path, root)
    if root is not None:
        raise ValueError(
            f"root={root!r} chooses an entry of a PyTorch file, but {path} is none; "
            f"leave it out."
        )
    if path.suffix in (".safetensors", ".json"):
        return read_safetensors(path)
    raise ValueError(
        f"weights must be a folder or a file ending in .safetensors, .index.json, "
        f"{', '.join(_TORCH_SUFFIXES)}, got {path}; rename it."
    )


def _in_folder(folder: Path, root: str | None) -> Found:
    description = read_description(folder)
    if description is not None:
        fields = dataclasses.asdict(described_config(description, str(folder)))
        return Found(folder, fields, None, _native)
    if not (folder / "config.json").is_file():
        if (folder / "transformer" / "config.json").is_file():
            return _in_folder(folder / "transformer", root)
        content = sorted(entry.name for entry in folder.iterdir())
        raise ValueError(
            f"{folder} must be a folder of diffusers (config.json and weights, or "
            f"with a subfolder transformer) or of export_weights; it holds "
            f"{listed(content)}. If the weights are one of these files, name it."
        )
    for name in _DIFFUSERS_FILES:
        if (folder / name).is_file():
            return _of_diffusers(folder / name, _read(folder / name, root))
    raise ValueError(
        f"{folder} has a config.json, but none of {', '.join(_DIFFUSERS_FILES)}; "
        f"complete the download, or name the file of weights itself."
    )


def _of_diffusers(path: Path, stored: Stored) -> Found:
    """Tensors named as diffusers does, with the configuration beside them if any."""
    beside = path.parent / "config.json"
    layout = _diffusers_stored if POSITIONS in stored else _diffusers
    otherwise = {"process": "ddpm"}
    if not beside.is_file():
        return Found(path, {"mlp_ratio": 4.0}, stored, layout, otherwise)
    try:
        content = json.loads(beside.read_text())
        config = config_from_diffusers(content)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{beside}: {error}") from error
    fields = dataclasses.asdict(config)
    if process_from_diffusers(content) is None:
        del fields["process"]
    return Found(path, fields, stored, layout, otherwise)


def _native(config: DiTConfig, abstract: Any) -> Layout:
    return native_layout(abstract)


def _official(config: DiTConfig, abstract: Any) -> Layout:
    return official_layout(config)


def _diffusers(config: DiTConfig, abstract: Any) -> Layout:
    return diffusers_layout(config)


def _diffusers_stored(config: DiTConfig, abstract: Any) -> Layout:
    return diffusers_layout(config, positions=True)
