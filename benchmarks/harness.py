"""Paired timing: two programs in turn, and the median of their ratios.

Shared machines drift: ratios of adjacent runs are reproducible where times are not.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import gmm_guidance as gg


def paired(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int = 5
) -> dict[str, Any]:
    """Seconds of both, taken in turn after one warm-up each, and ``theirs / ours``."""
    first = [seconds(ours), seconds(theirs)]
    times = np.array([[seconds(ours), seconds(theirs)] for _ in range(repeats)])
    ratios = times[:, 1] / times[:, 0]
    return {
        "ours_seconds": float(np.median(times[:, 0])),
        "theirs_seconds": float(np.median(times[:, 1])),
        "ratio": float(np.median(ratios)),
        "ratio_range": [float(ratios.min()), float(ratios.max())],
        "first_call_seconds": first,
        "repeats": repeats,
    }


def alternating(
    programs: dict[str, Callable[[], Any]], repeats: int = 5
) -> dict[str, list[float]]:
    """Seconds of several programs, taken in turn after one warm-up each."""
    for program in programs.values():
        seconds(program)
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            times[name].append(seconds(program))
    return times


def seconds(program: Callable[[], Any]) -> float:
    """Wall time of one call, its JAX results awaited."""
    started = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - started


def temporary_mib(run: Any, *arguments: Any) -> float:
    """Temporary memory of a jitted function's compiled program."""
    program = run.lower(*arguments).compile()
    return program.memory_analysis().temp_size_in_bytes / 2**20


def machine() -> dict[str, Any]:
    """Description of the machine."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "gmm_guidance": gg.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line for line in file if line.startswith("model name")]
        return names[0].split(":")[1].strip()
    except (OSError, IndexError):
        return platform.processor()
