"""Weights of ``KLDecoder`` in the layouts of diffusers and of the original files.

Tensors of the encoder are not read.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from full_models.models.autoencoder.config import KLConfig
from full_models.models.family import Inferred, Layout
from full_models.weights.table import (
    Entry,
    Source,
    Stored,
    Table,
    conv,
    copied,
)

_ATTENTION = "decoder.mid_block.attentions.0."
# The maps of attention: ours, those of diffusers, and of diffusers before 2023.
_MAPS = (
    ("query", "to_q", "query"),
    ("key", "to_k", "key"),
    ("value", "to_v", "value"),
    ("out", "to_out.0", "proj_attn"),
)


def diffusers_table(config: KLConfig, stored: Stored) -> Table:
    """The names of diffusers; older ones where the file has them."""
    entries: dict[str, Entry] = {}
    outwards = config.block_out_channels[::-1]
    latent, inner = config.latent_channels, outwards[0]
    if config.use_post_quant_conv:
        entries |= conv("post_quant_conv", "post_quant_conv", latent, latent, 1)
    entries |= conv("conv_in", "decoder.conv_in", latent, inner, 3)
    for ours, index in (("first", 0), ("second", 1)):
        theirs = f"decoder.mid_block.resnets.{index}"
        entries |= _residual(f"mid.{ours}", theirs, inner, inner)
    if config.mid_block_add_attention:
        entries |= _norm("mid.attention.norm", f"{_ATTENTION}group_norm", inner)
        for ours, new, old in _MAPS:
            entries |= _map(f"mid.attention.{ours}", new, old, inner, stored)
    for i, outer in enumerate(outwards):
        block = f"decoder.up_blocks.{i}"
        for j in range(config.layers_per_block + 1):
            layer = f"blocks.{i}.layers.{j}"
            entries |= _residual(layer, f"{block}.resnets.{j}", inner, outer)
            inner = outer
        if i < len(outwards) - 1:
            up = f"{block}.upsamplers.0.conv"
            entries |= conv(f"blocks.{i}.conv", up, outer, outer, 3)
    entries |= _norm("norm_out", "decoder.conv_norm_out", inner)
    entries |= conv("conv_out", "decoder.conv_out", inner, config.out_channels, 3)
    return Table(entries)


def _norm(ours: str, theirs: str, channels: int) -> dict[str, Entry]:
    return {
        f"{ours}.scale": copied(f"{theirs}.weight", (channels,)),
        f"{ours}.bias": copied(f"{theirs}.bias", (channels,)),
    }


def _residual(ours: str, theirs: str, inner: int, outer: int) -> dict[str, Entry]:
    entries = _norm(f"{ours}.norm1", f"{theirs}.norm1", inner)
    entries |= conv(f"{ours}.conv1", f"{theirs}.conv1", inner, outer, 3)
    entries |= _norm(f"{ours}.norm2", f"{theirs}.norm2", outer)
    entries |= conv(f"{ours}.conv2", f"{theirs}.conv2", outer, outer, 3)
    if inner != outer:
        shortcut = f"{theirs}.conv_shortcut"
        entries |= conv(f"{ours}.shortcut", shortcut, inner, outer, 1)
    return entries


def _map(
    ours: str, new: str, old: str, channels: int, stored: Stored
) -> dict[str, Entry]:
    name = _ATTENTION + (old if f"{_ATTENTION}{old}.weight" in stored else new)
    weight = f"{name}.weight"
    # Older files hold these maps as 1x1 convolutions.
    is_conv = weight in stored and len(stored[weight].shape) == 4
    shape = (channels, channels, 1, 1) if is_conv else (channels, channels)
    source = Source(
        weight,
        shape,
        lambda array: array.reshape(channels, channels).T,
        lambda array: array.T.reshape(shape),
    )
    return {
        f"{ours}.kernel": Entry(((source,),)),
        f"{ours}.bias": copied(f"{name}.bias", (channels,)),
    }


def _infer(stored: Stored, fields: dict[str, Any] | None) -> Inferred:
    """The config next to the file; shape of Stable Diffusion 1 and 2 without one."""
    config = KLConfig() if fields is None else KLConfig.from_diffusers(fields)
    found = dataclasses.asdict(config)
    del found["compute_dtype"]
    return Inferred(found)


# Names of diffusers and of the original code, in the order of replacement.
_ORIGINAL = (
    ("decoder.mid_block.resnets.0.", "decoder.mid.block_1."),
    ("decoder.mid_block.resnets.1.", "decoder.mid.block_2."),
    (f"{_ATTENTION}group_norm.", "decoder.mid.attn_1.norm."),
    (f"{_ATTENTION}to_out.0.", "decoder.mid.attn_1.proj_out."),
    (f"{_ATTENTION}to_", "decoder.mid.attn_1."),
    ("decoder.conv_norm_out.", "decoder.norm_out."),
    (".upsamplers.0.", ".upsample."),
    (".resnets.", ".block."),
    (".conv_shortcut.", ".nin_shortcut."),
)


def original_table(config: KLConfig, stored: Stored) -> Table:
    """The names of CompVis, which the files of Stability AI and Flux have."""
    last = len(config.block_out_channels) - 1

    def renamed(source: Source) -> Source:
        name = source.name
        for i in range(last + 1):  # counted from the other end
            name = name.replace(f"up_blocks.{i}.", f"up.{last - i}.")
        for theirs, original in _ORIGINAL:
            name = name.replace(theirs, original)
        if not re.fullmatch(r"decoder\.mid\.attn_1\.(q|k|v|proj_out)\.weight", name):
            return dataclasses.replace(source, name=name)
        shape = (*source.shape, 1, 1)  # 1x1 convolutions
        return Source(
            name,
            shape,
            lambda array: source.load(array.reshape(source.shape)),
            lambda array: source.store(array).reshape(shape),
        )

    entries = diffusers_table(config, {}).entries
    return Table(
        {
            name: dataclasses.replace(
                entry, rows=tuple(tuple(map(renamed, row)) for row in entry.rows)
            )
            for name, entry in entries.items()
        }
    )


def _infer_original(stored: Stored, fields: dict[str, Any] | None) -> Inferred:
    """The shape that tensors tell; the scale of four channels is Stable Diffusion's."""
    found = [re.match(r"decoder\.up\.(\d+)\.block\.(\d+)\.", name) for name in stored]
    places = {(int(m[1]), int(m[2])) for m in found if m}
    levels = {level for level, _ in places}
    try:
        widths = tuple(
            stored[f"decoder.up.{level}.block.0.conv1.weight"].shape[0]
            for level in range(len(levels))
        )
        said = {
            "latent_channels": stored["decoder.conv_in.weight"].shape[1],
            "out_channels": stored["decoder.conv_out.weight"].shape[0],
            "block_out_channels": widths,
            "layers_per_block": max(layer for _, layer in places),
            "use_post_quant_conv": "post_quant_conv.weight" in stored,
            "mid_block_add_attention": "decoder.mid.attn_1.q.weight" in stored,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"the decoder is incomplete: {error} is missing; fetch the file again."
        ) from error
    defaults: dict[str, Any] = {"norm_num_groups": KLConfig.norm_num_groups}
    if said["latent_channels"] == KLConfig.latent_channels:
        defaults |= PUBLISHED["SD-VAE"]
    return Inferred(said, defaults)


# Files of sixteen channels do not say how their latents are scaled.
PUBLISHED: dict[str, dict[str, Any]] = {
    "SD-VAE": dict(latent_channels=4, scaling_factor=0.18215, shift_factor=None),
    "SD3-VAE": dict(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609),
    "Flux.1-VAE": dict(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
}
_ENCODER = ("encoder.", "quant_conv.")
LAYOUTS = {
    "diffusers": Layout(
        r"^decoder\.(mid_block|up_blocks)\b",
        diffusers_table,
        _infer,
        has_config=True,
        ignored=_ENCODER,
    ),
    "original": Layout(
        r"^decoder\.(mid|up)\.",
        original_table,
        _infer_original,
        ignored=(
            *_ENCODER,
            *(f"first_stage_model.{name}" for name in _ENCODER),
            "model.",
            "text_encoders.",
            "cond_stage_model.",
            "model_ema.",
        ),
    ),
}
