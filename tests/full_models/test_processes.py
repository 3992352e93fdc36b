"""Processes that meet, and devices that are not there."""

import pytest
from support.processes import run_python, start

from full_models.generation import processes


def test_a_missing_device_is_a_clear_error():
    process = start(
        [
            "-c",
            "import os; os.environ['JAX_PLATFORMS'] = 'cuda'\n"
            "from full_models.cli import main\n"
            "raise SystemExit(main(['sample', '--weights', 'w', '--out', 'o']))",
        ]
    )
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "must find a device of the platform asked for" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"coordinator": "127.0.0.1:1", "num_processes": 2, "process_id": 1},
            "first process does not answer at 127.0.0.1:1",
        ),
        (
            {"coordinator": "nowhere", "num_processes": 2, "process_id": 1},
            "host:port, got 'nowhere'",
        ),
        ({"num_processes": 2}, "give each --coordinator"),
        ({"num_processes": 2, "process_id": 2}, "in 0..num_processes - 1, got 2"),
        ({"coordinator": "a:1"}, "give --num-processes"),
    ],
)
def test_processes_that_cannot_meet(options, message, monkeypatch):
    monkeypatch.setattr(processes, "_START_SECONDS", 0.3)

    def alone(*arguments, **others):  # JAX is in use here already, and is left alone
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(processes.jax.distributed, "initialize", alone)
    monkeypatch.setattr(processes.jax.config, "update", lambda name, value: None)
    with pytest.raises((OSError, ValueError), match=message):
        processes.ProcessOptions(**options).start()


def test_processes_import_without_touching_devices():
    """``jax.distributed`` must start before any device is used."""
    output = run_python(
        "import full_models.cli; from jax._src import xla_bridge\n"
        "print('used', xla_bridge.backends_are_initialized())"
    )
    assert "used False" in output
