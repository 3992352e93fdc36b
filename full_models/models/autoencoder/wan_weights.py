"""Layouts of the weights of Wan's autoencoder: diffusers' and the original."""

from __future__ import annotations

import dataclasses
from typing import Any

from full_models.models.autoencoder.wan import WanVAEConfig
from full_models.models.family import Inferred, Layout
from full_models.weights.table import Entry, Source, Stored, Table, copied


def _conv(
    ours: str, theirs: str, inner: int, outer: int, *size: int
) -> dict[str, Entry]:
    """Kernel ``[*size, inner, outer]`` and bias of a convolution of PyTorch."""
    axes = tuple(range(2, 2 + len(size)))
    back = (len(size) + 1, len(size), *range(len(size)))
    kernel = Source(
        f"{theirs}.weight",
        (outer, inner, *size),
        lambda a: a.transpose(*axes, 1, 0),
        lambda a: a.transpose(back),
    )
    bias = copied(f"{theirs}.bias", (outer,))
    return {f"{ours}.kernel": Entry(((kernel,),)), f"{ours}.bias": bias}


def _map(ours: str, theirs: str, inner: int, outer: int, axes: int) -> dict[str, Entry]:
    """A linear map stored as a convolution of one place, with so many axes."""
    shape = (outer, inner, *(1 for _ in range(axes)))
    kernel = Source(
        f"{theirs}.weight",
        shape,
        lambda a: a.reshape(outer, inner).T,
        lambda a: a.T.reshape(shape),
    )
    bias = copied(f"{theirs}.bias", (outer,))
    return {f"{ours}.kernel": Entry(((kernel,),)), f"{ours}.bias": bias}


def _norm(ours: str, theirs: str, channels: int, axes: int) -> dict[str, Entry]:
    shape = (channels, *(1 for _ in range(axes)))
    source = Source(
        f"{theirs}.gamma",
        shape,
        lambda a: a.reshape(channels),
        lambda a: a.reshape(shape),
    )
    return {f"{ours}.scale": Entry(((source,),))}


@dataclasses.dataclass(frozen=True)
class _Names:
    """Names of one layout: of parts, and of what a residual layer has."""

    quant: str
    conv_in: str
    middle: tuple[str, str, str]
    norm_out: str
    conv_out: str
    residual: tuple[str, str, str, str, str]

    def layer(self, block: int, index: int, num_layers: int) -> str:
        """The name of a residual layer, or with ``num_layers`` that of the doubling."""
        raise NotImplementedError


class _Diffusers(_Names):
    def layer(self, block: int, index: int, num_layers: int) -> str:
        part = f"resnets.{index}" if index < num_layers else "upsamplers.0"
        return f"decoder.up_blocks.{block}.{part}"


class _Official(_Names):
    def layer(self, block: int, index: int, num_layers: int) -> str:
        return f"decoder.upsamples.{block * (num_layers + 1) + index}"


_DIFFUSERS = _Diffusers(
    "post_quant_conv",
    "decoder.conv_in",
    tuple(  # type: ignore[arg-type]
        f"decoder.mid_block.{n}" for n in ("resnets.0", "attentions.0", "resnets.1")
    ),
    "decoder.norm_out",
    "decoder.conv_out",
    ("norm1", "conv1", "norm2", "conv2", "conv_shortcut"),
)
_OFFICIAL = _Official(
    "conv2",
    "decoder.conv1",
    ("decoder.middle.0", "decoder.middle.1", "decoder.middle.2"),
    "decoder.head.0",
    "decoder.head.2",
    ("residual.0", "residual.2", "residual.3", "residual.6", "shortcut"),
)


def _table(config: WanVAEConfig, names: _Names) -> Table:
    """The tensors of the decoder; those of the encoder are not read."""
    inner, latent = config.widths[0], config.latent_channels
    entries = {
        **_map("post_quant_conv", names.quant, latent, latent, 3),
        **_conv("conv_in.conv", names.conv_in, latent, inner, 3, 3, 3),
        **_residual("first", names.middle[0], inner, inner, names),
        **_norm("attention.norm", f"{names.middle[1]}.norm", inner, 2),
        **_map("attention.qkv", f"{names.middle[1]}.to_qkv", inner, 3 * inner, 2),
        **_map("attention.out", f"{names.middle[1]}.proj", inner, inner, 2),
        **_residual("second", names.middle[2], inner, inner, names),
    }
    count = config.layers_per_block + 1
    doubles = (*reversed(config.doubles_time), None)
    for i, (outer, doubles_time) in enumerate(zip(config.widths, doubles, strict=True)):
        for j in range(count):
            ours, theirs = f"blocks.{i}.layers.{j}", names.layer(i, j, count)
            entries |= _residual(ours, theirs, inner, outer, names)
            inner = outer
        if doubles_time is None:
            continue
        up = names.layer(i, count, count)
        inner = outer // 2
        entries |= _conv(f"blocks.{i}.conv", f"{up}.resample.1", outer, inner, 3, 3)
        if doubles_time:
            ours, theirs = f"blocks.{i}.time_conv.conv", f"{up}.time_conv"
            entries |= _conv(ours, theirs, outer, 2 * outer, 3, 1, 1)
    entries |= _norm("norm_out", names.norm_out, inner, 3)
    entries |= _conv("conv_out.conv", names.conv_out, inner, 3, 3, 3, 3)
    return Table(entries)


def _residual(
    ours: str, theirs: str, inner: int, outer: int, names: _Names
) -> dict[str, Entry]:
    norm1, conv1, norm2, conv2, shortcut = (f"{theirs}.{n}" for n in names.residual)
    entries = _norm(f"{ours}.norm1", norm1, inner, 3)
    entries |= _conv(f"{ours}.conv1.conv", conv1, inner, outer, 3, 3, 3)
    entries |= _norm(f"{ours}.norm2", norm2, outer, 3)
    entries |= _conv(f"{ours}.conv2.conv", conv2, outer, outer, 3, 3, 3)
    if inner != outer:
        entries |= _map(f"{ours}.shortcut", shortcut, inner, outer, 3)
    return entries


def _infer_diffusers(stored: Stored, fields: dict[str, Any] | None) -> Inferred:
    config = WanVAEConfig() if fields is None else WanVAEConfig.from_diffusers(fields)
    found = dataclasses.asdict(config)
    del found["compute_dtype"]
    return Inferred(found)


def _infer_official(stored: Stored, fields: dict[str, Any] | None) -> Inferred:
    """Wan 2.1's shape, or narrower ones with its proportions; by the tensors."""
    channels = stored["conv2.weight"].shape[0] if "conv2.weight" in stored else 16
    width = stored["decoder.head.0.gamma"].shape[0]
    fields = {"base_width": width, "latent_channels": channels}
    named = WanVAEConfig()
    kept = ("width_multiples", "doubles_time", "layers_per_block")
    defaults: dict[str, Any] = {name: getattr(named, name) for name in kept}
    if channels == named.latent_channels:  # the file does not hold them
        fields |= {n: getattr(named, n) for n in ("latents_mean", "latents_std")}
    elif channels == 48:
        raise ValueError(
            "the autoencoder is that of Wan 2.2 TI2V-5B, which is not supported; take "
            "Wan2.1_VAE.pth."
        )
    return Inferred(fields, defaults)


LAYOUTS = {
    "diffusers": Layout(
        r"^decoder\.norm_out\.gamma$",
        lambda config, stored: _table(config, _DIFFUSERS),
        _infer_diffusers,
        has_config=True,
        ignored=("encoder.", "quant_conv."),
    ),
    "official": Layout(
        r"^decoder\.head\.0\.gamma$",
        lambda config, stored: _table(config, _OFFICIAL),
        _infer_official,
        ignored=("encoder.", "conv1."),
    ),
}
