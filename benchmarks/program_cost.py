"""What a compiled program does on each device: operations, bytes, communication."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

_KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_OPERATION = re.compile(
    rf"= (?P<type>.*?) (?P<kind>{'|'.join(_KINDS)})(?:-start)?\((?P<rest>.*)$"
)
_ARRAY = re.compile(r"(?P<dtype>[a-z]+[0-9]*)\[(?P<shape>[0-9,]*)\]")
_BITS = re.compile(r"[a-z]+?(\d+)")


class Collective(NamedTuple):
    """One communication of a program.

    Attributes:
        kind: ``"all-gather"``, say.
        shapes: shapes of its results on one device.
        bytes: size of its results on one device.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int


class ProgramCost(NamedTuple):
    """Work of a compiled program on one device.

    The body of a loop counts as often as the compiler knows it to run, and once where
    it does not; communications in loops count once.
    """

    flops: float
    bytes_accessed: float
    temporary_bytes: int
    collectives: tuple[Collective, ...]


def program_cost(compiled: Any) -> ProgramCost:
    """Count the work of ``jax.jit(f).lower(...).compile()``."""
    cost = compiled.cost_analysis()
    return ProgramCost(
        float(cost.get("flops", float("nan"))),
        float(cost.get("bytes accessed", float("nan"))),
        int(compiled.memory_analysis().temp_size_in_bytes),
        collectives_in(compiled.as_text()),
    )


def collectives_in(text: str) -> tuple[Collective, ...]:
    """The communications in a compiled program's text."""
    found = []
    for match in filter(None, map(_OPERATION.search, text.splitlines())):
        arrays = [
            (m["dtype"], tuple(int(s) for s in m["shape"].split(",") if s))
            for m in _ARRAY.finditer(match["type"])
        ]
        found.append(
            Collective(
                match["kind"],
                tuple(shape for _, shape in arrays),
                sum(_bytes(dtype) * math.prod(shape) for dtype, shape in arrays),
            )
        )
    return tuple(found)


def _bytes(dtype: str) -> int:
    bits = _BITS.fullmatch(dtype)
    return max(int(bits[1]) // 8, 1) if bits else 1
