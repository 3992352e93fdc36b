"""Tiny diffusion transformers with random weights everywhere, also in zeroed places."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from flax import nnx

from full_models import DiT, DiTConfig, as_stack
from full_models.models.dit.config import SIT

TINY = DiTConfig(
    input_size=8,
    patch_size=2,
    in_channels=2,
    width=16,
    depth=4,
    num_heads=2,
    num_labels=5,
)


FLOW = dataclasses.replace(TINY, **SIT)


def random_dit(config=TINY, seed=0, std=0.15):
    """All parameters normal; a fresh network has gates of zero and predicts zero."""
    return as_stack(random_backbone(config, seed, std))


def random_backbone(config=TINY, seed=0, std=0.15):
    """The network of ``random_dit`` alone."""
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0)))
    return jax.tree.map(
        lambda a: jax.numpy.asarray(std * rng.normal(size=a.shape), a.dtype), abstract
    )


def without_blocks(network, dropped):
    """The network of the remaining blocks."""
    kept = [i for i in range(network.num_blocks) if i not in dropped]
    config = dataclasses.replace(network.config, depth=len(kept))
    smaller, whole = random_backbone(config), network.backbone
    smaller = nnx.merge(nnx.graphdef(smaller), nnx.state(whole))
    smaller.blocks = jax.tree.map(lambda a: a[np.array(kept)], whole.blocks)
    return as_stack(smaller)
