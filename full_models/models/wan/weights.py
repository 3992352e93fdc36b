"""Weights of Wan: the layouts of diffusers and of Wan-AI.

Both give the same parameters. The norm before the attention to the text is ``norm2`` in
diffusers and ``norm3`` in Wan-AI's files; the other norms have no parameters.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from jax.sharding import PartitionSpec

from full_models.models.family import Inferred, Layout
from full_models.models.layers import TIME_FEATURES
from full_models.models.wan.config import PATCH, WanConfig
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
    (r"blocks\..*\.kernel", PartitionSpec(None, "fsdp")),
    (r"(modulation|text\.fc1|text\.fc2|time\.fc2)\.kernel", PartitionSpec("fsdp")),
)

_HEAD_DIM = 128
_TENSORS = {  # of other models of the same code
    "condition_embedder.image_embedder.": "image to video (I2V)",
    "img_emb.": "image to video (I2V)",
    "vace_": "VACE",
    "motion_encoder.": "Wan Animate",
    "face_adapter.": "Wan Animate",
    "audio_injector.": "Wan S2V",
}
_CHANNELS = {
    36: "image to video (I2V), which needs the latents of an image",
    48: "Wan 2.2 TI2V-5B, which needs another autoencoder",
}

# Names of what the blocks have, and of all else, in each layout.
_BLOCK = {
    "diffusers": {
        "modulation": "scale_shift_table",
        "attn": ("attn1", ("to_q", "to_k", "to_v"), "to_out.0"),
        "cross": ("attn2", ("to_q", "to_k", "to_v"), "to_out.0"),
        "cross_norm": "norm2",
        "mlp": ("ffn.net.0.proj", "ffn.net.2"),
    },
    "official": {
        "modulation": "modulation",
        "attn": ("self_attn", ("q", "k", "v"), "o"),
        "cross": ("cross_attn", ("q", "k", "v"), "o"),
        "cross_norm": "norm3",
        "mlp": ("ffn.0", "ffn.2"),
    },
}
_OUTSIDE = {
    "diffusers": {
        "time": tuple(f"condition_embedder.time_embedder.linear_{i}" for i in (1, 2)),
        "modulation": "condition_embedder.time_proj",
        "text": tuple(f"condition_embedder.text_embedder.linear_{i}" for i in (1, 2)),
        "final_modulation": "scale_shift_table",
        "final": "proj_out",
    },
    "official": {
        "time": ("time_embedding.0", "time_embedding.2"),
        "modulation": "time_projection.1",
        "text": ("text_embedding.0", "text_embedding.2"),
        "final_modulation": "head.modulation",
        "final": "head.head",
    },
}


def table_of(layout: str, config: WanConfig) -> Table:
    """The tensors of all parameters in a layout, ``"diffusers"`` or ``"official"``."""
    c, width = config, config.width
    block: dict[str, Any] = _BLOCK[layout]
    outside: dict[str, Any] = _OUTSIDE[layout]
    pixels = PATCH**2 * c.in_channels

    def each(*names: str) -> list[list[str]]:
        return [[f"blocks.{i}.{name}" for name in names] for i in range(c.depth)]

    entries = {
        **_patches("patches", "patch_embedding", c.in_channels, width),
        **linear("time.fc1", outside["time"][0], TIME_FEATURES, width),
        **linear("time.fc2", outside["time"][1], width, width),
        **linear("modulation", outside["modulation"], width, 6 * width),
        **linear("text.fc1", outside["text"][0], c.text_width, width),
        **linear("text.fc2", outside["text"][1], width, width),
        "final_modulation": _table(outside["final_modulation"], 2, width),
        **linear("final", outside["final"], width, pixels),
    }
    modulation = [f"blocks.{i}.{block['modulation']}" for i in range(c.depth)]
    entries["blocks.modulation"] = _tables(modulation, 6, width)
    for ours, joined in (("attn", ("qkv",)), ("cross", ("query", "key_value"))):
        theirs, maps, out = block[ours]
        groups = (maps,) if len(joined) == 1 else (maps[:1], maps[1:])
        for name, group in zip(joined, groups, strict=True):
            names = each(*(f"{theirs}.{one}" for one in group))
            entries |= linear(f"blocks.{ours}.{name}", names, width, width)
        for name, one in (("query_norm", "norm_q"), ("key_norm", "norm_k")):
            names = each(f"{theirs}.{one}.weight")
            entries[f"blocks.{ours}.{name}.scale"] = copied(names, (width,))
        entries |= linear(f"blocks.{ours}.proj", each(f"{theirs}.{out}"), width, width)
    for ours, one in (("scale", "weight"), ("bias", "bias")):
        names = each(f"{block['cross_norm']}.{one}")
        entries[f"blocks.cross_norm.{ours}"] = copied(names, (width,))
    inner, outer = block["mlp"]
    entries |= linear("blocks.mlp.fc1", each(inner), width, c.mlp_width)
    entries |= linear("blocks.mlp.fc2", each(outer), c.mlp_width, width)
    return Table(entries)


def _table(name: str, rows: int, width: int) -> Entry:
    return Entry(((_table_source(name, rows, width),),))


def _tables(names: list[str], rows: int, width: int) -> Entry:
    return Entry(tuple((_table_source(n, rows, width),) for n in names), stacked=True)


def _table_source(name: str, rows: int, width: int) -> Source:
    """``[rows, D]``, stored with a leading axis of one."""
    return Source(name, (1, rows, width), lambda a: a[0], lambda a: a[None])


def _patches(ours: str, theirs: str, channels: int, width: int) -> dict[str, Entry]:
    """A linear map of flattened patches, stored as ``[D, C, 1, p, p]``."""
    p = PATCH

    def load(kernel: Any) -> Any:
        return kernel[:, :, 0].transpose(2, 3, 1, 0).reshape(p * p * channels, width)

    def store(kernel: Any) -> Any:
        return kernel.reshape(p, p, channels, width).transpose(3, 2, 0, 1)[:, :, None]

    weight = Source(f"{theirs}.weight", (width, channels, 1, p, p), load, store)
    bias = copied(f"{theirs}.bias", (width,))
    return {f"{ours}.kernel": Entry(((weight,),)), f"{ours}.bias": bias}


# What a file says of its model.


def _infer_official(stored: Stored, fields: dict[str, Any] | None) -> Inferred:
    said = _infer(stored, "text_embedding.0.weight", "ffn.0.bias")
    if fields is None:
        return said
    kind = fields.get("model_type", "t2v")
    if kind != "t2v":
        raise _refused(f"of the type {kind!r}")
    wanted = {"_class_name": "WanModel", "freq_dim": TIME_FEATURES, "eps": 1e-6}
    wanted |= {"patch_size": [1, PATCH, PATCH], "cross_attn_norm": True}
    return _checked(said, fields, wanted, fields.get("num_heads"), "text_len")


def _infer_diffusers(stored: Stored, fields: dict[str, Any] | None) -> Inferred:
    text = "condition_embedder.text_embedder.linear_1.weight"
    said = _infer(stored, text, "ffn.net.0.proj.bias")
    if fields is None:
        return said
    if fields.get("image_dim") is not None or fields.get("added_kv_proj_dim"):
        raise _refused("of the type 'i2v'")
    wanted = {"_class_name": "WanTransformer3DModel", "freq_dim": TIME_FEATURES}
    wanted |= {"patch_size": [1, PATCH, PATCH], "cross_attn_norm": True}
    wanted |= {"qk_norm": "rms_norm_across_heads", "eps": 1e-6}
    return _checked(said, fields, wanted, fields.get("num_attention_heads"), "text_len")


def _infer(stored: Stored, text: str, inside: str) -> Inferred:
    """The shape that tensors tell; heads are 128 wide in all published models."""
    for prefix, model in _TENSORS.items():
        if any(name.startswith(prefix) or f".{prefix}" in name for name in stored):
            raise _refused(f"of {model}")
    if any("add_k_proj" in name or ".k_img." in name for name in stored):
        raise _refused("of image to video (I2V)")
    numbers = [re.match(r"blocks\.(\d+)\.", name) for name in stored]
    patches = stored.get("patch_embedding.weight")
    if patches is None or text not in stored or f"blocks.0.{inside}" not in stored:
        raise ValueError(
            "patch_embedding, the text embedding or block 0 is missing; the file is "
            "incomplete."
        )
    width, channels = patches.shape[:2]
    if channels in _CHANNELS:
        raise _refused(f"of {_CHANNELS[channels]}")
    fields = {
        "in_channels": channels,
        "width": width,
        "depth": 1 + max(int(n.group(1)) for n in numbers if n),
        "mlp_width": stored[f"blocks.0.{inside}"].shape[0],
        "text_width": stored[text].shape[1],
    }
    published = WanConfig()
    defaults = {
        "text_length": published.text_length,
        "process": published.process,
        "prediction": published.prediction,
    }
    if width % _HEAD_DIM == 0:
        defaults["num_heads"] = width // _HEAD_DIM
    return Inferred(fields, defaults)


def _checked(
    said: Inferred,
    fields: dict[str, Any],
    wanted: dict[str, Any],
    num_heads: Any,
    text_length: str,
) -> Inferred:
    for name, value in wanted.items():
        found = fields.get(name, value)
        if (list(found) if isinstance(found, tuple) else found) != value:
            raise ValueError(
                f"{name} must be {value!r}, got {found!r}; this network is that of "
                f"Wan 2.1's text to video alone."
            )
    if num_heads is None:
        raise ValueError("the number of attention heads is missing.")
    more = {"num_heads": num_heads}
    if text_length in fields:
        more["text_length"] = fields[text_length]
    return Inferred(said.fields | more, said.defaults)


def _refused(what: str) -> ValueError:
    return ValueError(
        f"the weights are {what}; only text to video of Wan 2.1 (T2V, 1.3B and 14B) is "
        f"supported."
    )


def refuse_two_networks(path: Path) -> None:
    """Refuse one of the two networks of Wan 2.2, whose tensors are those of 2.1.

    Args:
        path: the file or folder that was given.

    Raises:
        ValueError: if another network lies beside it.
    """
    for place in (path, *path.parents[:2]):
        for name in ("transformer_2", "low_noise_model", "high_noise_model"):
            if place.name == name or (place / name).is_dir():
                raise ValueError(
                    f"{path} is one of the two networks of Wan 2.2, which are switched "
                    f"at a noise level ({name}); this needs two stacks in one run and "
                    f"is not supported. Use the weights of Wan 2.1."
                )


def _to_diffusers(config: WanConfig) -> dict[str, Any]:
    """The ``config.json`` with which diffusers loads this shape."""
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": [1, PATCH, PATCH],
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "text_dim": config.text_width,
        "freq_dim": TIME_FEATURES,
        "ffn_dim": config.mlp_width,
        "num_layers": config.depth,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "rope_max_seq_len": 1024,
    }


def _to_official(config: WanConfig) -> dict[str, Any]:
    """The ``config.json`` of Wan-AI."""
    return {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "dim": config.width,
        "ffn_dim": config.mlp_width,
        "freq_dim": TIME_FEATURES,
        "in_dim": config.in_channels,
        "out_dim": config.in_channels,
        "num_heads": config.num_heads,
        "num_layers": config.depth,
        "text_len": config.text_length,
        "eps": 1e-6,
    }


LAYOUTS = {
    "diffusers": Layout(
        r"^condition_embedder\.time_embedder\.",
        lambda config, stored: table_of("diffusers", config),
        _infer_diffusers,
        has_config=True,
        to_config=_to_diffusers,
    ),
    "official": Layout(
        r"^head\.modulation$",
        lambda config, stored: table_of("official", config),
        _infer_official,
        has_config=True,
        to_config=_to_official,
    ),
}

# Fields of the config that no file decides.
EXECUTION = ("compute_dtype", "latent_shape")
_SHAPE = ("depth", "width", "num_heads", "mlp_width")


def published(config: WanConfig) -> dict[str, Any]:
    """What the name of a published model stands for."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name in _SHAPE
    }
