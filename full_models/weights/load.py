"""``load_weights``: a model from the weights of any known family and layout."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
from jax.sharding import Mesh

from full_models.models.family import (
    DType,
    Family,
    Inferred,
    Layout,
    Pipeline,
    as_stack,
    unknown_name,
)
from full_models.models.registry import FAMILIES
from full_models.weights.orbax_folder import load_orbax
from full_models.weights.safetensors_file import read_safetensors
from full_models.weights.table import Stored, fill, listed, native_table
from full_models.weights.torch_file import open_torch
from gmm_guidance._runtime.checks import as_path
from gmm_guidance._runtime.files import sha256
from gmm_guidance._runtime.schema import (
    Object,
    brief,
    checked,
    damaged,
    other_kind,
    read_json,
    unsealed,
)
from gmm_guidance._runtime.tensor_files import (
    ForeignFileError,
    differences,
    load_description,
)
from gmm_guidance.diffusion.process import process_from_fields
from gmm_guidance.sharding import placements

# Descriptions of our own files: KIND, family, layout and config.
KIND = "full_models weights"
NATIVE, ORBAX = "native", "orbax"
DESCRIPTION = "description.json"
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
_FILES_IN_FOLDERS = (
    DIFFUSERS_FILE,
    f"{DIFFUSERS_FILE}.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
_MOST_FITTING = 4  # published names that a message offers


def load_weights(
    path: str | os.PathLike,
    model: Any = None,
    *,
    dtype: Any = None,
    compute_dtype: DType | None = None,
    root: str | None = None,
    ignore: Sequence[str] = (),
    mesh: Mesh | None = None,
) -> Any:
    """Load a model from a file or folder of weights.

    The format is recognized by the content:

    - the published checkpoints of a family and those of their training code (``.pt``
      and the like, read without PyTorch and without running code of the file), and the
      same tensors in a ``.safetensors`` file;
    - a folder of diffusers, a pipeline with one in its subfolder, or a file of weights
      next to its ``config.json``, in one part or several. A model is evaluated with the
      conventions of its published code, see the module ``weights`` of its family;
    - the files and folders of ``export_weights``.

    Each tensor of the file is used exactly once, after a prefix that wrappers of the
    model have put before all of its names (``module.``, ``_orig_mod.``, ``model.``) is
    dropped; tensors outside of that prefix are of other models. Checksums are compared
    where the format has them: those of ``torch.save``, unless it was told to compute
    none, and of ``export_weights``; the safetensors files of others have none. Loading
    takes up to one and a half times the memory of the weights, in the wider type of
    file and parameters; from a folder of orbax, twice.

    Args:
        path: the file or folder.
        model: the name of a published model (``model_names``) or a config. By default
            it follows from the file. Where models share their tensors, as a DiT and a
            SiT do, published checkpoints need it.
        dtype: type of the parameters, ``"bfloat16"`` to save memory; float32 by
            default.
        compute_dtype: type of matrix products; that of the config by default.
        root: where the weights lie in the file, if there are several: an entry of a
            PyTorch file (``"ema"``, by default an average if there is one), a prefix of
            the names of tensors (``"ema."``), or both (``"state_dict/ema."``).
        ignore: beginnings of the names of tensors to leave out, such as
            ``("projectors.",)`` for heads that sampling does not use.
        mesh: devices (``MeshConfig.build``) that hold the parameters, divided by the
            placement rules of the family; each parameter goes straight to its devices.

    Returns:
        The model, a ``ProcessStack`` around its network: a ``Denoiser`` and
        ``BlockStack`` of ``gmm_guidance`` with the network's ``config``.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ImportError: for a folder of orbax, without orbax.
        ValueError: if the file is damaged, of an unknown layout or of another model
            (naming the fields or tensors that differ), or if the model does not follow
            from it.
    """
    checkpoint = open_checkpoint(
        path, model, compute_dtype=compute_dtype, root=root, ignore=ignore
    )
    return checkpoint.load(dtype, mesh)


def model_names() -> tuple[str, ...]:
    """Names of all published models that ``load_weights`` knows."""
    return tuple(name for family in FAMILIES for name in family.published)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights at a path and the model they belong to; no tensor has been read.

    Attributes:
        origin: the file or folder.
        family: the family of the model.
        config: the config of the model.
        layout: a layout of the family, ``"native"`` or ``"orbax"``.
        stored: the tensors; empty for orbax.
        root: entry of the PyTorch file that they are of; empty elsewhere.
    """

    origin: Path
    family: Family
    config: Any
    layout: str
    stored: Stored
    root: str = ""

    @property
    def pipeline(self) -> Pipeline:
        """How the model is sampled."""
        if self.family.pipeline is None:
            raise TypeError(f"{self.family.name} cannot be sampled.")
        return self.family.pipeline(self.config)

    @property
    def title(self) -> str:
        """The model in a few words, with the entry of the file that was taken."""
        entry = f", weights of the entry {self.root}" if self.root else ""
        return self.pipeline.title + entry

    def sha256(self) -> str:
        """SHA-256 of the file of weights; of a folder, of all that is in it."""
        in_parts = self.origin.suffix == ".json"
        return sha256(self.origin.parent if in_parts else self.origin)

    def load(self, dtype: Any = None, mesh: Mesh | None = None) -> Any:
        """Read the weights; see ``load_weights``."""
        dtype = jnp.dtype(dtype or jnp.float32)
        if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
            raise ValueError(
                f"dtype must be float32, bfloat16 or float16, got {dtype.name}."
            )
        abstract = jax.eval_shape(lambda: self.family.build(self.config))
        if mesh is not None:
            abstract = jax.tree.map(
                lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
                abstract,
                placements(abstract, mesh, self.family.placement),
            )
        if self.layout == ORBAX:
            said = read_json(self.origin / DESCRIPTION, _Description)
            network = load_orbax(self.origin, abstract, dtype, said.arrays_sha256)
        else:
            layout = self.family.layouts.get(self.layout)
            table = native_table(abstract)
            if layout is not None:
                try:
                    table = layout.table(self.config, self.stored)
                except ValueError as error:
                    raise ValueError(f"{self.origin}: {error}") from error
            network = fill(abstract, table, self.stored, str(self.origin), dtype)
        # An autoencoder has no process, and is complete.
        return as_stack(network) if hasattr(self.config, "process") else network


def open_checkpoint(
    path: str | os.PathLike,
    model: Any = None,
    *,
    compute_dtype: DType | None = None,
    root: str | None = None,
    ignore: Sequence[str] = (),
    families: Sequence[Family] = FAMILIES,
) -> Checkpoint:
    """Find out which model the weights at a path belong to, reading no tensor.

    Arguments and errors are those of ``load_weights``; the model is of ``families``.
    """
    wanted = _family_of(model, families)
    found = _inspect(as_path(path), root, ignore, families)
    if wanted not in (None, found.family):
        raise ValueError(
            f"{found.origin} holds weights of {found.family.name}, but "
            f"{_shown(model)} is of {wanted.name}; pass another model or file."
        )
    config = _settle(found, model)
    if compute_dtype is not None:
        config = dataclasses.replace(config, compute_dtype=compute_dtype)
    return Checkpoint(
        found.origin, found.family, config, found.layout, found.stored, found.root
    )


# What lies at the path.


class _Found(NamedTuple):
    """Weights, and what they say of their model."""

    origin: Path
    family: Family
    layout: str
    stored: Stored
    said: Inferred
    root: str = ""


def _inspect(
    path: Path, root: str | None, ignore: Sequence[str], families: Sequence[Family]
) -> _Found:
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}.")
    if path.is_dir() and not (path / DESCRIPTION).is_file():
        path = _file_in(path, families)
    stored, entry = ({}, "") if path.is_dir() else _read(path, root)
    ignored = tuple([ignore] if isinstance(ignore, str) else ignore)
    stored = _without(stored, ignored)
    if (ours := _described(path, stored, families)) is not None:
        return ours
    for family in families:
        for name, layout in family.layouts.items():
            if (selected := layout.select(stored, str(path))) is not None:
                selected = _without(selected, ignored)
                _refuse_parts(selected)
                family.refuse(path)
                said = _infer(layout, selected, path.parent / "config.json")
                return _Found(path, family, name, selected, said, entry)
    _refuse_parts(stored)
    raise ValueError(
        f"{path} holds no known model: the names of its tensors must be those of a "
        f"published checkpoint or of diffusers ({', '.join(f.name for f in families)}) "
        f"or of export_weights; found {listed(stored)}."
    )


def _file_in(folder: Path, families: Sequence[Family]) -> Path:
    """The file of weights in a folder of diffusers, or of a pipeline."""
    subfolders = [folder, *(folder / family.subfolder for family in families)]
    known = [place for place in subfolders if (place / "config.json").is_file()]
    for place in known or subfolders:
        for name in _FILES_IN_FOLDERS:
            if (place / name).is_file():
                return place / name
    if known:
        raise ValueError(
            f"{known[0]} has a config.json, but none of "
            f"{', '.join(_FILES_IN_FOLDERS)}; complete the download, or name the file "
            f"of weights itself."
        )
    raise ValueError(
        f"{folder} must be a folder of diffusers (config.json and weights, or a "
        f"pipeline with a subfolder {families[0].subfolder}) or of export_weights; it "
        f"holds {listed(sorted(entry.name for entry in folder.iterdir()))}. If one of "
        f"these files holds the weights, name it."
    )


def _read(path: Path, root: str | None) -> tuple[Stored, str]:
    """The tensors below ``root``, and the entry of a PyTorch file that was taken."""
    if not path.is_file():
        raise damaged(path, "neither a file nor a folder")
    with path.open("rb") as file:
        kind = other_kind(file.read(1024))
    if kind is not None:
        raise damaged(path, kind)
    entry, slash, prefix = (root or "").rpartition("/")
    if not prefix.endswith("."):
        entry, prefix = root or "", ""
    if path.suffix in _TORCH_SUFFIXES:
        stored, entry = open_torch(path, entry or None)
    elif entry:
        raise ValueError(
            f"root={root!r} chooses an entry of a PyTorch file, but {path} is none; "
            f"leave it out."
        )
    elif path.suffix in (".safetensors", ".json"):
        stored = read_safetensors(path)
    elif path.suffix == ".gguf":
        raise ValueError(
            f"{path} is quantized (GGUF); take the file in bfloat16 or float16."
        )
    else:
        raise ValueError(
            f"weights must be a folder or a file ending in .safetensors, .index.json, "
            f"{', '.join(_TORCH_SUFFIXES)}, got {path}; rename it."
        )
    if not prefix:
        return stored, entry
    below = {
        n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)
    }
    if not below:
        raise ValueError(
            f"{path} has no tensor under {prefix!r}; it has {listed(stored)}."
        )
    return below, entry + slash + prefix


def _without(stored: Stored, ignored: tuple[str, ...]) -> Stored:
    return {n: t for n, t in stored.items() if not n.startswith(ignored)}


def _infer(layout: Layout, stored: Stored, beside: Path) -> Inferred:
    """What tensors say of their model, and the ``config.json`` beside them, if any."""
    if not (layout.has_config and beside.is_file()):
        return layout.infer(stored, None)
    found = read_json(beside, Object)
    try:
        return layout.infer(stored, found)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"{beside}: {brief(error)}.") from error


def _described(path: Path, stored: Stored, families: Sequence[Family]) -> _Found | None:
    """What a file or folder of our own says; ``None`` for another's."""
    if path.is_dir():
        file = path / DESCRIPTION
        description = unsealed(read_json(file, Object), file)
    elif path.suffix == ".safetensors":
        try:
            description = load_description(path)
        except ForeignFileError:
            return None
    else:
        return None
    if not str(description.get("kind")).startswith("full_models"):
        return None
    said = checked(description, _Description, path)
    family = next((f for f in families if f.name == said.family), None)
    try:
        if said.kind != KIND or family is None or said.layout not in _layouts(family):
            raise ValueError("unknown kind, family or layout")
        known = {f.name for f in dataclasses.fields(family.config)}
        if unknown := said.config.keys() - known:
            raise ValueError(f"unknown fields {listed(sorted(unknown))}")
        fields = {name: _restored(value) for name, value in said.config.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is of another version ({brief(error)}): kind {said.kind!r}, "
            f"family {said.family!r}, layout {said.layout!r}. Export the weights "
            f"again, or read them with the version that wrote them."
        ) from error
    return _Found(path, family, said.layout, stored, Inferred(fields))


class _Description(msgspec.Struct):
    """What a file of our own says of itself."""

    kind: str
    family: str | None = None
    layout: str | None = None
    config: Object = {}
    arrays_sha256: str | None = None


def _layouts(family: Family) -> tuple[str, ...]:
    return (*family.layouts, NATIVE, ORBAX)


def _restored(value: Any) -> Any:
    """A field of a config, from its JSON."""
    if isinstance(value, dict):
        return process_from_fields(value)
    return tuple(value) if isinstance(value, list) else value


def _refuse_parts(stored: Stored) -> None:
    """Refuse what is no whole network in a type that can be computed with.

    Raises:
        ValueError: for a LoRA, a ControlNet or a quantized file.
    """
    for name, tensor in stored.items():
        if re.search(r"lora_|\.lora|controlnet|control_", name, re.IGNORECASE):
            raise ValueError(
                f"{name} is of a LoRA or a ControlNet, not of a whole transformer; "
                f"merge a LoRA into its model (fuse_lora of diffusers), or take the "
                f"model itself."
            )
        if tensor.dtype.startswith("F8") or tensor.dtype in ("I8", "U8", "I4", "U4"):
            raise ValueError(
                f"{name} is quantized ({tensor.dtype}); take the file in bfloat16 or "
                f"float16."
            )


# Which model it is.


def _family_of(model: Any, families: Sequence[Family]) -> Family | None:
    """The family of a name or config; ``None`` if nothing is asked for."""
    for family in families:
        named = isinstance(model, str) and model in family.published
        if named or isinstance(model, family.config):
            return family
    if isinstance(model, str):
        raise unknown_name(model, (n for f in families for n in f.published))
    if model is not None:
        configs = ", ".join(family.config.__name__ for family in families)
        raise TypeError(
            f"model must be the name of a published model, a config ({configs}) or "
            f"None, got {type(model).__name__}."
        )
    return None


def _settle(found: _Found, model: Any) -> Any:
    """The one config that both the weights and the caller allow."""
    origin, family, said = found.origin, found.family, found.said
    names = [field.name for field in dataclasses.fields(family.config)]
    shape = [name for name in names if name not in family.execution]
    if isinstance(model, str):
        asked = dict(family.published[model])
    else:
        asked = {} if model is None else {name: getattr(model, name) for name in names}
    both = [name for name in shape if name in asked and name in said.fields]
    different = differences(
        {name: asked[name] for name in both}, {name: said.fields[name] for name in both}
    )
    if different:
        raise ValueError(
            f"{origin} does not hold {_shown(model)}: {'; '.join(different)}. Pass the "
            f"model of this file, or another file."
        )
    fields = said.defaults | said.fields | asked
    fitting = {
        name: stands_for
        for name, stands_for in family.published.items()
        if all(fields.get(n, v) == v for n, v in stands_for.items())
    }
    for name in set(shape) - fields.keys():  # what all fitting models agree on
        values = [f[name] for f in fitting.values() if name in f]
        if values and values == values[:1] * len(values):
            fields[name] = values[0]
    missing = [name for name in shape if name not in fields]
    if missing:
        known = ", ".join(f"{n} = {fields[n]}" for n in shape if n in fields)
        remedy = f"pass its {family.config.__name__}"
        if 0 < len(fitting) <= _MOST_FITTING:
            remedy = f"pass {' or '.join(map(repr, fitting))}"
        elif found.layout in family.layouts and family.layouts[found.layout].has_config:
            remedy += ", or put its config.json next to it"
        raise ValueError(
            f"{origin} does not say the {', '.join(missing)} of its model; {remedy} "
            f"(known: {known or 'nothing'})."
        )
    try:
        return family.config(**fields)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{origin}: {error}") from error


def _shown(model: Any) -> str:
    return repr(model) if isinstance(model, str) else "the model of the given config"
