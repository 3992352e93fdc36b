"""Real memory of a process that samples, one process for each point.

python -m benchmarks.growth.process_peak SAMPLES BATCH WIDTH STEPS

prints the MiB by which the peak of the resident set rose above what was resident
before the run, compilation done. Linux; the processor even beside an accelerator,
whose memory no process reports.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax

from benchmarks.growth.calls import network, sampling_call
from benchmarks.growth.programs import programs_of

_ROOT = Path(__file__).parents[2]


def process_peak(samples: int, batch: int, width: int, steps: int) -> float:
    """MiB that a fresh process needs on top; ``batch`` 0 draws all samples at once."""
    module = ["-m", "benchmarks.growth.process_peak"]
    numbers = [str(n) for n in (samples, batch, width, steps)]
    done = subprocess.run(
        [sys.executable, *module, *numbers],
        cwd=_ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.split()[-1])


def _main() -> None:
    samples, batch, width, steps = (int(a) for a in sys.argv[1:])
    call = sampling_call(network(width), samples, steps=steps, batch_size=batch or None)
    programs_of(call)
    _forget_peak()
    before = _status_kib("VmRSS")
    jax.block_until_ready(call())
    print((_status_kib("VmHWM") - before) / 1024)


def _forget_peak() -> None:
    """Start the peak anew. Without permission it may be that of the compilation."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    _main()
