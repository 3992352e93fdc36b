"""``export_weights``: the weights of a model in one of the known layouts."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from full_models.models.registry import FAMILIES
from full_models.weights.load import DESCRIPTION, DIFFUSERS_FILE, KIND, NATIVE, ORBAX
from full_models.weights.orbax_folder import ARRAYS, save_orbax
from full_models.weights.table import dump, native_table, parameters
from gmm_guidance._runtime.checks import as_path
from gmm_guidance._runtime.files import atomic_folder, default_mode, sha256, write_text
from gmm_guidance._runtime.schema import sealed
from gmm_guidance._runtime.tensor_files import save_tree, write_tensors


def export_weights(
    model: Any,
    path: str | os.PathLike,
    layout: str = "diffusers",
    dtype: Any = None,
) -> Path:
    """Write the weights of a model; complete or not at all.

    ``load_weights`` reads each layout back exactly from the path alone:

    - ``"diffusers"``: a folder for ``from_pretrained`` of diffusers. What diffusers
      evaluates otherwise is said in the module ``weights`` of the family.
    - ``"official"``: one ``.safetensors`` file with the tensors of the published
      checkpoints.
    - ``"native"``: one ``.safetensors`` file with the parameters as they are.
    - ``"orbax"``: a folder with the parameters as they are, written by orbax.

    A file is replaced; a folder must be empty or absent.

    Args:
        model: a model of ``load_weights``, or its network alone.
        path: a folder, or a file ending in ``.safetensors``.
        layout: one of the above, where the family has it.
        dtype: type of the tensors; that of the parameters by default.

    Returns:
        The path.

    Raises:
        ValueError: for an unknown layout, a path that does not suit it or is taken, or
            a model that it cannot express.
        TypeError: if the model is of no known family.
        ImportError: for ``"orbax"``, without orbax.
    """
    model = getattr(model, "backbone", model)
    config: Any = getattr(model, "config", None)
    family = next((f for f in FAMILIES if isinstance(config, f.config)), None)
    if family is None:
        raise TypeError(
            f"model must be one of load_weights ({', '.join(f.name for f in FAMILIES)})"
            f", got {type(model).__name__}."
        )
    if layout not in (known := [*family.layouts, NATIVE, ORBAX]):
        raise ValueError(f"layout must be one of {', '.join(known)}, got {layout!r}.")
    path = as_path(path)
    dtype = jnp.dtype(
        next(iter(parameters(model).values())).dtype if dtype is None else dtype
    )
    description = {
        "kind": KIND,
        "family": family.name,
        "layout": layout,
        "config": dataclasses.asdict(config),
        "dtype": dtype.name,
    }
    table = native_table(model)
    to_config = None
    if layout in family.layouts:
        table = family.layouts[layout].table(config, {})
        to_config = family.layouts[layout].to_config
    if layout != ORBAX and to_config is None:
        _check_file(path)
        return save_tree(path, dump(model, table, dtype), description)
    _check_vacant(path)
    with atomic_folder(path) as folder:
        if to_config is None:
            save_orbax(folder, model, dtype)
            description["arrays_sha256"] = sha256(folder / ARRAYS)
            text = json.dumps(sealed(description), indent=2) + "\n"
            write_text(folder / DESCRIPTION, text)
        else:
            text = json.dumps(to_config(config), indent=2, sort_keys=True) + "\n"
            (folder / "config.json").write_text(text)
            # diffusers refuses files whose header does not name PyTorch.
            tensors = dump(model, table, dtype)
            write_tensors(tensors, folder / DIFFUSERS_FILE, {"format": "pt"})
            os.chmod(folder / DIFFUSERS_FILE, default_mode())  # safetensors: private
    return path


def _check_file(path: Path) -> None:
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(
            f"the path must be that of a file ending in .safetensors, got {path}; use "
            f"{path.with_suffix('.safetensors')}, or layout='diffusers' for a folder."
        )


def _check_vacant(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            f"{path} must be empty or absent, but it is a "
            f"{'folder with content' if path.is_dir() else 'file'}; choose another "
            f"place, or delete it first."
        )
