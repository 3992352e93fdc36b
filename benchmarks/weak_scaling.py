"""Weak scaling by counting: the work of one device as devices and samples grow.

Real time of simulated devices on shared cores says nothing; the compiled program says
what each device computes, reads, holds and sends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_DEVICES = (1, 2, 4, 8, 16, 32)
_ROOT = Path(__file__).parent.parent


def weak_scaling(
    model: str = "DiT-S/2", per_device: int = 2, devices: tuple[int, ...] = _DEVICES
) -> dict[str, Any]:
    """A guided step (S² on CFG) with a fixed number of samples on each device.

    Samples divided (``data``), and parameters besides (``fsdp``, as many as devices).
    """
    result = {}
    for kind in ("data", "fsdp"):
        found = [_count(model, per_device, kind, n) for n in devices]
        growth = {
            name: max(f[name] for f in found) / max(min(f[name] for f in found), 1e-9)
            for name in ("flops", "bytes_accessed", "temporary_bytes")
        }
        result[f"weak scaling, {kind}: {model}, {per_device} samples a device"] = {
            "devices": list(devices),
            **{name: [f[name] for f in found] for name in found[0]},
            "largest_over_smallest": growth,
            "flat": all(ratio < 1.1 for ratio in growth.values())
            if kind == "data"
            else growth["flops"] < 1.1,
        }
    return result


def growth_with_devices(counted: dict[str, Any]) -> dict[str, Any]:
    """The counts as an axis of growth: samples grow with the devices."""
    entry = next(e for title, e in counted.items() if "scaling, data" in title)
    return {
        "growth with devices, counted": {
            "axis": "devices, samples with them",
            "values": entry["devices"],
            "operations": entry["flops"],
            "memory_mib": [b / 2**20 for b in entry["temporary_bytes"]],
            "collectives": entry["collectives"],
            "operations_expected": "flat",
            "operations_verdict": "as expected" if entry["flat"] else "not as expected",
        }
    }


def _count(model: str, per_device: int, kind: str, devices: int) -> dict[str, Any]:
    """In a process of its own, since the number of devices is fixed at its start."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PJRT_NPROC": str(4 * devices),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = ["-m", "benchmarks.weak_scaling", model, str(per_device), kind]
    found = subprocess.run(
        [sys.executable, *command],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(found.stdout.splitlines()[-1])


def count_here(model: str, per_device: int, kind: str) -> dict[str, Any]:
    """The work of one device of this process' devices."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import gmm_guidance as gg
    from benchmarks.program_cost import program_cost
    from full_models import as_stack
    from full_models.models.dit.config import DiTConfig
    from full_models.models.dit.network import DiT
    from full_models.models.dit.weights import PLACEMENT
    from gmm_guidance.sharding import batch_sharding, placements

    count = jax.device_count()
    mesh = gg.MeshConfig(fsdp=count if kind == "fsdp" else 1).build()
    config = DiTConfig.named(model)
    shapes = jax.eval_shape(lambda: as_stack(DiT(config, rngs=nnx.Rngs(0))))
    where = placements(shapes, mesh, PLACEMENT)
    network = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, where
    )
    label = jax.ShapeDtypeStruct(
        (per_device * count,), jnp.int32, sharding=batch_sharding(mesh)
    )

    def step(network, label, key):
        return gg.guided_sample(
            key,
            network,
            label,
            num_samples=per_device * count,
            guidance=gg.S2Guidance(4.0, window=(0.0, 1.0)),
            schedule=gg.DDPMSteps(1),
            solver="euler",
            mesh=mesh,
        )

    cost = program_cost(
        jax.jit(step).lower(network, label, jax.random.key(0)).compile()
    )
    held = [
        sharding.shard_shape(a.shape)
        for a, sharding in zip(
            jax.tree.leaves(shapes), jax.tree.leaves(where), strict=True
        )
    ]
    return {
        "flops": cost.flops,
        "bytes_accessed": cost.bytes_accessed,
        "temporary_bytes": cost.temporary_bytes,
        "collectives": len(cost.collectives),
        "collective_kinds": sorted({c.kind for c in cost.collectives}),
        "collective_bytes": sum(c.bytes for c in cost.collectives),
        "parameters_held": sum(_size(shape) for shape in held),
    }


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


if __name__ == "__main__":
    print(json.dumps(count_here(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
