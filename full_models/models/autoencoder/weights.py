"""Reading the decoder from a diffusers ``AutoencoderKL``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from full_models.models.autoencoder.config import VAEConfig
from full_models.models.autoencoder.kl import VAEDecoder
from full_models.models.dit.config import DType
from full_models.weights.fill import Entry, Layout, Source, fill
from full_models.weights.stored import Stored, read_safetensors

_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
)
_UNREAD = ("encoder.", "quant_conv.")
# What names start with in checkpoints of CompVis: of a whole model, of the VAE alone.
_COMPVIS = ("first_stage_model.", "decoder.mid.", "decoder.up.")
_REMEDY = (
    "read it by diffusers' AutoencoderKL (from_single_file, or from_pretrained for its "
    "own folders) and write it by save_pretrained"
)
# Attention maps as CompVis called them, and diffusers before 2023.
_OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_ATTENTION = "decoder.mid_block.attentions.0."


def load_vae(
    path: str | os.PathLike, *, compute_dtype: DType = "float32"
) -> VAEDecoder:
    """The decoder of an autoencoder saved by diffusers.

    Every tensor of the decoder is used exactly once; those of the encoder are left
    unread.

    Args:
        path: its folder, a pipeline's folder with a subfolder ``vae``, or a safetensors
            file with ``config.json`` beside it (without one, the shape is that of
            Stable Diffusion 1 and 2).
        compute_dtype: type of convolutions.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another layout, or has tensors that are
            missing, unexpected or of another shape, which are listed.
    """
    config = VAEConfig(compute_dtype=compute_dtype)
    file = _find(Path(path))
    described = file.parent / "config.json"
    if described.is_file():
        try:
            found = json.loads(described.read_text())
        except ValueError as error:
            raise ValueError(f"{described} is damaged ({error}).") from error
        try:
            config = VAEConfig.from_diffusers(found, compute_dtype)
        except ValueError as error:
            raise ValueError(f"{described}: {error}") from error
    stored = read_safetensors(file)
    if any(name.startswith(_COMPVIS) for name in stored):
        raise ValueError(
            f"{file} has the layout of CompVis; {_REMEDY}, or take the folder vae of a "
            f"diffusers pipeline."
        )
    tensors = {n: t for n, t in stored.items() if not n.startswith(_UNREAD)}
    abstract = jax.eval_shape(lambda: VAEDecoder(config, rngs=nnx.Rngs(0)))
    return fill(abstract, vae_layout(config, tensors), tensors, str(file))


def vae_layout(config: VAEConfig, stored: Stored) -> Layout:
    """Names of diffusers' ``AutoencoderKL``, its older ones where the file has them."""
    entries: dict[str, Entry] = {}
    outwards = config.block_out_channels[::-1]
    latent, inner = config.latent_channels, outwards[0]
    if config.use_post_quant_conv:
        entries |= _conv("post_quant_conv", "post_quant_conv", latent, latent, 1)
    entries |= _conv("conv_in", "decoder.conv_in", latent, inner, 3)
    for ours, index in (("first", 0), ("second", 1)):
        entries |= _residual(
            f"mid.{ours}", f"decoder.mid_block.resnets.{index}", inner, inner
        )
    if config.mid_block_add_attention:
        entries |= _attention(inner, stored)
    for i, outer in enumerate(outwards):
        block = f"decoder.up_blocks.{i}"
        for j in range(config.layers_per_block + 1):
            entries |= _residual(
                f"blocks.{i}.layers.{j}", f"{block}.resnets.{j}", inner, outer
            )
            inner = outer
        if i < len(outwards) - 1:
            up = f"{block}.upsamplers.0.conv"
            entries |= _conv(f"blocks.{i}.conv", up, outer, outer, 3)
    entries |= _norm("norm_out", "decoder.conv_norm_out", inner)
    entries |= _conv("conv_out", "decoder.conv_out", inner, config.out_channels, 3)
    return Layout(entries)


def _find(path: Path) -> Path:
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(
                f"the VAE must be a .safetensors file or a folder of diffusers, got "
                f"{path}; {_REMEDY}."
            )
        return path
    for folder in (path, path / "vae"):
        for name in _FILES:
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(
        f"no autoencoder at {path}: expected {_FILES[0]} there or in its subfolder "
        f"vae. If it has another format, {_REMEDY}."
    )


def _conv(ours: str, theirs: str, inner: int, outer: int, size: int) -> dict:
    weight = Source(
        f"{theirs}.weight",
        (outer, inner, size, size),
        lambda a: a.transpose(2, 3, 1, 0),
        lambda a: a.transpose(3, 2, 0, 1),
    )
    return {
        f"{ours}.kernel": Entry(((weight,),)),
        f"{ours}.bias": _vector(f"{theirs}.bias", outer),
    }


def _norm(ours: str, theirs: str, channels: int) -> dict[str, Entry]:
    return {
        f"{ours}.scale": _vector(f"{theirs}.weight", channels),
        f"{ours}.bias": _vector(f"{theirs}.bias", channels),
    }


def _residual(ours: str, theirs: str, inner: int, outer: int) -> dict[str, Entry]:
    entries = _norm(f"{ours}.norm1", f"{theirs}.norm1", inner)
    entries |= _conv(f"{ours}.conv1", f"{theirs}.conv1", inner, outer, 3)
    entries |= _norm(f"{ours}.norm2", f"{theirs}.norm2", outer)
    entries |= _conv(f"{ours}.conv2", f"{theirs}.conv2", outer, outer, 3)
    if inner != outer:
        shortcut = f"{theirs}.conv_shortcut"
        entries |= _conv(f"{ours}.shortcut", shortcut, inner, outer, 1)
    return entries


def _attention(channels: int, stored: Stored) -> dict[str, Entry]:
    entries = _norm("mid.attention.norm", f"{_ATTENTION}group_norm", channels)
    ours = ("query", "key", "value", "out")
    for mine, (new, old) in zip(ours, _OLD_NAMES.items(), strict=True):
        name = old if f"{_ATTENTION}{old}.weight" in stored else new
        weight = f"{_ATTENTION}{name}.weight"
        # Older files hold these maps as 1x1 convolutions.
        is_conv = weight in stored and len(stored[weight].shape) == 4
        shape = (channels, channels, 1, 1) if is_conv else (channels, channels)
        source = Source(
            weight,
            shape,
            lambda a: a.reshape(a.shape[:2]).T,
            lambda a, shape=shape: a.T.reshape(shape),  # type: ignore[misc]
        )
        entries[f"mid.attention.{mine}.kernel"] = Entry(((source,),))
        bias = f"{_ATTENTION}{name}.bias"
        entries[f"mid.attention.{mine}.bias"] = _vector(bias, channels)
    return entries


def _vector(name: str, size: int) -> Entry:
    return Entry(((Source(name, (size,), np.asarray, np.asarray),),))
