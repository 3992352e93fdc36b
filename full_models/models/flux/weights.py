"""Weights of Flux.1: the layouts of diffusers and of Black Forest Labs.

Both give the same parameters. diffusers stores the final modulation as scale and shift;
its halves are exchanged.
"""

from __future__ import annotations

from typing import Any

from jax.sharding import PartitionSpec

from full_models.models.family import Inferred, Layout
from full_models.models.flux.config import PATCH, FluxConfig
from full_models.models.joint_weights import (
    DIFFUSERS_TEXT,
    StreamNames,
    check_class,
    check_said,
    count_blocks,
    each_of,
    embedding_entries,
    final_entries,
    stream_entries,
)
from full_models.models.layers import TIME_FEATURES
from full_models.models.text_to_image import BUNDLED
from full_models.weights.table import (
    Entry,
    Source,
    Stored,
    Table,
    copied,
    linear,
)
from gmm_guidance.sharding import PathRules

# Blocks are stacked on the first axis, which every device walks along: it stays whole.
PLACEMENT: PathRules = (
    (r"double\..*\.mlp\.fc1\.kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"double\..*\.mlp\.fc1\.bias", PartitionSpec(None, "tensor")),
    (r"double\..*\.mlp\.fc2\.kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"(double|single)\..*kernel", PartitionSpec(None, "fsdp")),
    (
        r"(context|time\.fc2|pooled\.fc[12]|guidance\.fc2|final\.modulation)\.kernel",
        PartitionSpec("fsdp"),
    ),
)
EXECUTION = ("input_size", "guidance", "compute_dtype", "attention")

CLASS_NAME = "FluxTransformer2DModel"
_EXTRA = "_gmm_guidance"
_PUBLISHED_AXES = (16, 56, 56)
_OUTSIDE: dict[str, dict[str, Any]] = {
    "diffusers": {
        "image_in": "x_embedder",
        "context": "context_embedder",
        "time": "time_text_embed.timestep_embedder.linear_{}",
        "pooled": "time_text_embed.text_embedder.linear_{}",
        "guidance": "time_text_embed.guidance_embedder.linear_{}",
        "ends": (1, 2),
        "final.modulation": "norm_out.linear",
        "final.linear": "proj_out",
    },
    "original": {
        "image_in": "img_in",
        "context": "txt_in",
        "time": "time_in.{}_layer",
        "pooled": "vector_in.{}_layer",
        "guidance": "guidance_in.{}_layer",
        "ends": ("in", "out"),
        "final.modulation": "final_layer.adaLN_modulation.1",
        "final.linear": "final_layer.linear",
    },
}
_BLOCKS = {"diffusers": "transformer_blocks.{}.", "original": "double_blocks.{}."}
_DOUBLE = {
    "diffusers": {
        "image": StreamNames(
            "norm1.linear",
            [
                (
                    ("attn.to_q", "attn.to_k", "attn.to_v"),
                    ("attn.norm_q.weight", "attn.norm_k.weight"),
                    "attn.to_out.0",
                )
            ],
            ("ff.net.0.proj", "ff.net.2"),
        ),
        "text": DIFFUSERS_TEXT,
    },
    "original": {
        stream: StreamNames(
            f"{side}_mod.lin",
            [
                (
                    (f"{side}_attn.qkv",),
                    [f"{side}_attn.norm.{n}_norm.scale" for n in ("query", "key")],
                    f"{side}_attn.proj",
                )
            ],
            (f"{side}_mlp.0", f"{side}_mlp.2"),
        )
        for stream, side in (("image", "img"), ("text", "txt"))
    },
}
_SINGLE: dict[str, dict[str, Any]] = {
    "diffusers": {
        "block": "single_transformer_blocks.{}.",
        "modulation": "norm.linear",
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear2": "proj_out",
        "norms": ("attn.norm_q.weight", "attn.norm_k.weight"),
    },
    "original": {
        "block": "single_blocks.{}.",
        "modulation": "modulation.lin",
        "linear1": ("linear1",),
        "linear2": "linear2",
        "norms": ("norm.query_norm.scale", "norm.key_norm.scale"),
    },
}


def table_of(layout: str, config: FluxConfig) -> Table:
    """The tensors of all parameters in a layout, ``"diffusers"`` or ``"original"``."""
    c, width, names = config, config.width, _OUTSIDE[layout]
    pixels = PATCH**2 * c.in_channels
    inner = {"time": TIME_FEATURES, "pooled": c.pooled_width}
    if c.variant == "dev":
        inner["guidance"] = TIME_FEATURES
    entries = linear("image_in", names["image_in"], pixels, width)
    entries |= linear("context", names["context"], c.text_width, width)
    entries |= embedding_entries(names, inner, width)
    entries |= final_entries(names, width, pixels, swaps=layout == "diffusers")
    each = each_of(_BLOCKS[layout], range(c.num_double))
    for side, stream in _DOUBLE[layout].items():
        entries |= stream_entries(f"double.{side}", stream, each, c)
    return Table(entries | _single(layout, c))


def _single(layout: str, config: FluxConfig) -> dict[str, Entry]:
    width, count, names = config.width, config.num_single, _SINGLE[layout]
    block = names["block"]
    each = each_of(block, range(count))
    entries = linear("single.modulation", each(names["modulation"]), width, 3 * width)
    entries |= linear("single.linear2", each(names["linear2"]), 5 * width, width)
    for which, name in zip(("norm_q", "norm_k"), names["norms"], strict=True):
        entries[f"single.norms.{which}"] = copied(
            each(name), (width // config.num_heads,)
        )
    if layout == "original":
        (name,) = names["linear1"]
        return entries | linear("single.linear1", each(name), width, 7 * width)
    # The parts have different widths.
    sizes = (width, width, width, 4 * width)
    parts = list(zip(names["linear1"], sizes, strict=True))
    for ours, suffix in (("kernel", ".weight"), ("bias", ".bias")):
        rows = tuple(
            tuple(
                _part(f"{block.format(i)}{name}{suffix}", width, size, ours == "kernel")
                for name, size in parts
            )
            for i in range(count)
        )
        entries[f"single.linear1.{ours}"] = Entry(rows, stacked=True)
    return entries


def _part(name: str, inner: int, outer: int, is_kernel: bool) -> Source:
    if is_kernel:
        return Source(name, (outer, inner), lambda a: a.T, lambda a: a.T)
    return Source(name, (outer,), lambda a: a, lambda a: a)


# What a file says of its model.


def _infer(layout: str, stored: Stored, fields: dict[str, Any] | None) -> Inferred:
    names = _OUTSIDE[layout]
    counts = {
        "num_double": count_blocks(stored, _BLOCKS[layout]),
        "num_single": count_blocks(stored, _SINGLE[layout]["block"]),
    }
    pooled = names["pooled"].format(names["ends"][0])
    norm = _BLOCKS[layout].format(0) + _DOUBLE[layout]["image"].attention[0][1][0]
    try:
        width, pixels = stored[f"{names['image_in']}.weight"].shape
        found: dict[str, Any] = {
            **counts,
            "width": width,
            "in_channels": pixels // PATCH**2,
            "text_width": stored[f"{names['context']}.weight"].shape[1],
            "pooled_width": stored[f"{pooled}.weight"].shape[1],
            "num_heads": width // stored[norm].shape[0],
        }
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"the embeddings of image or text are missing or of an odd shape ({error});"
            f" the file is incomplete."
        ) from error
    defaults = {name: getattr(FluxConfig(), name) for name in ("process", "prediction")}
    if width // found["num_heads"] == sum(_PUBLISHED_AXES):
        defaults["axes"] = _PUBLISHED_AXES
    guidance = names["guidance"].format(names["ends"][0])
    if has_guidance := f"{guidance}.weight" in stored:
        found["variant"] = "dev"
    if fields is not None:
        found |= _from_config(fields, found, has_guidance)
    return Inferred(found, defaults)


def _from_config(
    fields: dict[str, Any], found: dict[str, Any], has_guidance: bool
) -> dict[str, Any]:
    """What a ``config.json`` says besides; it must agree with the tensors."""
    check_class(fields, CLASS_NAME, "Flux.1")
    said = {
        "num_layers": found["num_double"],
        "num_single_layers": found["num_single"],
        "patch_size": 1,
        "in_channels": found["in_channels"] * PATCH**2,
        "num_attention_heads": found["num_heads"],
        "attention_head_dim": found["width"] // found["num_heads"],
    }
    check_said(fields, said)
    if bool(fields.get("guidance_embeds", has_guidance)) != has_guidance:
        raise ValueError(
            f"guidance_embeds is {fields['guidance_embeds']}, but the tensors "
            f"{'have' if has_guidance else 'lack'} the embedding of guidance; take "
            f"config.json and weights of the same model (Flux.1-dev has it, schnell "
            f"and de-distilled models do not)."
        )
    result: dict[str, Any] = {}
    if axes := fields.get("axes_dims_rope"):
        result["axes"] = tuple(axes)
    if isinstance(recorded := fields.get(_EXTRA), dict):
        result["variant"] = recorded["variant"]
    return result


def config_to_diffusers(config: FluxConfig) -> dict[str, Any]:
    """The ``config.json`` with which diffusers loads this shape."""
    c = config
    return {
        "_class_name": CLASS_NAME,
        _EXTRA: {"variant": c.variant},
        "patch_size": 1,
        "in_channels": c.in_channels * PATCH**2,
        "out_channels": None,
        "num_layers": c.num_double,
        "num_single_layers": c.num_single,
        "num_attention_heads": c.num_heads,
        "attention_head_dim": c.width // c.num_heads,
        "joint_attention_dim": c.text_width,
        "pooled_projection_dim": c.pooled_width,
        "guidance_embeds": c.variant == "dev",
        "axes_dims_rope": list(c.axes),
    }


LAYOUTS = {
    "diffusers": Layout(
        r"^single_transformer_blocks\.",
        lambda config, stored: table_of("diffusers", config),
        lambda stored, fields: _infer("diffusers", stored, fields),
        has_config=True,
        to_config=config_to_diffusers,
    ),
    "original": Layout(
        r"^single_blocks\.\d+\.linear1\.",
        lambda config, stored: table_of("original", config),
        lambda stored, fields: _infer("original", stored, fields),
        ignored=BUNDLED,
    ),
}
