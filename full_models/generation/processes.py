"""Several processes on one run: connected, kept in step, and ended together."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_HEARTBEAT_SECONDS = 20  # a process without a heartbeat for so long is gone
_START_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """Several processes, each with its own devices, on one run."""

    coordinator: str | None = None
    """Address host:port of the first process. JAX finds it on the clusters that it
    knows (Slurm, Open MPI, TPU pods), given --num-processes."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""

    def __post_init__(self):
        count, own = self.num_processes, self.process_id
        if own is not None and (count is None or not 0 <= own < count):
            raise ValueError(
                f"process_id must be in 0..num_processes - 1, got {own} of {count}."
            )
        if self.coordinator is not None and (count is None or own is None):
            raise ValueError(
                f"with --coordinator give --num-processes and --process-id too, got "
                f"{count} and {own}."
            )

    def start(self) -> None:
        """Connect to the other processes, if there are any; before JAX is used.

        Raises:
            OSError: if they cannot be reached within two minutes.
        """
        if self.num_processes is None or self.num_processes == 1:
            return
        if self.coordinator is not None and self.process_id != 0:
            _wait_for(self.coordinator)  # JAX would abort, with a stack trace
        # JAX would take SIGTERM for itself; runs end after a shard by themselves.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(
                self.coordinator,
                self.num_processes,
                self.process_id,
                initialization_timeout=_START_SECONDS,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
            )
        except (RuntimeError, ValueError) as error:
            raise OSError(
                f"the {self.num_processes} processes could not connect to each other "
                f"({str(error).splitlines()[0]}); give each --coordinator host:port of "
                f"the first and its own --process-id."
            ) from error


class LostProcess(RuntimeError):
    """Another process of the run has ended."""


def check_devices() -> None:
    """Raise ``OSError`` if JAX finds no device of the platform asked for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # of unknown or absent platforms
        wanted = os.environ.get("JAX_PLATFORMS") or "any"
        detail = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise OSError(
            f"JAX must find a device of the platform asked for (JAX_PLATFORMS: "
            f"{wanted}), but there is none{detail}; install the JAX of this "
            f"accelerator, or set JAX_PLATFORMS=cpu."
        ) from error


def _wait_for(address: str) -> None:
    """Wait until the first process listens."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator must be host:port, got {address!r}.")
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise OSError(
                    f"the first process does not answer at {address} ({error}); start "
                    f"it, and check --coordinator."
                ) from error
        time.sleep(0.2)


def is_first() -> bool:
    """Whether this is process 0, which prints and writes what is not sharded."""
    return jax.process_index() == 0


def gather(value: int) -> list[int]:
    """A number from each process, in their order; waits for all.

    Raises:
        LostProcess: if one has ended.
    """
    if jax.process_count() == 1:
        return [value]
    with _together():
        found = multihost_utils.process_allgather(np.asarray([value], np.int32))
    return np.asarray(found).ravel().tolist()


def from_first(values: np.ndarray) -> np.ndarray:
    """The first process's array, of the same shape and type in each; waits for all.

    Raises:
        LostProcess: if a process has ended.
    """
    if jax.process_count() == 1:
        return values
    with _together():
        return np.asarray(multihost_utils.broadcast_one_to_all(values))


def check_same(description: dict[str, Any]) -> None:
    """Refuse processes that were started with different options.

    Raises:
        ValueError: if they differ.
        LostProcess: if a process has ended.
    """
    text = json.dumps(description, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).digest()
    found = gather(int.from_bytes(digest[:4], "big") >> 1)
    if len(set(found)) > 1:
        raise ValueError(
            "all processes of a run must have the same options and files, but these "
            f"differ between {len(set(found))} groups; start all with the same command "
            f"but --process-id."
        )


@contextlib.contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise LostProcess(
            f"another process of this run has ended ({str(error).splitlines()[0]}). "
            f"Complete shards stay; start all processes again to resume."
        ) from error
