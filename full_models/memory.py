"""Whether a batch fits into memory, known before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from full_models.models.dit.config import DiTConfig

_RESERVE = 0.1  # of the memory is left to everything else


def sample_bytes(config: DiTConfig, num_rows: int) -> int:
    """Bytes that one sample of a batch needs while a step is computed, estimated.

    Rows keep their tokens; one block at a time needs its projections, the MLP's inside
    and the attention weights. On a CPU rows run one by one, elsewhere together.

    Args:
        config: the network.
        num_rows: passes of the rule (3 for S²-Guidance with CFG).
    """
    tokens, width = config.num_tokens, config.width
    together = 1 if jax.default_backend() == "cpu" else num_rows
    inside = 4 * width + 2 * config.mlp_width
    attention = 2 * config.num_heads * tokens
    block = 4 * tokens * (inside + attention)
    carried = 4 * tokens * width * 3 * num_rows
    return carried + together * block


def check_memory(
    config: DiTConfig,
    num_rows: int,
    batch_size: int,
    weights: int,
    available: int | None = None,
) -> None:
    """Refuse a batch that will not fit.

    Args:
        config: the network.
        num_rows: passes of the rule.
        batch_size: samples at once.
        weights: bytes of the parameters that are still to be placed there; 0 if they
            are there already.
        available: bytes that are free; those of the device, or of the machine for a
            CPU, by default. Unknown on some devices, which are not checked.

    Raises:
        MemoryError: naming a batch size that fits, if one does.
    """
    available = available_bytes() if available is None else available
    if available is None:
        return
    each = sample_bytes(config, num_rows)
    usable = (1.0 - _RESERVE) * available
    if weights + batch_size * each <= usable:
        return
    fitting = int((usable - weights) // each)
    gib = 2.0**30
    remedy = (
        f"use a batch size of at most {fitting} (--batch-size)"
        if fitting >= 1
        else "not even one sample fits; use a smaller model or a larger machine"
    )
    raise MemoryError(
        f"a batch of {batch_size} needs about "
        f"{(weights + batch_size * each) / gib:.1f} GiB with the weights, but "
        f"{available / gib:.1f} GiB are free; {remedy}."
    )


def available_bytes() -> int | None:
    """Free memory of the default device, or of the machine if that is a CPU."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return _free_host_bytes()
    stats: dict[str, Any] = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))


def _free_host_bytes() -> int | None:
    """What the kernel says is available, or less if a container may use less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = {line.split(":")[0]: line.split()[1] for line in lines}
        free = 1024 * int(fields["MemAvailable"])
    except (OSError, KeyError, ValueError, IndexError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        return min(free, limit - used)
    except (OSError, ValueError):  # no limit, or no such file system
        return free
