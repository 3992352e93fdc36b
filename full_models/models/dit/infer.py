"""What the tensors of a checkpoint say about the shape of their model."""

from __future__ import annotations

import math
from typing import Any

from full_models.models.dit.config import DiTConfig, model_names
from full_models.weights.stored import Stored


def infer_shape(stored: Stored) -> dict[str, Any]:
    """Fields of ``DiTConfig`` that tensors of the official layout determine.

    Not among them: ``num_heads`` and ``process``, of which tensors have no trace, and
    fields whose tensor is missing or of an odd shape.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...] | None:
        found = stored[name].shape if name in stored else ()
        return found if len(found) == ndim and min(found) > 0 else None

    fields: dict[str, Any] = {}
    blocks = {
        int(name.split(".")[1])
        for name in stored
        if name.startswith("blocks.") and name.split(".")[1].isdecimal()
    }
    if blocks:
        fields["depth"] = max(blocks) + 1
    if table := shape("y_embedder.embedding_table.weight", 2):
        fields["num_labels"] = table[0] - 1
    if hidden := shape("blocks.0.mlp.fc1.weight", 2):
        fields["mlp_ratio"] = _ratio(*hidden)
    if patches := shape("x_embedder.proj.weight", 4):
        width, channels, p, _ = patches
        fields |= {"width": width, "in_channels": channels, "patch_size": p}
        positions = shape("pos_embed", 3)
        if positions and math.isqrt(positions[1]) ** 2 == positions[1]:
            fields["input_size"] = math.isqrt(positions[1]) * p
        pixels = shape("final_layer.linear.bias", 1)
        if pixels and pixels[0] in (p * p * channels, 2 * p * p * channels):
            fields["learn_sigma"] = pixels[0] == 2 * p * p * channels
    return fields


def _ratio(outer: int, inner: int) -> float:
    """A ratio whose product with ``inner`` is ``outer`` after rounding down."""
    ratio = outer / inner
    return ratio if int(inner * ratio) == outer else math.nextafter(ratio, math.inf)


def published_like(fields: dict[str, Any]) -> list[DiTConfig]:
    """Published shapes of this depth and width."""
    shapes = [DiTConfig.named(name) for name in model_names()]
    size = fields.get("depth"), fields.get("width")
    return [shape for shape in shapes if (shape.depth, shape.width) == size]


def names_like(fields: dict[str, Any]) -> list[str]:
    """Names of published models of this depth, width and patch."""
    size = tuple(fields.get(name) for name in ("depth", "width", "patch_size"))
    return [
        name
        for name in model_names()
        for shape in [DiTConfig.named(name)]
        if (shape.depth, shape.width, shape.patch_size) == size
    ]
