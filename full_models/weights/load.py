"""``load_weights``: a network from any of the known files."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from full_models.models.dit.config import DiTConfig, DType
from full_models.models.dit.network import DiT
from full_models.models.dit.placement import DIT_RULES
from full_models.models.dit.settle import settle
from full_models.weights.fill import fill
from full_models.weights.find import find_weights
from full_models.weights.native import load_orbax
from gmm_guidance.sharding import placements


def load_weights(
    path: str | os.PathLike,
    config: DiTConfig | str | None = None,
    *,
    dtype: Any = None,
    compute_dtype: DType | None = None,
    root: str | None = None,
    mesh: Mesh | None = None,
) -> DiT:
    """A network with the weights of a file or folder.

    Formats, told apart by what is there:

    - the published checkpoints of DiT and SiT and those of their training code
      (``.pt``), read without PyTorch and without running code of the file; also the
      same tensors in a ``.safetensors`` file;
    - a folder of diffusers' ``DiTTransformer2DModel``, or a pipeline with one in its
      subfolder ``transformer``, or a file of weights beside its ``config.json``, in one
      part or several. They are evaluated with the conventions of the published models,
      see ``full_models.models.dit.diffusers_layout``;
    - what ``export_weights`` writes.

    Each tensor of the file is used exactly once. Loading needs up to one and a half
    times the memory of the weights, in the wider type of file and parameters; from a
    folder of orbax, twice.

    Args:
        path: the file or folder.
        config: what the model is. ``None`` takes the file's word; the tensors of the
            published checkpoints do not say whether they are of a DiT or a SiT, so
            these need a name (``"SiT-XL/2"``: depth, width, heads, patch and process)
            or a ``DiTConfig``.
        dtype: type of the parameters, ``"bfloat16"`` to save memory; float32 by
            default.
        compute_dtype: type of matrix products; that of the configuration by default.
        root: the entry of a ``.pt`` file that holds the weights; ``"ema"`` by default
            if there is one.
        mesh: devices (``MeshConfig.build``) that hold the parameters, divided as
            ``DIT_RULES`` say; each goes straight to its own.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ImportError: for a folder of orbax, without orbax.
        ValueError: if the file is damaged, of another layout or model (naming the
            fields or tensors that differ), or does not say what its model is.
    """
    dtype = _parameter_dtype(dtype)
    found = find_weights(path, root)
    settled = settle(found, config)
    if compute_dtype is not None:
        settled = dataclasses.replace(settled, compute_dtype=compute_dtype)
    abstract = jax.eval_shape(lambda: DiT(settled, rngs=nnx.Rngs(0)))
    if mesh is not None:
        abstract = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            abstract,
            placements(abstract, mesh, DIT_RULES),
        )
    if found.stored is None:
        return load_orbax(found.origin, abstract, dtype)
    layout = found.layout(settled, abstract)
    return fill(abstract, layout, found.stored, str(found.origin), dtype)


def _parameter_dtype(dtype: Any) -> Any:
    result = jnp.dtype(dtype or jnp.float32)
    if result not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"dtype must be float32, bfloat16 or float16, got {result.name}."
        )
    return result
