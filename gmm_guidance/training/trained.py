"""Trained denoisers: what training returns, and how it is saved and loaded."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from gmm_guidance._runtime.tensor_files import (
    differences,
    load_description,
    load_tree,
    save_tree,
)
from gmm_guidance.blocks.process_stack import ProcessStack, WrappedStack
from gmm_guidance.training.block_mlp import BlockMLP, NetworkConfig
from gmm_guidance.training.config import TrainingConfig

_KIND = "gmm_guidance.TrainedDenoiser"
_RUN_KIND = "gmm_guidance.TrainingRun"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainedDenoiser(WrappedStack):
    """A trained ``BlockMLP`` (averaged weights) and how it came to be.

    A ``Denoiser`` and a ``BlockStack``; further attributes are those of the network.

    Attributes:
        network: the network, a ``BlockMLP`` in a ``ProcessStack``.
        config: configuration of the training run.
        step: number of training steps behind these weights.
    """

    network: ProcessStack
    config: TrainingConfig = dataclasses.field(metadata={"static": True})
    step: int = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        return f"TrainedDenoiser({self.network!r}, step={self.step})"

    def save(self, path: str | os.PathLike) -> Path:
        """Write weights and configuration to one file; returns its path."""
        return save_tree(path, self.network.backbone, self._description())

    @classmethod
    def load(
        cls, path: str | os.PathLike, config: TrainingConfig | None = None
    ) -> TrainedDenoiser:
        """Read what ``save`` wrote.

        Args:
            path: the file.
            config: the configuration that it must have; any when ``None``.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is truncated, foreign, or of another configuration;
                the message names the differences.
        """
        found = _read(path, _KIND, config)
        network = load_tree(path, _abstract_network(_network_config(found)))
        return cls(network.as_stack(), _training_config(found), found["step"])

    def _description(self) -> dict[str, Any]:
        return {
            "kind": _KIND,
            "network": dataclasses.asdict(self.network.backbone.config),
            "training": dataclasses.asdict(self.config),
            "step": self.step,
        }


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """Denoisers of several seeds at several training lengths, from one run.

    Attributes:
        networks: a ``BlockMLP`` in a ``ProcessStack`` for each snapshot, whose arrays
            have a leading seed axis.
        config: configuration of the run, which names the snapshots.
        num_seeds: number of seeds.
        losses: mean training loss before each snapshot, ``[num_seeds]`` each.
    """

    networks: tuple[ProcessStack, ...]
    config: TrainingConfig
    num_seeds: int
    losses: tuple[jax.Array, ...]

    def __repr__(self) -> str:
        return (
            f"TrainingRun(num_seeds={self.num_seeds}, "
            f"snapshots={self.config.snapshots})"
        )

    def denoiser(self, seed: int = 0, step: int | None = None) -> TrainedDenoiser:
        """One seed's denoiser after ``step`` training steps; the last by default.

        Raises:
            ValueError: if the run has no such seed or snapshot.
        """
        step = self.config.num_steps if step is None else step
        if step not in self.config.snapshots or not 0 <= seed < self.num_seeds:
            raise ValueError(
                f"the run has seeds 0..{self.num_seeds - 1} and snapshots at steps "
                f"{self.config.snapshots}, got seed {seed} and step {step}."
            )
        network = self.networks[self.config.snapshots.index(step)]
        return TrainedDenoiser(
            jax.tree.map(lambda a: a[seed], network), self.config, step
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write all snapshots and seeds to one file; returns its path."""
        description = {
            "kind": _RUN_KIND,
            "network": dataclasses.asdict(self.networks[0].backbone.config),
            "training": dataclasses.asdict(self.config),
            "num_seeds": self.num_seeds,
        }
        backbones = tuple(network.backbone for network in self.networks)
        return save_tree(path, (backbones, self.losses), description)

    @classmethod
    def load(
        cls, path: str | os.PathLike, config: TrainingConfig | None = None
    ) -> TrainingRun:
        """Read what ``save`` wrote; otherwise as ``TrainedDenoiser.load``."""
        found = _read(path, _RUN_KIND, config)
        training = _training_config(found)
        num_seeds = found["num_seeds"]
        count = len(training.snapshots)
        one = _abstract_network(_network_config(found))
        seeds = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((num_seeds, *a.shape), a.dtype), one
        )
        loss = jax.ShapeDtypeStruct((num_seeds,), jax.numpy.float32)
        networks, losses = load_tree(path, ((seeds,) * count, (loss,) * count))
        stacks = tuple(network.as_stack() for network in networks)
        return cls(stacks, training, num_seeds, losses)


def _read(
    path: str | os.PathLike, kind: str, config: TrainingConfig | None
) -> dict[str, Any]:
    found = load_description(path)
    if found.get("kind") != kind:
        raise ValueError(f"{path} holds a {found.get('kind')!r}, expected {kind!r}.")
    for name, kind_of in (("network", NetworkConfig), ("training", TrainingConfig)):
        other = {f.name for f in dataclasses.fields(kind_of)} ^ set(found[name])
        if other:
            raise ValueError(
                f"{path} was written by another version of gmm_guidance, whose {name} "
                f"configuration differs in {', '.join(sorted(other))}. Train again."
            )
    if config is not None:
        expected = dataclasses.asdict(config)
        expected["snapshots"] = list(config.snapshots)  # as JSON has it
        differing = differences(expected, found["training"])
        if differing:
            raise ValueError(
                f"{path} is of another configuration: {'; '.join(differing)}."
            )
    return found


def _training_config(found: dict[str, Any]) -> TrainingConfig:
    fields = dict(found["training"])
    return TrainingConfig(**fields | {"snapshots": tuple(fields["snapshots"])})


def _network_config(found: dict[str, Any]) -> NetworkConfig:
    fields = dict(found["network"])
    return NetworkConfig(**fields | {"data_mean": tuple(fields["data_mean"])})


def _abstract_network(config: NetworkConfig) -> Any:
    return jax.eval_shape(lambda: BlockMLP(config, rngs=nnx.Rngs(0)))
