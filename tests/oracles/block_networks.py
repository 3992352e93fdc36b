"""``BlockMLP``s made of given numbers, and such with blocks physically removed."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gmm_guidance import BlockMLP, NetworkConfig, ProcessStack


def abstract(config: NetworkConfig) -> Any:
    """The network without numbers: built by tracing, which is fast."""
    return jax.eval_shape(lambda: BlockMLP(config, rngs=nnx.Rngs(0)).as_stack())


def random_network(seed: int = 0, **config) -> ProcessStack:
    """Normal parameters, of a size that keeps activations at order one."""
    rng = np.random.default_rng(seed)
    config = {"dim": 2, "num_labels": 3, "width": 8, "num_blocks": 5, **config}

    def draw(leaf):
        size = np.sqrt(leaf.shape[-2] if leaf.ndim > 1 else 4)
        return jnp.asarray(rng.normal(size=leaf.shape) / size, leaf.dtype)

    return jax.tree.map(draw, abstract(NetworkConfig(**config)))


def without_blocks(network: ProcessStack, dropped) -> ProcessStack:
    """A shallower network with the other blocks' parameters and all the rest."""
    keep = np.setdiff1d(np.arange(network.num_blocks), np.asarray(dropped))
    shallow = abstract(dataclasses.replace(network.config, num_blocks=len(keep)))
    for name in ("embed_sample", "embed_noise", "embed_label", "norm", "output"):
        setattr(shallow.backbone, name, getattr(network, name))
    shallow.backbone.blocks = jax.tree.map(lambda a: a[keep], network.blocks)
    return shallow
