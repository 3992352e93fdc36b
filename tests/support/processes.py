"""Real processes for tests: several devices, several processes, kills."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(devices: int = 1, as_users: bool = False) -> dict[str, str]:
    """A process' environment with so many simulated devices.

    XLA takes as many threads as the machine has cores. On few cores, devices that wait
    for each other in a collective operation may occupy all of them and stall. With
    ``as_users`` programs are compiled with XLA's own settings, for comparisons of bits.
    """
    flags = "" if as_users else os.environ.get("XLA_FLAGS", "")
    settings = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"} if as_users else {}
    return {
        **os.environ,
        **settings,
        "JAX_PLATFORMS": "cpu",
        "PJRT_NPROC": str(max(4 * devices, os.cpu_count() or 1)),
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
    }


def start(
    command: list[str], devices: int = 1, as_users: bool = False
) -> subprocess.Popen[str]:
    """``python command...``, its output caught."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment(devices, as_users),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_python(
    code: str, devices: int = 1, seconds: float = 300, as_users: bool = False
) -> str:
    """The output of a program; it must end well."""
    process = start(["-c", code], devices, as_users)
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def command_line(module: str) -> list[str]:
    """Python and its options for a module with ``main``, to which arguments are added.

    Where the tests run in the background, SIGINT may be ignored, which is inherited.
    """
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"from {module} import main; sys.exit(main(sys.argv[1:]))"
    )
    return [sys.executable, "-c", code]


def full_models(arguments: list[str], devices: int = 1) -> subprocess.Popen[str]:
    """The command line, begun."""
    return start([*command_line("full_models.cli")[1:], *arguments], devices)


def together(arguments: list[str], processes: int, devices: int) -> list:
    """The command line by several processes that know each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        full_models(
            [
                *arguments,
                *("--coordinator", f"127.0.0.1:{port}"),
                *("--num-processes", str(processes), "--process-id", str(own)),
            ],
            devices,
        )
        for own in range(processes)
    ]
