"""What the first command costs: time, CPU time and compiled programs, from nothing.

CPU seconds are what a shared machine can be asked for; wall time is that of idle cores
only where the load is low, which the results file records.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

COMMANDS = {
    "run paper": ("run", "paper"),
    "run all --quick": ("run", "all", "--quick"),
    "run all": ("run", "all"),
}
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_CHILD = """
import json, resource, sys, time
import jax
seconds = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, duration, **_: seconds.append(duration)
    if name == "/jax/core/compile/backend_compile_duration"
    else None
)
from toy_experiments import cli
started = time.perf_counter()
status = cli.main(sys.argv[2:])
usage = resource.getrusage(resource.RUSAGE_SELF)
with open(sys.argv[1], "w") as file:
    json.dump(
        {
            "status": status,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "compiled_programs": len(seconds),
            "compiled_over_0.2_seconds": sum(s > 0.2 for s in seconds),
        },
        file,
    )
"""


def first_run(commands: tuple[str, ...] = tuple(COMMANDS)) -> dict[str, Any]:
    """Run commands without stored results or compiled programs."""
    results = {}
    for title in commands:
        with tempfile.TemporaryDirectory() as folder:
            record = f"{folder}/record.json"
            options = ["--out", f"{folder}/results", "--no-compile-cache"]
            arguments = [record, *COMMANDS[title], *options]
            subprocess.run(
                [sys.executable, "-c", _CHILD, *arguments],
                check=True,
                env={
                    k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k
                },
            )
            with open(record) as file:
                results[f"toy-experiments {title}"] = json.load(file)
    return results
