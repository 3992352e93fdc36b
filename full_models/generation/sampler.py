"""``MeshSampler``: batches of a model on all devices, as samples and images."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

import gmm_guidance as gg
from full_models.generation.images import to_uint8
from gmm_guidance._runtime.pytree import Static, join
from gmm_guidance.sharding import (
    BATCH_AXES,
    batch_parts,
    batch_sharding,
    local_part,
    num_batch_parts,
    replicate,
)

_DECODED_AT_ONCE = 4  # images; videos one by one
_RESERVE = 0.1  # of the memory is left to everything else


class Batch(NamedTuple):
    """Samples that this process drew.

    Attributes:
        samples: as the model has them, float32 ``[n, (T,) H, W, C]``.
        images: bytes ``[n, (F,) H', W', 3 or 1]``; ``None`` for latents without a
            decoder.
    """

    samples: np.ndarray
    images: np.ndarray | None


class MeshSampler:
    """Draws samples by their global index; one program serves all batches.

    A sample depends on the key, its index and its label. Its bits depend besides on the
    ``batch_size`` samples that its device computes together, not on the number of
    devices, as long as each has all parameters.

    Args:
        model: a model of ``load_weights``, placed on the mesh.
        mesh: the devices.
        key: a JAX random key.
        guidance: the rule.
        schedule: noise levels.
        solver: as in ``guided_sample``.
        batch_size: samples at once on each device, at least 1.
        decoder: of an autoencoder, if images of latents are wanted.

    Raises:
        ValueError: for a batch size below 1.
        MemoryError: if a batch does not fit into the memory of a device, naming one
            that does. Compilation tells; nothing has been drawn.
    """

    def __init__(
        self,
        model: Any,
        mesh: Mesh,
        *,
        key: jax.Array,
        guidance: gg.GuidanceRule,
        schedule: Any,
        solver: Any,
        batch_size: int,
        decoder: Any = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.mesh = mesh
        self.batch_size = batch_size
        parts = (model, replicate(decoder, mesh), guidance, replicate(key, mesh))
        leaves, structure = jax.tree.flatten(parts)
        leaves = [np.float32(leaf) if _is_scale(leaf) else leaf for leaf in leaves]
        traced = [isinstance(x, (jax.Array, np.ndarray, np.generic)) for x in leaves]
        given = list(zip(leaves, traced, strict=True))
        self._arrays = [leaf if is_traced else None for leaf, is_traced in given]
        rest = tuple(None if is_traced else leaf for leaf, is_traced in given)
        num_samples = batch_size * num_batch_parts(mesh)
        lowered = _draw.lower(
            Static(structure, rest),
            (mesh, num_samples, schedule, solver),
            self._arrays,
            self._on_mesh(np.empty(0), np.uint32),
            self._on_mesh(np.empty(0), np.int32),
        )
        self._program = lowered.compile()
        check_memory(self._program.memory_analysis(), batch_size)

    @property
    def samples_at_once(self) -> int:
        """Samples that this process draws in a batch."""
        return self.batch_size * len(batch_parts(self.mesh))

    def draw(self, indices: np.ndarray, labels: np.ndarray) -> Batch:
        """Draw up to ``samples_at_once`` samples.

        Each process of several brings its own, and all must call together.

        Args:
            indices: ``[n]`` global indices; none draws nothing, for a process that only
                takes part.
            labels: ``[n]``.
        """
        samples, images = self._program(
            self._arrays,
            self._on_mesh(indices, np.uint32),
            self._on_mesh(labels, np.int32),
        )
        count = len(indices)
        return Batch(
            local_part(samples)[:count],
            None if images is None else local_part(images)[:count],
        )

    def _on_mesh(self, values: np.ndarray, dtype: Any) -> jax.Array:
        """Local values, filled up by the last, as a part of the whole batch."""
        local = np.zeros(self.samples_at_once, dtype)
        local[: len(values)] = values
        local[len(values) :] = values[-1] if len(values) else 0
        return jax.make_array_from_process_local_data(batch_sharding(self.mesh), local)


def unused_places(counts: Iterable[int], at_once: int) -> str:
    """A sentence on samples that are computed for nothing; empty if there are none.

    Args:
        counts: samples of each shard, which starts a batch of its own.
        at_once: samples of a batch on all devices.
    """
    counts = list(counts)
    unused = sum(-count % at_once for count in counts)
    if not unused:
        return ""
    total = sum(counts) + unused
    return (
        f"{unused} of {total} places in batches of {at_once} stay empty and are "
        f"computed for nothing; a multiple of {at_once} has none"
    )


def _is_scale(leaf: Any) -> bool:
    """Whether a number is no off value, so that another one needs no compilation."""
    return type(leaf) is float and leaf not in (0.0, 1.0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(
    static: Static,
    options: tuple[Any, ...],
    arrays: list[Any],
    indices: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    model, decoder, guidance, key = join(arrays, static)
    mesh, num_samples, schedule, solver = options
    samples = gg.guided_sample(
        key,
        model,
        labels,
        num_samples=num_samples,
        guidance=guidance,
        schedule=schedule,
        solver=solver,
        indices=indices,
        mesh=mesh,
    )
    return samples, _images(mesh, decoder, samples)


def _images(mesh: Mesh, decoder: Any, samples: jax.Array) -> jax.Array | None:
    """Bytes of the images; each device decodes its own latents, a few at once."""
    if decoder is None:
        return to_uint8(samples) if samples.shape[-1] in (1, 3) else None

    def on_one_device(decoder: Any, samples: jax.Array) -> jax.Array:
        images = jax.lax.map(
            lambda latent: decoder.decode(latent[None])[0],
            samples,
            batch_size=1 if samples.ndim == 5 else min(_DECODED_AT_ONCE, len(samples)),
        )
        return to_uint8(images)

    batch = PartitionSpec(BATCH_AXES)
    return jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), batch),
        out_specs=batch,
        check_vma=False,
    )(decoder, samples)


def check_memory(needed: Any, batch_size: int, available: int | None = None) -> None:
    """Refuse a compiled program that does not fit into the free memory of a device.

    Args:
        needed: ``compiled.memory_analysis()``; its arguments lie in memory already.
        batch_size: samples of the program on each device.
        available: free bytes; those of the default device, or on a CPU of the machine,
            by default. Unknown on some devices, which are not checked.

    Raises:
        MemoryError: naming a batch size that fits, if one does.
    """
    available = _free_bytes() if available is None else available
    if available is None or needed is None:
        return
    size = needed.temp_size_in_bytes + needed.output_size_in_bytes
    if size <= (1.0 - _RESERVE) * available:
        return
    fitting = int((1.0 - _RESERVE) * available * batch_size / size)
    remedy = (
        f"use a batch size of at most {fitting} (--batch-size)"
        if fitting >= 1
        else "not even one sample fits; use a smaller model or a larger machine"
    )
    raise MemoryError(
        f"a batch of {batch_size} needs {size / 2**30:.1f} GiB besides the weights, "
        f"but {available / 2**30:.1f} GiB are free; {remedy}."
    )


def _free_bytes() -> int | None:
    """Free memory of the default device; of a CPU, its part of the machine's."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        free = _free_host_bytes()
        return None if free is None else free // len(devices)
    stats: dict[str, Any] = devices[0].memory_stats() or {}
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
