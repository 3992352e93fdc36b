"""Weights of ``KLDecoder`` in the layout of diffusers' ``AutoencoderKL``.

Tensors of the encoder are not read.
"""

from __future__ import annotations

import dataclasses
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


def _refuse_compvis(stored: Stored, fields: dict[str, Any] | None) -> Inferred:
    raise ValueError(
        "the autoencoder has the layout of CompVis, which is not supported; read it by "
        "AutoencoderKL.from_single_file of diffusers and write it by save_pretrained, "
        "or take the folder vae of a diffusers pipeline."
    )


LAYOUTS = {
    "diffusers": Layout(
        r"^decoder\.(mid_block|up_blocks|conv_in)\b",
        diffusers_table,
        _infer,
        has_config=True,
        ignored=("encoder.", "quant_conv."),
    ),
    "compvis": Layout(
        r"^first_stage_model\.|^decoder\.(mid|up)\.", diffusers_table, _refuse_compvis
    ),
}
