"""Weights of SD3 and SD3.5: the layouts of diffusers and of the original files.

Both give the same parameters. Where diffusers stores scale before shift (the final
modulation, and that of the text in the last block), the halves are exchanged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from jax.sharding import PartitionSpec

from full_models.models.family import Inferred, Layout
from full_models.models.layers import TIME_FEATURES
from full_models.models.sd3.config import SD3Config
from full_models.models.text_to_image import BUNDLED
from full_models.weights.table import (
    Entry,
    Source,
    Stored,
    Table,
    copied,
    exchanged,
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
_OUTSIDE = {
    "diffusers": {
        "patches": "pos_embed.proj",
        "positions": "pos_embed.pos_embed",
        "time": "time_text_embed.timestep_embedder.linear_{}",
        "pooled": "time_text_embed.text_embedder.linear_{}",
        "numbers": (1, 2),
        "final.modulation": "norm_out.linear",
        "final.linear": "proj_out",
    },
    "original": {
        "patches": "x_embedder.proj",
        "positions": "pos_embed",
        "time": "t_embedder.mlp.{}",
        "pooled": "y_embedder.mlp.{}",
        "numbers": (0, 2),
        "final.modulation": "final_layer.adaLN_modulation.1",
        "final.linear": "final_layer.linear",
    },
}
# Of a stream: modulation, MLP, and by attention its maps, norms and output.
_STREAMS: dict[str, dict[str, Any]] = {
    "diffusers": {
        "block": "transformer_blocks.{}.",
        "image": {
            "modulation": "norm1.linear",
            "mlp": ("ff.net.0.proj", "ff.net.2"),
            "attn": (
                ("attn.to_q", "attn.to_k", "attn.to_v"),
                ("attn.norm_q.weight", "attn.norm_k.weight"),
                "attn.to_out.0",
            ),
            "attn2": (
                ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
                ("attn2.norm_q.weight", "attn2.norm_k.weight"),
                "attn2.to_out.0",
            ),
        },
        "text": {
            "modulation": "norm1_context.linear",
            "mlp": ("ff_context.net.0.proj", "ff_context.net.2"),
            "attn": (
                ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                ("attn.norm_added_q.weight", "attn.norm_added_k.weight"),
                "attn.to_add_out",
            ),
        },
    },
    "original": {
        "block": "joint_blocks.{}.",
        **{
            stream: {
                "modulation": f"{prefix}.adaLN_modulation.1",
                "mlp": (f"{prefix}.mlp.fc1", f"{prefix}.mlp.fc2"),
                **{
                    attn: (
                        (f"{prefix}.{attn}.qkv",),
                        (
                            f"{prefix}.{attn}.ln_q.weight",
                            f"{prefix}.{attn}.ln_k.weight",
                        ),
                        f"{prefix}.{attn}.proj",
                    )
                    for attn in ("attn", "attn2")
                },
            }
            for stream, prefix in (("image", "x_block"), ("text", "context_block"))
        },
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
    entries = patches(
        "patches", str(names["patches"]), c.in_channels, c.patch_size, width
    )
    entries["positions"] = _positions(str(names["positions"]), c.table_size, width)
    for ours, inner in (("time", TIME_FEATURES), ("pooled", c.pooled_width)):
        first, second = (str(names[ours]).format(n) for n in names["numbers"])
        entries |= linear(f"{ours}.fc1", first, inner, width)
        entries |= linear(f"{ours}.fc2", second, width, width)
    entries |= linear("context", "context_embedder", c.text_width, width)
    final = linear("final.modulation", str(names["final.modulation"]), width, 2 * width)
    entries |= exchanged(final) if layout == "diffusers" else final
    entries |= linear("final.linear", str(names["final.linear"]), width, pixels)
    last = c.depth - 1
    segments = {
        "dual": range(c.num_dual),
        "joint": range(c.num_dual, last),
        "last": range(last, c.depth),
    }
    for segment, blocks in segments.items():
        if blocks:
            entries |= _blocks(layout, config, segment, blocks)
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


def _blocks(
    layout: str, config: SD3Config, segment: str, blocks: Sequence[int]
) -> dict[str, Entry]:
    width, streams = config.width, _STREAMS[layout]
    entries: dict[str, Entry] = {}

    def each(name: str) -> list[str]:
        return [streams["block"].format(i) + name for i in blocks]

    for side in ("image", "text"):
        names = streams[side]
        ends = segment == "last" and side == "text"
        dual = segment == "dual" and side == "image"
        terms = 2 if ends else 9 if dual else 6
        ours = f"{segment}.{side}"
        modulation = linear(
            f"{ours}.modulation", each(names["modulation"]), width, terms * width
        )
        swaps = ends and layout == "diffusers"
        entries |= exchanged(modulation) if swaps else modulation
        for attn in ("attn", "attn2") if dual else ("attn",):
            maps, norms, out = names[attn]
            joined = [list(row) for row in zip(*map(each, maps), strict=True)]
            outer = 3 * width if len(maps) == 1 else width
            entries |= linear(f"{ours}.{attn}.qkv", joined, width, outer)
            if config.qk_norm:
                for which, name in zip(("norm_q", "norm_k"), norms, strict=True):
                    entries[f"{ours}.{attn}.norms.{which}"] = copied(
                        each(name), (width // config.num_heads,)
                    )
            if not ends:
                entries |= linear(f"{ours}.{attn}.proj", each(out), width, width)
        if not ends:
            inner, outer_map = names["mlp"]
            entries |= linear(f"{ours}.mlp.fc1", each(inner), width, 4 * width)
            entries |= linear(f"{ours}.mlp.fc2", each(outer_map), 4 * width, width)
    return entries


# What a file says of its model.


def _infer(layout: str, stored: Stored, fields: dict[str, Any] | None) -> Inferred:
    names = _OUTSIDE[layout]
    streams = _STREAMS[layout]
    pattern = re.compile("^" + re.escape(streams["block"]).replace(r"\{\}", r"(\d+)"))
    numbers = {int(hit[1]) for name in stored if (hit := pattern.match(name))}
    if numbers != set(range(len(numbers))):
        missing = sorted(set(range(max(numbers, default=0))) - numbers)
        raise ValueError(
            f"blocks must be numbered from 0 without a gap, but {missing[:5]} are "
            f"missing; the file is incomplete."
        )
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    try:
        width, channels, patch, _ = shapes[f"{names['patches']}.weight"]
        text_width = shapes["context_embedder.weight"][1]
        pooled = str(names["pooled"]).format(names["numbers"][0])
        pooled_width = shapes[f"{pooled}.weight"][1]
        positions = shapes[str(names["positions"])][1]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"the embeddings of patches, positions or text are missing or of an odd "
            f"shape ({error}); the file is incomplete."
        ) from error
    second = streams["image"]["attn2"][2]
    dual = {
        i for i in numbers if f"{streams['block'].format(i)}{second}.weight" in stored
    }
    if dual != set(range(len(dual))):
        raise ValueError(
            f"blocks with dual attention must be the first ones, got {sorted(dual)}; "
            f"this is no SD3.5."
        )
    norm = streams["block"].format(0) + streams["image"]["attn"][1][0]
    found: dict[str, Any] = {
        "in_channels": channels,
        "patch_size": patch,
        "width": width,
        "depth": len(numbers),
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
    if (len(numbers), width) != (38, 2432):  # which are the large one and its turbo
        found["turbo"] = False
    if fields is not None:
        found |= _from_config(fields, found)
    return Inferred(found, defaults)


def _from_config(fields: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What a ``config.json`` says besides; it must agree with the tensors."""
    if fields.get("_class_name", CLASS_NAME) != CLASS_NAME:
        raise ValueError(
            f"_class_name must be {CLASS_NAME!r}, got {fields['_class_name']!r}; a "
            f"ControlNet or another model is no transformer of SD3."
        )
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
    for name, wanted in said.items():
        value = fields.get(name, wanted)
        value = list(value) if isinstance(value, (list, tuple)) else value
        if value is not None and value != wanted:
            raise ValueError(
                f"{name} must be {wanted!r} as in the tensors, got {value!r}; the "
                f"config.json is of another model."
            )
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
