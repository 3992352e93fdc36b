"""``MeshConfig``: how devices are divided among samples and parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gmm_guidance._runtime.checks import shown

AXES = ("data", "fsdp", "tensor")
# Devices that hold a part of the parameters still compute samples of their own.
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """A mesh of devices with three axes.

    Samples are divided over ``data`` and ``fsdp``, parameters over ``fsdp`` and
    ``tensor`` as path rules say. With the last two at 1 each device has all parameters,
    and sampling needs no communication at all.

    Attributes:
        data: groups of devices with all parameters; 0 for as many as there are devices.
        fsdp: devices that divide the parameters and gather them block by block.
        tensor: devices that divide the matrix products of each block.

    Raises:
        ValueError: for negative numbers, or ``fsdp`` or ``tensor`` below 1.
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        if self.data < 0 or self.fsdp < 1 or self.tensor < 1:
            raise ValueError(
                f"the mesh needs data >= 0 (0: all devices), fsdp >= 1 and tensor >= "
                f"1, got {self.data}, {self.fsdp} and {self.tensor}."
            )

    @classmethod
    def parse(cls, text: str) -> MeshConfig:
        """A mesh from words: ``"data=4,fsdp=2"``; what is not named keeps its default.

        Raises:
            ValueError: for other words, or sizes that are no numbers or out of range.
        """
        sizes = {}
        for part in filter(None, text.replace(" ", "").split(",")):
            name, _, size = part.partition("=")
            if name not in AXES or not size.isdigit() or name in sizes:
                raise ValueError(
                    f"a mesh is given as data=4,fsdp=2,tensor=1 (each at most once; "
                    f"data=0 takes all devices), got {text!r}."
                )
            sizes[name] = int(size)
        return cls(**sizes)

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over devices, by default over all of all processes.

        Axes are of type ``Auto``: the compiler divides the work. (JAX's default
        changed to ``Explicit``, under which models would have to know the mesh.)

        Raises:
            ValueError: if there are more or fewer devices than the mesh has, or if the
                devices of one process do not hold whole ``tensor`` groups.
        """
        devices = jax.devices() if devices is None else list(devices)
        count, groups = len(devices), self.fsdp * self.tensor
        data = self.data or max(count // groups, 1)
        if data * groups > count or (not self.data and data * groups != count):
            raise ValueError(
                f"a mesh of data {self.data or 'all'} x fsdp {self.fsdp} x tensor "
                f"{self.tensor} needs "
                f"{data * groups if self.data else f'a multiple of {groups}'} devices, "
                f"but there are {count} ({devices[0].device_kind}); choose other sizes."
            )
        local = [d for d in devices if d.process_index == devices[0].process_index]
        if len(local) % self.tensor:
            raise ValueError(
                f"tensor must divide the {len(local)} devices of a process, got "
                f"{self.tensor}; each process draws whole samples."
            )
        if data * groups < count and len(local) < count:
            raise ValueError(
                f"with several processes the mesh must use all {count} devices, got "
                f"{data} x {self.fsdp} x {self.tensor}; use data 0."
            )
        return jax.make_mesh(
            (data, self.fsdp, self.tensor),
            AXES,
            axis_types=(AxisType.Auto,) * len(AXES),
            devices=devices[: data * groups],
        )


def as_mesh(mesh: Any) -> Mesh:
    """A mesh of the three axes: those that are missing have one device.

    Raises:
        TypeError: for anything but a mesh.
        ValueError: for axes of other names.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh must be a jax.sharding.Mesh, got {shown(mesh)}; "
            f"MeshConfig().build() makes one of all devices."
        )
    if not set(mesh.axis_names) <= set(AXES):
        raise ValueError(
            f"the axes of a mesh must be among {', '.join(AXES)}, got "
            f"{', '.join(str(name) for name in mesh.axis_names)}; use "
            f"MeshConfig(data=..., fsdp=..., tensor=...).build()."
        )
    auto = (AxisType.Auto,) * len(AXES)
    if mesh.axis_names == AXES and mesh.axis_types == auto:
        return mesh
    present = [name for name in AXES if name in mesh.axis_names]
    devices = mesh.devices.transpose([mesh.axis_names.index(n) for n in present])
    sizes = [mesh.shape.get(name, 1) for name in AXES]
    return Mesh(devices.reshape(sizes), AXES, axis_types=auto)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Arrays whose leading axis is that of samples."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_batch_parts(mesh: Mesh) -> int:
    """In how many parts the mesh divides a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def divides_parameters(mesh: Mesh) -> bool:
    """Whether parameters may lie on several devices in parts."""
    return mesh.shape["fsdp"] * mesh.shape["tensor"] > 1
