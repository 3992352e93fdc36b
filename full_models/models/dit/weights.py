"""Weights of DiT and SiT: the layouts of the published checkpoints and of diffusers.

Weights in the layout of diffusers are evaluated with the conventions of the published
models. The class of diffusers 0.42, ``DiTTransformer2DModel``, does otherwise: its time
features have the frequencies ``i / (half - 1)`` in place of ``i / half``, and the norm
before the MLP an epsilon of 1e-5 unless ``norm_eps`` says 1e-6. That changes its
outputs by as much as they are large. A ``config.json`` of ours has ``norm_eps`` 1e-6,
and the process under a private key, which diffusers ignores.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jax.sharding import PartitionSpec

from full_models.models.dit.config import DIT, DiTConfig, mlp_ratio
from full_models.models.dit.layers import position_table
from full_models.models.family import Inferred, Layout
from full_models.models.layers import TIME_FEATURES
from full_models.weights.table import (
    Entry,
    Known,
    Stored,
    Table,
    copied,
    linear,
    patches,
)
from gmm_guidance.diffusion.process import process_from_fields
from gmm_guidance.sharding import PathRules

# Blocks are stacked on the first axis, which every device walks along: it stays whole.
# "tensor" divides what a product computes on its way in and what it sums on its way
# out, so that one sum over devices ends each half of a block; the fused q, k, v would
# be cut across heads, so there it divides nothing.
PLACEMENT: PathRules = (
    (r"blocks\.mlp\.fc1\.kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks\.mlp\.fc1\.bias", PartitionSpec(None, "tensor")),
    (r"blocks\.mlp\.fc2\.kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"blocks\..*\.kernel", PartitionSpec(None, "fsdp")),
    (r"final\.modulation\.kernel|time\.fc2\.kernel", PartitionSpec("fsdp")),
)

CLASS_NAME = "DiTTransformer2DModel"
# The class before it was split (diffusers < 0.28), in which DiT was published.
_CLASS_NAMES = (CLASS_NAME, "Transformer2DModel")
_LABELS = "y_embedder.embedding_table.weight"
# A private key, which diffusers passes over; it has no name for the process.
_EXTRA = "_gmm_guidance"
POSITIONS = "pos_embed.pos_embed"

# Fields with one supported value (or several), and those that are without effect.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "_class_name": _CLASS_NAMES,
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "attention_type": ("default", None),
    "caption_channels": (None,),
    "cross_attention_dim": (None,),
    "double_self_attention": (False, None),
    "dropout": (0.0,),
    "interpolation_scale": (None, 1.0),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-5, 1e-6),
    "norm_type": ("ada_norm_zero",),
    "num_vector_embeds": (None,),
    "only_cross_attention": (False, None),
    "use_additional_conditions": (False, None),
    "use_linear_projection": (False, None),
}
_REQUIRED = ("norm_type", "activation_fn")
_WITHOUT_EFFECT = ("norm_num_groups", "upcast_attention")
_SHAPE = {
    "sample_size": "input_size",
    "patch_size": "patch_size",
    "in_channels": "in_channels",
    "num_layers": "depth",
    "num_attention_heads": "num_heads",
    "num_embeds_ada_norm": "num_labels",
}


def official_table(config: DiTConfig, *, positions: bool = True) -> Table:
    """The checkpoints of facebookresearch/DiT and willisma/SiT, 2023 to 2025.

    Args:
        config: the shape.
        positions: whether the table of positions is stored; some codes leave it out.
    """
    c, width = config, config.width
    blocks = {
        "attn.qkv": ("attn.qkv", width, 3 * width),
        "attn.proj": ("attn.proj", width, width),
        "mlp.fc1": ("mlp.fc1", width, c.mlp_width),
        "mlp.fc2": ("mlp.fc2", c.mlp_width, width),
        "modulation": ("adaLN_modulation.1", width, 6 * width),
    }
    entries = _outside_blocks(
        c,
        patches_="x_embedder.proj",
        time=("t_embedder.mlp.0", "t_embedder.mlp.2"),
        labels=_LABELS,
        final=("final_layer.adaLN_modulation.1", "final_layer.linear"),
    )
    for ours, (theirs, inner, outer) in blocks.items():
        names = [f"blocks.{i}.{theirs}" for i in range(c.depth)]
        entries |= linear(f"blocks.{ours}", names, inner, outer)
    return Table(entries, {"pos_embed": _positions(config)} if positions else {})


def diffusers_table(config: DiTConfig, *, positions: bool = False) -> Table:
    """The class ``DiTTransformer2DModel`` of diffusers.

    Every block has a copy of the embeddings of time and label; all must be equal.

    Args:
        config: the shape.
        positions: whether the table of positions is stored. diffusers 0.42 does not.
    """
    c, width = config, config.width
    blocks = {
        "attn.qkv": (["attn1.to_q", "attn1.to_k", "attn1.to_v"], width, width),
        "attn.proj": (["attn1.to_out.0"], width, width),
        "mlp.fc1": (["ff.net.0.proj"], width, c.mlp_width),
        "mlp.fc2": (["ff.net.2"], c.mlp_width, width),
        "modulation": (["norm1.linear"], width, 6 * width),
    }
    first = "transformer_blocks.0.norm1.emb."
    time = f"{first}timestep_embedder.linear_"
    entries = _outside_blocks(
        c,
        patches_="pos_embed.proj",
        time=(f"{time}1", f"{time}2"),
        labels=f"{first}class_embedder.embedding_table.weight",
        final=("proj_out_1", "proj_out_2"),
    )
    known = {
        source.name.replace(first, f"transformer_blocks.{i}.norm1.emb."): Known(
            source.shape, same_as=source.name
        )
        for entry in entries.values()
        for source in entry.rows[0]
        if source.name.startswith(first)
        for i in range(1, c.depth)
    }
    for ours, (theirs, inner, outer) in blocks.items():
        names = [
            [f"transformer_blocks.{i}.{t}" for t in theirs] for i in range(c.depth)
        ]
        entries |= linear(f"blocks.{ours}", names, inner, outer)
    if positions:
        known[POSITIONS] = _positions(c)
    return Table(entries, known)


def _outside_blocks(
    config: DiTConfig,
    *,
    patches_: str,
    time: tuple[str, str],
    labels: str,
    final: tuple[str, str],
) -> dict[str, Entry]:
    """Embeddings and final layer, whose tables differ in the names only."""
    c, width = config, config.width
    return {
        **patches("patches", patches_, c.in_channels, c.patch_size, width),
        **linear("time.fc1", time[0], TIME_FEATURES, width),
        **linear("time.fc2", time[1], width, width),
        "labels": copied(labels, (c.num_embeddings, width)),
        **linear("final.modulation", final[0], width, 2 * width),
        **linear("final.linear", final[1], width, c.patch_size**2 * c.out_channels),
    }


def _positions(config: DiTConfig) -> Known:
    """The stored table of positions."""
    grid = config.input_size // config.patch_size
    return Known(
        (1, grid * grid, config.width), lambda: position_table(grid, config.width)
    )


def infer_official(stored: Stored) -> dict[str, Any]:
    """Fields of ``DiTConfig`` that tensors of the official layout determine.

    Not among them: ``num_heads``, ``process`` and ``prediction``, of which tensors have
    no trace; ``num_labels`` and ``null_label``, of which they have the sum; and fields
    whose tensor is missing or of an odd shape.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...] | None:
        found = stored[name].shape if name in stored else ()
        return found if len(found) == ndim and min(found) > 0 else None

    fields: dict[str, Any] = {}
    parts = [name.split(".") for name in stored if name.startswith("blocks.")]
    blocks = [int(p[1]) for p in parts if p[1].isdecimal() and len(p[1]) < 10]
    if blocks:
        fields["depth"] = max(blocks) + 1
    if hidden := shape("blocks.0.mlp.fc1.weight", 2):
        fields["mlp_ratio"] = mlp_ratio(*hidden)
    if weight := shape("x_embedder.proj.weight", 4):
        width, channels, p, _ = weight
        fields |= {"width": width, "in_channels": channels, "patch_size": p}
        positions = shape("pos_embed", 3)
        if positions and math.isqrt(positions[1]) ** 2 == positions[1]:
            fields["input_size"] = math.isqrt(positions[1]) * p
        pixels = shape("final_layer.linear.bias", 1)
        if pixels and pixels[0] in (p * p * channels, 2 * p * p * channels):
            fields["learn_sigma"] = pixels[0] == 2 * p * p * channels
    return fields


def _labels(stored: Stored) -> dict[str, Any]:
    """The classes of the table of labels; a single row leaves none for the null one."""
    rows = stored[_LABELS].shape[:1] if _LABELS in stored else ()
    if not rows or rows[0] < 1:
        return {"null_label": True}
    return {"num_labels": max(rows[0] - 1, 1), "null_label": rows[0] > 1}


def _official_table_of(config: DiTConfig, stored: Stored) -> Table:
    rows = stored[_LABELS].shape[:1] if _LABELS in stored else ()
    if rows and rows[0] != config.num_embeddings:
        without = rows[0] == config.num_labels
        raise ValueError(
            f"num_labels is {rows[0] - 1}, expected {config.num_labels}; "
            + (
                "if the network was trained without dropping labels, all rows of its "
                "table are classes: pass a config with null_label=False."
                if without
                else "pass the model of this file, or another file."
            )
        )
    return official_table(config, positions=not stored or "pos_embed" in stored)


def config_from_diffusers(fields: dict[str, Any]) -> DiTConfig:
    """The shape that a ``config.json`` of diffusers describes.

    Process and prediction are DiT's unless ``export_weights`` has recorded others.

    Args:
        fields: the content of the file.

    Raises:
        ValueError: naming a field that is missing, unknown, or has a value that this
            network cannot express.
    """
    known = {*_SUPPORTED, *_WITHOUT_EFFECT, *_SHAPE}
    known |= {"attention_head_dim", "out_channels"}
    class_first = {"_class_name": fields.get("_class_name")} | fields
    for name, value in class_first.items():
        if name.startswith("_") and name != "_class_name":
            continue
        if name not in known and value is not None:
            raise ValueError(
                f"the configuration has {name} = {value!r}, which no DiT has; only the "
                f"fields of {CLASS_NAME} are supported."
            )
        if name in _SUPPORTED and value not in _SUPPORTED[name]:
            allowed = " or ".join(repr(v) for v in _SUPPORTED[name] if v is not None)
            raise ValueError(
                f"{name} must be {allowed or None}, got {value!r}: this network has no "
                f"other."
            )
    needed = [*_REQUIRED, *_SHAPE, "attention_head_dim"]
    missing = [name for name in needed if fields.get(name) is None]
    if missing:
        raise ValueError(
            f"the configuration must have {', '.join(missing)}; take the config.json "
            f"of a {CLASS_NAME}."
        )
    return DiTConfig(
        **{ours: fields[theirs] for theirs, ours in _SHAPE.items()},
        width=fields["num_attention_heads"] * fields["attention_head_dim"],
        learn_sigma=_learns_sigma(fields),
        **_recorded(fields) or DIT,
    )


def _learns_sigma(fields: dict[str, Any]) -> bool:
    inner, outer = fields["in_channels"], fields.get("out_channels")
    if outer not in (None, inner, 2 * inner):
        raise ValueError(
            f"out_channels must be in_channels={inner}, or twice that with a learned "
            f"variance, got {outer}."
        )
    return outer == 2 * inner


def _recorded(fields: dict[str, Any]) -> dict[str, Any]:
    """Process and prediction, if they are recorded."""
    found = fields.get(_EXTRA) or {}
    if not found:
        return {}
    process = process_from_fields(found["process"])
    return {"process": process, "prediction": found["prediction"]}


def config_to_diffusers(config: DiTConfig) -> dict[str, Any]:
    """The ``config.json`` with which diffusers loads this shape.

    ``norm_eps`` is 1e-6, the value of the published models.

    Raises:
        ValueError: for an ``mlp_ratio`` other than 4 or a network without a null class,
            which diffusers has no fields for.
    """
    if not config.null_label:
        raise ValueError(
            "null_label must be True in diffusers, whose table of labels always has a "
            "row for it; export with layout='native' or 'official'."
        )
    if config.mlp_width != 4 * config.width:
        raise ValueError(
            f"mlp_ratio must be 4 in diffusers, got {config.mlp_ratio}; export with "
            f"layout='native' or 'official'."
        )
    shape = {theirs: getattr(config, ours) for theirs, ours in _SHAPE.items()}
    process: Any = config.process
    return {
        "_class_name": CLASS_NAME,
        _EXTRA: {
            "process": dataclasses.asdict(process),
            "prediction": config.prediction,
        },
        **shape,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": config.width // config.num_heads,
        "dropout": 0.0,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_zero",
        "out_channels": config.out_channels,
        "upcast_attention": False,
    }


def _infer_diffusers(stored: Stored, fields: dict[str, Any] | None) -> Inferred:
    if fields is None:
        return Inferred({"mlp_ratio": 4.0, "null_label": True}, DIT)
    config = config_from_diffusers(fields)
    left_out = {"compute_dtype", "remat", *(() if _recorded(fields) else DIT)}
    names = {field.name for field in dataclasses.fields(config)} - left_out
    return Inferred({name: getattr(config, name) for name in names}, DIT)


LAYOUTS = {
    "diffusers": Layout(
        r"^transformer_blocks\.\d+\.norm1\.emb\.class_embedder",
        lambda config, stored: diffusers_table(config, positions=POSITIONS in stored),
        _infer_diffusers,
        has_config=True,
        to_config=config_to_diffusers,
    ),
    "official": Layout(
        r"^y_embedder\.embedding_table|^blocks\.\d+\.adaLN_modulation",
        _official_table_of,
        lambda stored, config: Inferred(infer_official(stored), _labels(stored)),
    ),
}
