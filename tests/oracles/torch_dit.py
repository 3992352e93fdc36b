"""diffusers' DiT with the conventions of the published models, and random weights."""

import importlib
import warnings

CONFIGS = {
    "small": dict(num_layers=3, in_channels=4, out_channels=8),
    "plain": dict(num_layers=2, in_channels=4, out_channels=4, sample_size=6),
    "pixels": dict(num_layers=4, in_channels=3, out_channels=6, patch_size=4),
    "wide": dict(
        num_layers=2,
        in_channels=3,
        out_channels=None,
        num_attention_heads=3,
        attention_head_dim=12,
        patch_size=4,
        sample_size=12,
    ),
}
_DEFAULTS = dict(
    num_attention_heads=2,
    attention_head_dim=8,
    sample_size=8,
    patch_size=2,
    num_embeds_ada_norm=10,
    norm_eps=1e-6,
)


def make(seed=0, std=0.15, **config):
    """A network for evaluation, all of its parameters normal."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import may warn of this and that
        diffusers = importlib.import_module("diffusers")
    model = diffusers.DiTTransformer2DModel(**_DEFAULTS | config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, std, generator=generator)
        first = model.transformer_blocks[0].norm1.emb.state_dict()
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(first)
    return as_published(model)


def as_published(model):
    """Frequencies over half; MLP norms say 1e-6 by their configuration."""
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return model.eval()


def official_state(model, tensors=None):
    """The tensors under the names of the published checkpoints, with the positions.

    Args:
        model: of diffusers.
        tensors: by the names of diffusers, the model's own by default. Copies of the
            embeddings are added up if they are given (gradients).
    """
    import torch

    copies_add = tensors is not None
    tensors = model.state_dict() if tensors is None else tensors
    depth = len(model.transformer_blocks)
    state = {"pos_embed": model.pos_embed.pos_embed}

    def rename(theirs, ours):
        for kind in ("weight", "bias"):
            state[f"{theirs}.{kind}"] = tensors[f"{ours}.{kind}"]

    def embedding(name):
        copies = [
            tensors[f"transformer_blocks.{i}.norm1.emb.{name}"] for i in range(depth)
        ]
        return torch.stack(copies).sum(0) if copies_add else copies[-1]

    rename("x_embedder.proj", "pos_embed.proj")
    for index, name in ((0, "linear_1"), (2, "linear_2")):
        for kind in ("weight", "bias"):
            state[f"t_embedder.mlp.{index}.{kind}"] = embedding(
                f"timestep_embedder.{name}.{kind}"
            )
    state["y_embedder.embedding_table.weight"] = embedding(
        "class_embedder.embedding_table.weight"
    )
    for i in range(depth):
        theirs, ours = f"blocks.{i}", f"transformer_blocks.{i}"
        for kind in ("weight", "bias"):
            state[f"{theirs}.attn.qkv.{kind}"] = torch.cat(
                [tensors[f"{ours}.attn1.to_{part}.{kind}"] for part in "qkv"]
            )
        rename(f"{theirs}.attn.proj", f"{ours}.attn1.to_out.0")
        rename(f"{theirs}.mlp.fc1", f"{ours}.ff.net.0.proj")
        rename(f"{theirs}.mlp.fc2", f"{ours}.ff.net.2")
        rename(f"{theirs}.adaLN_modulation.1", f"{ours}.norm1.linear")
    rename("final_layer.adaLN_modulation.1", "proj_out_1")
    rename("final_layer.linear", "proj_out_2")
    return state


def without_blocks(model, dropped):
    """The same network, these blocks left out of it."""
    import copy

    import torch

    smaller = copy.deepcopy(model)
    kept = [b for i, b in enumerate(smaller.transformer_blocks) if i not in dropped]
    smaller.transformer_blocks = torch.nn.ModuleList(kept)
    return smaller
