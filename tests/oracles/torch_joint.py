"""Tiny SD3 and Flux transformers of diffusers, and the same in the original layout."""

import importlib
import warnings

import numpy as np

_SD3 = dict(
    sample_size=8,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=12,
    caption_projection_dim=16,
    pooled_projection_dim=10,
    pos_embed_max_size=12,
)
CONFIGS = {
    "SD3": _SD3,
    "SD3.5-medium": _SD3 | dict(qk_norm="rms_norm", dual_attention_layers=(0,)),
    "SD3.5-large": _SD3 | dict(qk_norm="rms_norm"),
    "dev": dict(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    ),
}
CONFIGS["schnell"] = CONFIGS["dev"] | dict(guidance_embeds=False)
HEIGHT, WIDTH, LENGTH = 8, 6, 5
TIMES = np.array([0.02, 0.0355], np.float32)
GUIDANCE = 0.05


def make(name, seed=0):
    """A model with random values everywhere, in norms and biases too."""
    import torch

    config = CONFIGS[name]
    kind = "SD3" if "sample_size" in config else "Flux"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import may warn of this and that
        diffusers = importlib.import_module("diffusers")
    model = getattr(diffusers, f"{kind}Transformer2DModel")(**config)
    state = model.state_dict()
    values = tensors({key: tuple(value.shape) for key, value in state.items()}, seed)
    model.load_state_dict({key: torch.tensor(value) for key, value in values.items()})
    return model.eval()


def tensors(shapes, seed=0):
    """Random values for tensors by name, in norms, biases and positions too."""
    rng = np.random.default_rng(seed)
    result = {}
    for key in sorted(shapes):
        noise = rng.normal(size=shapes[key])
        is_norm = "norm_" in key and "attn" in key
        std = 0.1 if noise.ndim > 1 else 0.2
        result[key] = np.float32(1.0 + 0.2 * noise if is_norm else std * noise)
    return result


def inputs(c, seed=0):
    """Latents ``[n, C, H, W]`` and text of prompts and of a negative one."""
    rng = np.random.default_rng(seed)
    channels = c["in_channels"] // (4 if "axes_dims_rope" in c else 1)
    return dict(
        x=rng.normal(size=(2, channels, HEIGHT, WIDTH)).astype(np.float32),
        context=rng.normal(size=(3, LENGTH, c["joint_attention_dim"])).astype(
            np.float32
        ),
        pooled=rng.normal(size=(3, c["pooled_projection_dim"])).astype(np.float32),
    )


def velocity(model, x, times, context, pooled, guidance=None, skip=()):
    """What the model predicts, ``[n, C, H, W]``; times in [0, 1]."""
    import torch

    with torch.no_grad():
        return _velocity(torch, model, x, times, context, pooled, guidance, skip)


def _velocity(torch, model, x, times, context, pooled, guidance, skip):
    times = torch.tensor(np.asarray(times, np.float32))
    x, context, pooled = (torch.tensor(a) for a in (x, context, pooled))
    if "sample_size" in model.config:
        return model(
            x,
            encoder_hidden_states=context,
            pooled_projections=pooled,
            timestep=1000.0 * times,
            skip_layers=list(skip) or None,
            return_dict=False,
        )[0].numpy()
    n, channels, height, width = x.shape
    tokens = x.reshape(n, channels, height // 2, 2, width // 2, 2)
    tokens = tokens.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, 4 * channels)
    places = torch.zeros(height // 2, width // 2, 3)
    places[..., 1] += torch.arange(height // 2)[:, None]
    places[..., 2] += torch.arange(width // 2)[None]
    double, single = model.transformer_blocks, model.single_transformer_blocks
    kept = [b for i, b in enumerate(double) if i not in skip]
    rest = [b for i, b in enumerate(single) if i + len(double) not in skip]
    model.transformer_blocks = torch.nn.ModuleList(kept)
    model.single_transformer_blocks = torch.nn.ModuleList(rest)
    scale = None if guidance is None else torch.full((n,), guidance)
    out = model(
        tokens,
        encoder_hidden_states=context,
        pooled_projections=pooled,
        timestep=times,
        img_ids=places.reshape(-1, 3),
        txt_ids=torch.zeros(context.shape[1], 3),
        guidance=scale,
        return_dict=False,
    )[0]
    model.transformer_blocks, model.single_transformer_blocks = double, single
    out = out.reshape(n, height // 2, width // 2, channels, 2, 2)
    return out.permute(0, 3, 1, 4, 2, 5).reshape(x.shape).numpy()
