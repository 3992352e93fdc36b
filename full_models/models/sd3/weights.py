"""Weights of SD3 and SD3.5: the layouts of diffusers and of the original files.

Both give the same parameters. Where diffusers stores scale before shift (the final
modulation, and that of the text in the last block), the halves are exchanged.
"""

from __future__ import annotations

import math
from typing import Any

from jax.sharding import PartitionSpec

from full_models.models.family import Inferred, Layout
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
from full_models.models.sd3.config import SD3Config
from full_models.models.text_to_image import BUNDLED
from full_models.weights.table import (
    Entry,
    Source,
    Stored,
    Table,
    linear,
    patches,
)
from gmm_guidance.sharding import PathRules

# Blocks are stacked on the first axis, which every device walks along: it stays whole.
PLACEMENT: PathRules = (
    (r"(dual|joint|last)\..*\.mlp\.fc1\.kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"(dual|joint|last)\..*\.mlp\.fc1\.bias", PartitionSpec(None, "tensor")),
    (r"(dual|joint|last)\..*\.mlp\.fc2\.kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"(dual|joint|last)\..*\.kernel", PartitionSpec(None, "fsdp")),
    (
        r"(context|time\.fc2|pooled\.fc[12]|final\.modulation)\.kernel",
        PartitionSpec("fsdp"),
    ),
    (r"positions", PartitionSpec(None, None, "fsdp")),
)
EXECUTION = ("input_size", "compute_dtype", "attention")

CLASS_NAME = "SD3Transformer2DModel"
_EXTRA = "_gmm_guidance"
_OUTSIDE: dict[str, dict[str, Any]] = {
    "diffusers": {
        "patches": "pos_embed.proj",
        "positions": "pos_embed.pos_embed",
        "time": "time_text_embed.timestep_embedder.linear_{}",
        "pooled": "time_text_embed.text_embedder.linear_{}",
        "ends": (1, 2),
        "final.modulation": "norm_out.linear",
        "final.linear": "proj_out",
    },
    "original": {
        "patches": "x_embedder.proj",
        "positions": "pos_embed",
        "time": "t_embedder.mlp.{}",
        "pooled": "y_embedder.mlp.{}",
        "ends": (0, 2),
        "final.modulation": "final_layer.adaLN_modulation.1",
        "final.linear": "final_layer.linear",
    },
}
_BLOCKS = {"diffusers": "transformer_blocks.{}.", "original": "joint_blocks.{}."}
_STREAMS = {
    "diffusers": {
        "image": StreamNames(
            "norm1.linear",
            [
                (
                    (f"{attn}.to_q", f"{attn}.to_k", f"{attn}.to_v"),
                    (f"{attn}.norm_q.weight", f"{attn}.norm_k.weight"),
                    f"{attn}.to_out.0",
                )
                for attn in ("attn", "attn2")
            ],
            ("ff.net.0.proj", "ff.net.2"),
        ),
        "text": DIFFUSERS_TEXT,
    },
    "original": {
        stream: StreamNames(
            f"{prefix}.adaLN_modulation.1",
            [
                (
                    (f"{prefix}.{attn}.qkv",),
                    (f"{prefix}.{attn}.ln_q.weight", f"{prefix}.{attn}.ln_k.weight"),
                    f"{prefix}.{attn}.proj",
                )
                for attn in ("attn", "attn2")
            ],
            (f"{prefix}.mlp.fc1", f"{prefix}.mlp.fc2"),
        )
        for stream, prefix in (("image", "x_block"), ("text", "context_block"))
    },
}


def table_of(layout: str, config: SD3Config, stored: Stored) -> Table:
    """The tensors of all parameters in a layout, ``"diffusers"`` or ``"original"``.

    Args:
        layout: the layout.
        config: the shape.
        stored: the tensors of the file; ignored.
    """
    c, width, names = config, config.width, _OUTSIDE[layout]
    pixels = c.patch_size**2 * c.in_channels
    entries = patches("patches", names["patches"], c.in_channels, c.patch_size, width)
    entries["positions"] = _positions(names["positions"], c.table_size, width)
    inner = {"time": TIME_FEATURES, "pooled": c.pooled_width}
    entries |= embedding_entries(names, inner, width)
    entries |= linear("context", "context_embedder", c.text_width, width)
    is_diffusers = layout == "diffusers"
    entries |= final_entries(names, width, pixels, swaps=is_diffusers)
    last, image, text = c.depth - 1, *_STREAMS[layout].values()
    for segment, first, end, kinds in (
        ("dual", 0, c.num_dual, ("dual", "whole")),
        ("joint", c.num_dual, last, ("whole", "whole")),
        ("last", last, c.depth, ("whole", "read")),
    ):
        if first < end:
            each = each_of(_BLOCKS[layout], range(first, end))
            swaps = is_diffusers and kinds[1] == "read"
            entries |= stream_entries(f"{segment}.image", image, each, c, kinds[0])
            entries |= stream_entries(
                f"{segment}.text", text, each, c, kinds[1], swaps=swaps
            )
    return Table(entries)


def _positions(name: str, size: int, width: int) -> Entry:
    """``[M, M, D]``, stored as ``[1, M^2, D]``."""
    source = Source(
        name,
        (1, size * size, width),
        lambda a: a.reshape(size, size, width),
        lambda a: a.reshape(1, size * size, width),
    )
    return Entry(((source,),))


# What a file says of its model.


def _infer(layout: str, stored: Stored, fields: dict[str, Any] | None) -> Inferred:
    names = _OUTSIDE[layout]
    image, block = _STREAMS[layout]["image"], _BLOCKS[layout]
    depth = count_blocks(stored, block)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    try:
        width, channels, patch, _ = shapes[f"{names['patches']}.weight"]
        text_width = shapes["context_embedder.weight"][1]
        pooled = names["pooled"].format(names["ends"][0])
        pooled_width = shapes[f"{pooled}.weight"][1]
        positions = shapes[names["positions"]][1]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"the embeddings of patches, positions or text are missing or of an odd "
            f"shape ({error}); the file is incomplete."
        ) from error
    second = f"{image.attention[1][2]}.weight"
    dual = {i for i in range(depth) if block.format(i) + second in stored}
    if dual != set(range(len(dual))):
        raise ValueError(
            f"blocks with dual attention must be the first ones, got {sorted(dual)}; "
            f"this is no SD3.5."
        )
    norm = block.format(0) + image.attention[0][1][0]
    found: dict[str, Any] = {
        "in_channels": channels,
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "text_width": text_width,
        "pooled_width": pooled_width,
        "qk_norm": norm in stored,
        "num_dual": len(dual),
        "table_size": math.isqrt(positions),
    }
    defaults: dict[str, Any] = SD3Config.named("SD3-medium").__dict__
    defaults = {name: defaults[name] for name in ("process", "prediction")}
    side = (fields or {}).get("sample_size") or SD3Config().input_size[0]
    defaults["input_size"] = 2 * (min(side, patch * found["table_size"]),)
    if norm in stored:
        found["num_heads"] = width // stored[norm].shape[0]
    elif width % 64 == 0:
        defaults["num_heads"] = width // 64  # in all published models
    if (depth, width) != (38, 2432):  # which are the large one and its turbo
        found["turbo"] = False
    if fields is not None:
        found |= _from_config(fields, found)
    return Inferred(found, defaults)


def _from_config(fields: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What a ``config.json`` says besides; it must agree with the tensors."""
    check_class(fields, CLASS_NAME, "SD3")
    heads, features = (
        fields.get(n) for n in ("num_attention_heads", "attention_head_dim")
    )
    if heads and features and heads * features != found["width"]:
        raise ValueError(
            f"num_attention_heads * attention_head_dim must be the width "
            f"{found['width']} of the tensors, got {heads} * {features}."
        )
    said = {
        "num_layers": found["depth"],
        "patch_size": found["patch_size"],
        "in_channels": found["in_channels"],
        "out_channels": found["in_channels"],
        "pos_embed_max_size": found["table_size"],
        "qk_norm": "rms_norm" if found["qk_norm"] else None,
        "dual_attention_layers": list(range(found["num_dual"])),
    }
    check_said(fields, said)
    result = {"num_heads": heads} if heads else {}
    if isinstance(recorded := fields.get(_EXTRA), dict):
        result["turbo"] = bool(recorded["turbo"])
    return result


def config_to_diffusers(config: SD3Config) -> dict[str, Any]:
    """The ``config.json`` with which diffusers loads this shape."""
    c = config
    return {
        "_class_name": CLASS_NAME,
        _EXTRA: {"turbo": c.turbo},
        "sample_size": max(c.input_size),
        "patch_size": c.patch_size,
        "in_channels": c.in_channels,
        "out_channels": c.in_channels,
        "num_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "attention_head_dim": c.width // c.num_heads,
        "joint_attention_dim": c.text_width,
        "caption_projection_dim": c.width,
        "pooled_projection_dim": c.pooled_width,
        "pos_embed_max_size": c.table_size,
        "qk_norm": "rms_norm" if c.qk_norm else None,
        "dual_attention_layers": list(range(c.num_dual)),
    }


LAYOUTS = {
    "diffusers": Layout(
        r"^pos_embed\.pos_embed$",  # DiT's, looked for first, may have it too
        lambda config, stored: table_of("diffusers", config, stored),
        lambda stored, fields: _infer("diffusers", stored, fields),
        has_config=True,
        to_config=config_to_diffusers,
    ),
    "original": Layout(
        r"^joint_blocks\.\d+\.x_block",
        lambda config, stored: table_of("original", config, stored),
        lambda stored, fields: _infer("original", stored, fields),
        ignored=BUNDLED,
    ),
}
