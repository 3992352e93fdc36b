"""The layout of the published DiT and SiT checkpoints, and of their training code."""

from __future__ import annotations

import numpy as np

from full_models.models.dit.config import DiTConfig
from full_models.models.dit.encodings import TIME_FEATURES, position_table
from full_models.weights.fill import Entry, Known, Layout, Source


def official_layout(config: DiTConfig) -> Layout:
    """Names and shapes of facebookresearch/DiT and willisma/SiT, 2023 to 2025."""
    c, width, p = config, config.width, config.patch_size
    entries = patch_entries("x_embedder.proj", c)
    entries |= linear("time.fc1", "t_embedder.mlp.0", TIME_FEATURES, width)
    entries |= linear("time.fc2", "t_embedder.mlp.2", width, width)
    labels = "y_embedder.embedding_table.weight"
    entries["labels"] = one(same(labels, (c.num_labels + 1, width)))
    blocks = [f"blocks.{i}." for i in range(c.depth)]
    for ours, theirs, inner, outer in (
        ("attn.qkv", "attn.qkv", width, 3 * width),
        ("attn.proj", "attn.proj", width, width),
        ("mlp.fc1", "mlp.fc1", width, c.mlp_width),
        ("mlp.fc2", "mlp.fc2", c.mlp_width, width),
        ("modulation", "adaLN_modulation.1", width, 6 * width),
    ):
        entries |= linear_stack(
            f"blocks.{ours}", [b + theirs for b in blocks], inner, outer
        )
    entries |= linear(
        "final.modulation", "final_layer.adaLN_modulation.1", width, 2 * width
    )
    entries |= linear(
        "final.linear", "final_layer.linear", width, p * p * c.out_channels
    )
    return Layout(entries, {"pos_embed": position_entry(config)})


def position_entry(config: DiTConfig) -> Known:
    """The stored table of positions."""
    grid = config.input_size // config.patch_size
    return Known(
        (1, grid * grid, config.width), lambda: position_table(grid, config.width)
    )


def patch_entries(name: str, config: DiTConfig) -> dict[str, Entry]:
    """The patch embedding, stored as a convolution ``[D, C, p, p]``."""
    p, channels, width = config.patch_size, config.in_channels, config.width

    def load(kernel: np.ndarray) -> np.ndarray:
        return kernel.transpose(2, 3, 1, 0).reshape(p * p * channels, width)

    def store(kernel: np.ndarray) -> np.ndarray:
        return kernel.reshape(p, p, channels, width).transpose(3, 2, 0, 1)

    weight = Source(f"{name}.weight", (width, channels, p, p), load, store)
    return {
        "patches.kernel": one(weight),
        "patches.bias": one(same(f"{name}.bias", (width,))),
    }


def linear(ours: str, theirs: str, inner: int, outer: int) -> dict[str, Entry]:
    """A linear map, stored as ``[outer, inner]``."""
    return {
        f"{ours}.kernel": one(transposed(f"{theirs}.weight", inner, outer)),
        f"{ours}.bias": one(same(f"{theirs}.bias", (outer,))),
    }


def linear_stack(
    ours: str, theirs: list[str], inner: int, outer: int
) -> dict[str, Entry]:
    """The linear maps of all blocks."""
    kernels = tuple((transposed(f"{t}.weight", inner, outer),) for t in theirs)
    biases = tuple((same(f"{t}.bias", (outer,)),) for t in theirs)
    return {f"{ours}.kernel": Entry(kernels, True), f"{ours}.bias": Entry(biases, True)}


def one(source: Source) -> Entry:
    """A parameter of one tensor."""
    return Entry(((source,),))


def same(name: str, shape: tuple[int, ...]) -> Source:
    """A tensor that is stored as it is."""
    return Source(name, shape, _identity, _identity)


def transposed(name: str, inner: int, outer: int) -> Source:
    """A matrix stored as ``[outer, inner]``."""
    return Source(name, (outer, inner), np.transpose, np.transpose)


def _identity(array: np.ndarray) -> np.ndarray:
    return array
