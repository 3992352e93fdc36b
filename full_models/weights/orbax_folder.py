"""Folders of orbax, whose arrays are restored straight to the devices of a mesh."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from full_models.weights.table import Spec, check_names, native_table, parameters
from gmm_guidance._runtime.files import sha256
from gmm_guidance._runtime.schema import damaged

ARRAYS = "arrays"
_SPELLED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}


def save_orbax(folder: Path, module: Any, dtype: Any) -> None:
    """Write the parameters of a module into an existing folder.

    Raises:
        ImportError: without orbax.
    """
    arrays = {n: jnp.asarray(a, dtype) for n, a in parameters(module).items()}
    with _orbax().StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / ARRAYS).absolute(), arrays)


def load_orbax(folder: Path, abstract: Any, dtype: Any, checksum: Any) -> Any:
    """Fill a module from a folder of ``save_orbax``.

    Args:
        folder: the folder.
        abstract: the module with shapes in place of arrays; an array goes to the
            ``sharding`` of its shape if it has one.
        dtype: type of the parameters.
        checksum: SHA-256 of the files of arrays, by the description of the folder.

    Raises:
        ImportError: without orbax.
        ValueError: if the folder holds other arrays, which are listed, or is damaged.
    """
    arrays = (folder / ARRAYS).absolute()
    leaves = parameters(abstract)
    if not arrays.is_dir() or sha256(arrays) != checksum:
        raise damaged(arrays, "its files have another checksum; write it again")
    with _orbax().StandardCheckpointer() as checkpointer:
        try:
            found = checkpointer.metadata(arrays).item_metadata.tree
            specs = {name: _spec(array) for name, array in found.items()}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{folder} is no complete folder of orbax ({error}); write it again."
            ) from error
        check_names(native_table(abstract), specs, str(folder))
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
                f"{folder} cannot be read ({error}); write it again."
            ) from error
    return jax.tree.unflatten(
        jax.tree.structure(abstract), [restored[name] for name in leaves]
    )


def _spec(array: Any) -> Spec:
    name = jnp.dtype(array.dtype).name
    return Spec(tuple(array.shape), _SPELLED.get(name, name))


def _orbax() -> Any:
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError(
            "folders of orbax need the package orbax-checkpoint (pip install "
            "orbax-checkpoint); a single .safetensors file needs none."
        ) from error
