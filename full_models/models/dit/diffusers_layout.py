"""The layout and the configuration of diffusers' ``DiTTransformer2DModel``.

Weights only: we always evaluate with the conventions of the published models. The class
of diffusers 0.42 does not, as it stands: its time features have frequencies
``i / (half - 1)`` in place of ``i / half``, and its MLP norm an epsilon of 1e-5 unless
``norm_eps`` says 1e-6. Its values differ accordingly, and by a lot.
"""

from __future__ import annotations

from typing import Any

from full_models.models.dit.config import DiTConfig
from full_models.models.dit.encodings import TIME_FEATURES
from full_models.models.dit.official_layout import (
    linear,
    linear_stack,
    one,
    patch_entries,
    position_entry,
    same,
    transposed,
)
from full_models.weights.fill import Entry, Known, Layout

CLASS_NAME = "DiTTransformer2DModel"
# The class before it was split (diffusers < 0.28), in which DiT was published.
_CLASS_NAMES = (CLASS_NAME, "Transformer2DModel")
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


def diffusers_layout(config: DiTConfig, *, positions: bool = False) -> Layout:
    """Names and shapes of ``DiTTransformer2DModel``.

    Every block has a copy of the embeddings of time and label; all must be equal.

    Args:
        config: the shape.
        positions: whether the table of positions is stored. diffusers 0.42 does not.
    """
    c, width, p = config, config.width, config.patch_size
    blocks = [f"transformer_blocks.{i}." for i in range(c.depth)]
    entries = patch_entries("pos_embed.proj", c)
    embedding = "norm1.emb."
    time = f"{blocks[0]}{embedding}timestep_embedder."
    entries |= linear("time.fc1", f"{time}linear_1", TIME_FEATURES, width)
    entries |= linear("time.fc2", f"{time}linear_2", width, width)
    labels = f"{blocks[0]}{embedding}class_embedder.embedding_table.weight"
    entries["labels"] = one(same(labels, (c.num_labels + 1, width)))
    entries |= _joined_stack(
        "blocks.attn.qkv",
        [[f"{b}attn1.to_{part}" for part in "qkv"] for b in blocks],
        width,
    )
    for ours, theirs, inner, outer in (
        ("attn.proj", "attn1.to_out.0", width, width),
        ("mlp.fc1", "ff.net.0.proj", width, c.mlp_width),
        ("mlp.fc2", "ff.net.2", c.mlp_width, width),
        ("modulation", "norm1.linear", width, 6 * width),
    ):
        entries |= linear_stack(
            f"blocks.{ours}", [b + theirs for b in blocks], inner, outer
        )
    entries |= linear("final.modulation", "proj_out_1", width, 2 * width)
    entries |= linear("final.linear", "proj_out_2", width, p * p * c.out_channels)

    first = f"{blocks[0]}{embedding}"
    embedded = {
        source.name.removeprefix(first): source.shape
        for entry in entries.values()
        for source in entry.rows[0]
        if source.name.startswith(first)
    }
    known = {
        f"{block}{embedding}{name}": Known(shape, same_as=f"{first}{name}")
        for block in blocks[1:]
        for name, shape in embedded.items()
    }
    if positions:
        known[POSITIONS] = position_entry(c)
    return Layout(entries, known)


def _joined_stack(ours: str, theirs: list[list[str]], width: int) -> dict[str, Entry]:
    """Linear maps of all blocks, each of several that are stored apart."""
    kernels = tuple(
        tuple(transposed(f"{name}.weight", width, width) for name in names)
        for names in theirs
    )
    biases = tuple(
        tuple(same(f"{name}.bias", (width,)) for name in names) for names in theirs
    )
    return {f"{ours}.kernel": Entry(kernels, True), f"{ours}.bias": Entry(biases, True)}


def config_from_diffusers(fields: dict[str, Any]) -> DiTConfig:
    """The shape that a ``config.json`` of diffusers describes.

    Its process is ``"ddpm"`` where ``export_weights`` has not written another.

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
        process=process_from_diffusers(fields) or "ddpm",
    )


def _learns_sigma(fields: dict[str, Any]) -> bool:
    inner, outer = fields["in_channels"], fields.get("out_channels")
    if outer not in (None, inner, 2 * inner):
        raise ValueError(
            f"out_channels must be in_channels={inner}, or twice that with a learned "
            f"variance, got {outer}."
        )
    return outer == 2 * inner


def process_from_diffusers(fields: dict[str, Any]) -> Any:
    """The process that ``export_weights`` has recorded, or ``None``."""
    return (fields.get(_EXTRA) or {}).get("process")


def config_to_diffusers(config: DiTConfig) -> dict[str, Any]:
    """The ``config.json`` with which diffusers loads this shape.

    ``norm_eps`` is 1e-6, the value of the published models.

    Raises:
        ValueError: for an ``mlp_ratio`` other than 4, which diffusers has no field for.
    """
    if config.mlp_width != 4 * config.width:
        raise ValueError(
            f"mlp_ratio must be 4 in diffusers, got {config.mlp_ratio}; export with "
            f"layout='native' or 'official'."
        )
    shape = {theirs: getattr(config, ours) for theirs, ours in _SHAPE.items()}
    return {
        "_class_name": CLASS_NAME,
        _EXTRA: {"process": config.process},
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
