"""Weights of Flux.1: the layouts of diffusers and of Black Forest Labs.

Both give the same parameters. diffusers stores the final modulation as scale and shift;
its halves are exchanged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jax.sharding import PartitionSpec

from full_models.models.family import Inferred, Layout
from full_models.models.flux.config import PATCH, FluxConfig
from full_models.models.layers import TIME_FEATURES
from full_models.models.text_to_image import BUNDLED
from full_models.weights.table import (
    Entry,
    Source,
    Stored,
    Table,
    copied,
    exchanged,
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
# Of a stream: modulation; maps, norms and output of attention; MLP.
_DOUBLE: dict[str, dict[str, Any]] = {
    "diffusers": {
        "block": "transformer_blocks.{}.",
        "image": (
            "norm1.linear",
            ("attn.to_q", "attn.to_k", "attn.to_v"),
            ("attn.norm_q.weight", "attn.norm_k.weight"),
            "attn.to_out.0",
            ("ff.net.0.proj", "ff.net.2"),
        ),
        "text": (
            "norm1_context.linear",
            ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            ("attn.norm_added_q.weight", "attn.norm_added_k.weight"),
            "attn.to_add_out",
            ("ff_context.net.0.proj", "ff_context.net.2"),
        ),
    },
    "original": {
        "block": "double_blocks.{}.",
        **{
            stream: (
                f"{side}_mod.lin",
                (f"{side}_attn.qkv",),
                tuple(f"{side}_attn.norm.{n}_norm.scale" for n in ("query", "key")),
                f"{side}_attn.proj",
                (f"{side}_mlp.0", f"{side}_mlp.2"),
            )
            for stream, side in (("image", "img"), ("text", "txt"))
        },
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
    for ours, features in inner.items():
        first, second = (names[ours].format(end) for end in names["ends"])
        entries |= linear(f"{ours}.fc1", first, features, width)
        entries |= linear(f"{ours}.fc2", second, width, width)
    final = linear("final.modulation", names["final.modulation"], width, 2 * width)
    entries |= exchanged(final) if layout == "diffusers" else final
    entries |= linear("final.linear", names["final.linear"], width, pixels)
    return Table(entries | _double(layout, c) | _single(layout, c))


def _each(block: str, count: int, name: str) -> list[str]:
    return [block.format(i) + name for i in range(count)]


def _joined(block: str, count: int, names: Sequence[str]) -> list[list[str]]:
    return [[block.format(i) + name for name in names] for i in range(count)]


def _double(layout: str, config: FluxConfig) -> dict[str, Entry]:
    width, count = config.width, config.num_double
    streams = _DOUBLE[layout]
    entries: dict[str, Entry] = {}
    block = streams["block"]
    features = width // config.num_heads
    for side in ("image", "text"):
        modulation, maps, norms, out, mlp = streams[side]
        ours = f"double.{side}"
        entries |= linear(
            f"{ours}.modulation", _each(block, count, modulation), width, 6 * width
        )
        outer = 3 * width // len(maps)
        entries |= linear(f"{ours}.attn.qkv", _joined(block, count, maps), width, outer)
        for which, name in zip(("norm_q", "norm_k"), norms, strict=True):
            entries[f"{ours}.attn.norms.{which}"] = copied(
                _each(block, count, name), (features,)
            )
        entries |= linear(f"{ours}.attn.proj", _each(block, count, out), width, width)
        sizes = ((width, 4 * width), (4 * width, width))
        for which, name, size in zip(("fc1", "fc2"), mlp, sizes, strict=True):
            entries |= linear(f"{ours}.mlp.{which}", _each(block, count, name), *size)
    return entries


def _single(layout: str, config: FluxConfig) -> dict[str, Entry]:
    width, count, names = config.width, config.num_single, _SINGLE[layout]
    block = names["block"]
    entries = {
        **linear(
            "single.modulation",
            _each(block, count, names["modulation"]),
            width,
            3 * width,
        ),
        **linear(
            "single.linear2", _each(block, count, names["linear2"]), 5 * width, width
        ),
    }
    for which, name in zip(("norm_q", "norm_k"), names["norms"], strict=True):
        entries[f"single.norms.{which}"] = copied(
            _each(block, count, name), (width // config.num_heads,)
        )
    if layout == "original":
        (name,) = names["linear1"]
        return entries | linear(
            "single.linear1", _each(block, count, name), width, 7 * width
        )
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
    counts = {}
    for ours, block in (
        ("num_double", _DOUBLE[layout]["block"]),
        ("num_single", _SINGLE[layout]["block"]),
    ):
        pattern = re.compile("^" + re.escape(block).replace(r"\{\}", r"(\d+)"))
        numbers = {int(hit[1]) for name in stored if (hit := pattern.match(name))}
        if numbers != set(range(len(numbers))) or not numbers:
            raise ValueError(
                f"blocks {block.format('i')} must be numbered from 0 without a gap, "
                f"got {sorted(numbers)[:5]}; the file is incomplete."
            )
        counts[ours] = len(numbers)
    pooled = names["pooled"].format(names["ends"][0])
    norm = _DOUBLE[layout]["block"].format(0) + _DOUBLE[layout]["image"][2][0]
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
    if fields.get("_class_name", CLASS_NAME) != CLASS_NAME:
        raise ValueError(
            f"_class_name must be {CLASS_NAME!r}, got {fields['_class_name']!r}; a "
            f"ControlNet or another model is no transformer of Flux.1."
        )
    said = {
        "num_layers": found["num_double"],
        "num_single_layers": found["num_single"],
        "patch_size": 1,
        "in_channels": found["in_channels"] * PATCH**2,
        "num_attention_heads": found["num_heads"],
        "attention_head_dim": found["width"] // found["num_heads"],
    }
    for name, wanted in said.items():
        value = fields.get(name)
        if value is not None and value != wanted:
            raise ValueError(
                f"{name} must be {wanted!r} as in the tensors, got {value!r}; the "
                f"config.json is of another model."
            )
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
