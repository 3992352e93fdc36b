"""``export_weights``: a network written in one of the known layouts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp

from full_models.models.dit.diffusers_layout import (
    config_to_diffusers,
    diffusers_layout,
)
from full_models.models.dit.network import DiT
from full_models.models.dit.official_layout import official_layout
from full_models.weights.fill import dump
from full_models.weights.find import DIFFUSERS_FILE
from full_models.weights.native import (
    NATIVE,
    OFFICIAL,
    describe,
    native_layout,
    save_orbax,
)
from gmm_guidance._runtime.files import atomic_folder, default_mode
from gmm_guidance._runtime.tensor_files import save_tree, write_tensors

ExportLayout = Literal["diffusers", "official", "native", "orbax"]


def export_weights(
    model: DiT,
    path: str | os.PathLike,
    layout: ExportLayout = "diffusers",
    dtype: Any = None,
) -> Path:
    """Write a network's weights; complete or not at all.

    ``load_weights`` reads each layout back, exactly, and needs nothing but the path:

    - ``"diffusers"``: a folder for ``DiTTransformer2DModel.from_pretrained``. Its
      ``config.json`` has ``norm_eps`` 1e-6, and the process under a private key, which
      diffusers passes over. diffusers 0.42 evaluates it with other time features, see
      ``full_models.models.dit.diffusers_layout``.
    - ``"official"``: one ``.safetensors`` file with the tensors of the published
      checkpoints, for ``load_state_dict`` of the codes of DiT and SiT.
    - ``"native"``: one ``.safetensors`` file with the parameters as they are.
    - ``"orbax"``: a folder with the parameters as they are, by ``orbax-checkpoint``.

    A file is replaced; a folder must be empty or not there.

    Args:
        model: the network.
        path: folder, or file ending in ``.safetensors``.
        layout: one of the above.
        dtype: type of the tensors; that of the parameters by default.

    Returns:
        The path.

    Raises:
        ValueError: for an unknown layout, a path that does not suit it or is taken, or
            a network that it cannot express.
        TypeError: if the model is no ``DiT``.
    """
    if not isinstance(model, DiT):
        raise TypeError(
            f"model must be a DiT, got {type(model).__name__}; of a WithVariance, pass "
            f"its network."
        )
    if layout not in get_args(ExportLayout):
        raise ValueError(
            f"layout must be one of {', '.join(get_args(ExportLayout))}, got "
            f"{layout!r}."
        )
    path = Path(path)
    dtype = jnp.dtype(model.labels[...].dtype if dtype is None else dtype)
    if layout in ("official", "native"):
        _check_file(path)
        kind = OFFICIAL if layout == "official" else NATIVE
        table = (
            official_layout(model.config)
            if layout == "official"
            else native_layout(model)
        )
        description = describe(kind, model.config, dtype)
        return save_tree(path, dump(model, table, dtype), description)
    _check_vacant(path)
    with atomic_folder(path) as folder:
        if layout == "orbax":
            save_orbax(folder, model, describe(NATIVE, model.config, dtype))
        else:
            _write_diffusers(folder, model, dtype)
    return path


def _write_diffusers(folder: Path, model: DiT, dtype: Any) -> None:
    config = json.dumps(config_to_diffusers(model.config), indent=2, sort_keys=True)
    tensors = dump(model, diffusers_layout(model.config), dtype)
    # diffusers refuses files whose header does not name PyTorch.
    write_tensors(tensors, folder / DIFFUSERS_FILE, {"format": "pt"})
    os.chmod(folder / DIFFUSERS_FILE, default_mode())  # safetensors keeps it private
    (folder / "config.json").write_text(config + "\n")


def _check_file(path: Path) -> None:
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(
            f"the path must be that of a file ending in .safetensors, got {path}; use "
            f"{path.with_suffix('.safetensors')}, or layout='diffusers' for a folder."
        )


def _check_vacant(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            f"{path} must be empty or not there, but it is a "
            f"{'folder with content' if path.is_dir() else 'file'}; choose another "
            f"place, or delete it first."
        )
