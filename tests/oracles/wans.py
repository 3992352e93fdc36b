"""Tiny Wan models of diffusers with random weights, and ours with the same."""

import contextlib
import warnings
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="needs the oracle extra")

HEADS, DEPTH, TEXT = 2, 3, 20


class Prompts(NamedTuple):
    context: np.ndarray
    negative_context: np.ndarray


def randomized(model, seed=0, std=0.15):
    """Random values in every parameter, biases and norms as well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def transformer(depth=DEPTH, seed=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = diffusers.WanTransformer3DModel(
            num_attention_heads=HEADS,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            text_dim=TEXT,
            freq_dim=256,
            ffn_dim=48,
            num_layers=depth,
        )
    return randomized(model, seed)


def autoencoder(seed=1):
    model = diffusers.AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        num_res_blocks=2,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    )
    return randomized(model, seed)


def prompts(count=2, length=6, seed=2):
    """Prompts of differing lengths, zero beyond, and a negative one."""
    rng = np.random.default_rng(seed)
    context = rng.normal(size=(count + 1, length, TEXT)).astype(np.float32)
    for i in range(count + 1):
        context[i, length - i % length :] *= i == 0
    return Prompts(context[:count], context[count])


def padded(context, length=512):
    """As the pipeline of diffusers is given prompts, ``[n, length, C]``."""
    missing = length - context.shape[-2]
    return torch.tensor(np.pad(context, ((0, 0), (0, missing), (0, 0))))


@contextlib.contextmanager
def skipped(model, blocks):
    """The model without these blocks, by the hook of diffusers."""
    from diffusers.hooks import HookRegistry, LayerSkipConfig, apply_layer_skip

    apply_layer_skip(model, LayerSkipConfig(list(blocks), fqn="blocks"))
    try:
        yield model
    finally:
        for block in model.blocks:
            registry = HookRegistry.check_if_exists_or_initialize(block)
            for name in list(registry.hooks):
                registry.remove_hook(name)


def official_names(state):
    """Tensors of diffusers under the names of Wan-AI, by the table of the port."""
    pairs = (
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("attn1.", "self_attn."),
        ("attn2.", "cross_attn."),
        ("to_out.0.", "o."),
        ("to_q.", "q."),
        ("to_k.", "k."),
        ("to_v.", "v."),
        ("norm2.", "norm3."),
        ("ffn.net.0.proj.", "ffn.0."),
        ("ffn.net.2.", "ffn.2."),
        ("proj_out.", "head.head."),
    )
    result = {}
    for name, tensor in state.items():
        for theirs, wan in pairs:
            name = name.replace(theirs, wan)
        last = name.split(".")[-1]
        if last == "scale_shift_table":
            inside = name.startswith("blocks.")
            name = name.replace(last, "modulation" if inside else "head.modulation")
        result[name] = tensor.numpy()
    return result
