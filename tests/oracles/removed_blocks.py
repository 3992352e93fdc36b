"""A ``BlockMLP`` from which blocks are physically removed."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from flax import nnx

from gmm_guidance import BlockMLP


def without_blocks(network: BlockMLP, dropped) -> BlockMLP:
    """A shallower network with the other blocks' parameters and all the rest."""
    keep = np.setdiff1d(np.arange(network.num_blocks), np.asarray(dropped))
    config = dataclasses.replace(network.config, num_blocks=len(keep))
    shallow = BlockMLP(config, rngs=nnx.Rngs(99))
    for name in ("embed_sample", "embed_noise", "embed_label", "norm", "output"):
        setattr(shallow, name, getattr(network, name))
    shallow.blocks = jax.tree.map(lambda a: a[keep], network.blocks)
    return shallow
