"""Outputs of our tiny SD3 and Flux networks, for comparison with ``torch_joint``."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from full_models import FluxConfig
from full_models.weights.load import open_checkpoint
from oracles import torch_joint


def opened(folder, name):
    checkpoint = open_checkpoint(folder, model_of(folder, name))
    size = (torch_joint.HEIGHT, torch_joint.WIDTH)
    config = dataclasses.replace(checkpoint.config, input_size=size)
    if hasattr(config, "guidance"):
        config = dataclasses.replace(config, guidance=torch_joint.GUIDANCE)
    return dataclasses.replace(checkpoint, config=config).load()


def model_of(folder, name):
    """Tensors of schnell do not tell its noise levels."""
    if name != "schnell":
        return None

    return FluxConfig(
        in_channels=4,
        width=32,
        num_double=2,
        num_single=3,
        num_heads=2,
        axes=(4, 6, 6),
        text_width=12,
        pooled_width=10,
        variant="schnell",
    )


def relative_error(found, wanted):
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


@jax.jit
def predictions(backbone, x, label, drop):
    """What the network predicts without the blocks of a mask, at ``TIMES``."""
    hidden, context = backbone.embed(x, jnp.asarray(torch_joint.TIMES), label)
    start = 0
    for segment, size in enumerate(backbone.segments):

        def step(i, hidden, segment=segment, start=start):
            new = backbone.segment_block(segment, i, hidden, context)
            gone = drop[i + start]
            return jax.tree.map(lambda a, b: jnp.where(gone, a, b), hidden, new)

        hidden = jax.lax.fori_loop(0, size, step, hidden)
        start += size
    return backbone.readout(hidden, context)
