"""Our own files: the parameters under their own names, and what they are parameters of.

One safetensors file, or a folder that orbax writes, whose arrays it restores straight
to where they belong on many devices.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from full_models.models.dit.config import DiTConfig
from full_models.models.dit.official_layout import one, same
from full_models.weights.fill import Layout, check_names, parameters
from full_models.weights.stored import Spec
from gmm_guidance._runtime.files import write_text
from gmm_guidance._runtime.tensor_files import load_description

NATIVE = "full_models.DiT"
OFFICIAL = "full_models.DiT in the official layout"
_DESCRIPTION = "description.json"
_ARRAYS = "arrays"


def native_layout(abstract: Any) -> Layout:
    """Each parameter as it is, under its path in the module."""
    return Layout(
        {
            name: one(same(name, tuple(leaf.shape)))
            for name, leaf in parameters(abstract).items()
        }
    )


def describe(kind: str, config: DiTConfig, dtype: Any) -> dict[str, Any]:
    """What is written beside the arrays."""
    return {
        "kind": kind,
        "config": dataclasses.asdict(config),
        "dtype": jnp.dtype(dtype).name,
    }


def described_config(description: dict[str, Any], origin: str) -> DiTConfig:
    """The configuration in a description.

    Raises:
        ValueError: if there is none, or it has fields that this version does not know.
    """
    fields = description.get("config")
    known = {field.name for field in dataclasses.fields(DiTConfig)}
    if not isinstance(fields, dict) or fields.keys() - known:
        raise ValueError(
            f"{origin} must describe a DiT by {', '.join(sorted(known))}, got "
            f"{fields!r}; it may be of a newer version."
        )
    return DiTConfig(**fields)


def read_description(path: Path) -> dict[str, Any] | None:
    """The description of a file or folder of ours; ``None`` for another's."""
    try:
        if path.is_dir():
            description = json.loads((path / _DESCRIPTION).read_text())
        elif path.suffix == ".safetensors":
            description = load_description(path)
        else:
            return None
    except (OSError, ValueError):
        return None
    ours = isinstance(description, dict) and description.get("kind") in (
        NATIVE,
        OFFICIAL,
    )
    return description if ours else None


def save_orbax(folder: Path, module: Any, description: dict[str, Any]) -> None:
    """Write an existing, empty folder: arrays by orbax, and the description."""
    dtype = jnp.dtype(description["dtype"])
    arrays = {n: jnp.asarray(a, dtype) for n, a in parameters(module).items()}
    with _orbax().StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / _ARRAYS).absolute(), arrays)
    write_text(folder / _DESCRIPTION, json.dumps(description, indent=2) + "\n")


def load_orbax(path: str | os.PathLike, abstract: Any, dtype: Any = None) -> Any:
    """The module with its parameters from a folder of ``save_orbax``.

    Args:
        path: the folder.
        abstract: the module with shapes in place of arrays; arrays go to the
            ``sharding`` of their shape where it has one.
        dtype: type of the parameters; float32 by default.

    Raises:
        ImportError: without orbax.
        ValueError: if the folder holds other arrays, which are listed, or is damaged.
    """
    dtype = jnp.dtype(dtype or jnp.float32)
    arrays = (Path(path) / _ARRAYS).absolute()
    leaves = parameters(abstract)
    with _orbax().StandardCheckpointer() as checkpointer:
        try:
            found = _specs(checkpointer.metadata(arrays).item_metadata.tree)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} is no complete folder of orbax ({error}); write it again."
            ) from error
        check_names(native_layout(abstract), found, str(path))
        wanted = {
            name: jax.ShapeDtypeStruct(
                leaf.shape, dtype, sharding=getattr(leaf, "sharding", None)
            )
            for name, leaf in leaves.items()
        }
        try:
            restored = checkpointer.restore(arrays, wanted)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}); write it again."
            ) from error
    return jax.tree.unflatten(
        jax.tree.structure(abstract), [restored[name] for name in leaves]
    )


def _specs(tree: dict[str, Any]) -> dict[str, Spec]:
    words = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
    return {
        name: Spec(
            tuple(array.shape),
            words.get(jnp.dtype(array.dtype).name, str(array.dtype)),
        )
        for name, array in tree.items()
    }


def _orbax() -> Any:
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError(
            "folders of orbax need the package orbax-checkpoint (pip install "
            "orbax-checkpoint); a single .safetensors file needs none."
        ) from error
