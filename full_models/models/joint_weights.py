"""Tensors of joint blocks and of embedded text: what files of SD3 and Flux share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from full_models.models.joint import Shape
from full_models.weights.table import Entry, Stored, copied, exchanged, linear


class StreamNames(NamedTuple):
    """Names of the tensors of a stream, after that of its block.

    Attributes:
        modulation: its linear map.
        attention: of each attention its maps, one or three, its norms and its output.
        mlp: the two linear maps.
    """

    modulation: str
    attention: Sequence[tuple[Sequence[str], Sequence[str], str]]
    mlp: tuple[str, str]


#: The text of a block in both of diffusers' transformers.
DIFFUSERS_TEXT = StreamNames(
    "norm1_context.linear",
    [
        (
            ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            ("attn.norm_added_q.weight", "attn.norm_added_k.weight"),
            "attn.to_add_out",
        )
    ],
    ("ff_context.net.0.proj", "ff_context.net.2"),
)


def stream_entries(
    ours: str,
    names: StreamNames,
    each: Callable[[str], list[str]],
    shape: Shape,
    kind: str = "whole",
    *,
    swaps: bool = False,
) -> dict[str, Entry]:
    """Entries of one stream of equal blocks.

    Args:
        ours: path of the stream.
        names: names in the file.
        each: the tensors of all blocks, by the name in one.
        shape: the config.
        kind: as in ``Stream``.
        swaps: whether the file has scale before shift.
    """
    width = shape.width
    terms = {"whole": 6, "dual": 9, "read": 2}[kind]
    entries = linear(f"{ours}.modulation", each(names.modulation), width, terms * width)
    if swaps:
        entries = exchanged(entries)
    attentions = ("attn", "attn2") if kind == "dual" else ("attn",)
    for attn, (maps, norms, out) in zip(attentions, names.attention, strict=False):
        joined = [list(row) for row in zip(*map(each, maps), strict=True)]
        outer = 3 * width // len(maps)
        entries |= linear(f"{ours}.{attn}.qkv", joined, width, outer)
        if shape.qk_norm:
            for which, name in zip(("norm_q", "norm_k"), norms, strict=True):
                entries[f"{ours}.{attn}.norms.{which}"] = copied(
                    each(name), (width // shape.num_heads,)
                )
        if kind != "read":
            entries |= linear(f"{ours}.{attn}.proj", each(out), width, width)
    if kind != "read":
        for which, name, size in zip(
            ("fc1", "fc2"), names.mlp, ((width, 4 * width), (4 * width, width)),
            strict=True,
        ):  # fmt: skip
            entries |= linear(f"{ours}.mlp.{which}", each(name), *size)
    return entries


def each_of(block: str, blocks: Sequence[int]) -> Callable[[str], list[str]]:
    """A function from a name in one block to those in all of them."""
    return lambda name: [block.format(i) + name for i in blocks]


def embedding_entries(
    names: Mapping[str, Any], inner: Mapping[str, int], width: int
) -> dict[str, Entry]:
    """Entries of the two linear maps of each embedded vector.

    Args:
        names: the name of each, with a place for one of ``names["ends"]``.
        inner: number of features of each.
        width: features of a token.
    """
    entries: dict[str, Entry] = {}
    for ours, features in inner.items():
        first, second = (names[ours].format(end) for end in names["ends"])
        entries |= linear(f"{ours}.fc1", first, features, width)
        entries |= linear(f"{ours}.fc2", second, width, width)
    return entries


def final_entries(
    names: Mapping[str, Any], width: int, pixels: int, *, swaps: bool
) -> dict[str, Entry]:
    """Entries of the modulated last layer; ``swaps`` as in ``stream_entries``."""
    final = linear("final.modulation", names["final.modulation"], width, 2 * width)
    last = linear("final.linear", names["final.linear"], width, pixels)
    return (exchanged(final) if swaps else final) | last


def count_blocks(stored: Stored, block: str) -> int:
    """The number of blocks in a file.

    Raises:
        ValueError: unless they are numbered from 0 without a gap.
    """
    pattern = re.compile("^" + re.escape(block).replace(r"\{\}", r"(\d+)"))
    numbers = {int(hit[1]) for name in stored if (hit := pattern.match(name))}
    missing = sorted(set(range(max(numbers, default=0) + 1)) - numbers)
    if missing:
        raise ValueError(
            f"blocks {block.format('i')} must be numbered from 0 without a gap, but "
            f"{missing[:5]} are missing; the file is incomplete."
        )
    return len(numbers)


def check_said(fields: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless a ``config.json`` agrees with the tensors."""
    for name, wanted in said.items():
        value = fields.get(name)
        value = list(value) if isinstance(value, (list, tuple)) else value
        if value is not None and value != wanted:
            raise ValueError(
                f"{name} must be {wanted!r} as in the tensors, got {value!r}; the "
                f"config.json is of another model."
            )


def check_class(fields: Mapping[str, Any], name: str, model: str) -> None:
    """Raise ``ValueError`` for the ``config.json`` of another class of models."""
    found = fields.get("_class_name", name)
    if found != name:
        raise ValueError(
            f"_class_name must be {name!r}, got {found!r}; a ControlNet or another "
            f"model is no transformer of {model}."
        )
