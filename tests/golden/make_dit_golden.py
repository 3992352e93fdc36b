"""Writes the frozen files under ``tests/golden/dit``: weights, inputs and outputs.

Needs the oracle extra (torch, diffusers). Random weights of our own; the network is
diffusers' DiT, set to the conventions of the published models.

    python tests/golden/make_dit_golden.py
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "dit"
sys.path.insert(0, str(FOLDER.parents[1]))

from oracles import torch_dit  # noqa: E402

DROPPED = (1,)


def main() -> None:
    """Write all of it anew."""
    torch.use_deterministic_algorithms(True)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    model = torch_dit.make(
        seed=3,
        num_layers=3,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=6,
    )
    model.save_pretrained(FOLDER / "diffusers")
    state = torch_dit.official_state(model)
    torch.save(state, FOLDER / "official.pt")
    write_training(state)
    write_views(state)
    np.savez_compressed(FOLDER / "values.npz", **values(model))
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    print(f"{FOLDER}: {size / 1000:.0f} kB")


def write_training(state: dict[str, torch.Tensor]) -> None:
    """A checkpoint of a training code: live weights, average, optimiser, arguments."""
    live = {name: torch.nn.Parameter(0.9 * t) for name, t in state.items()}
    trained = [t for name, t in live.items() if name != "pos_embed"]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    sum((t**2).sum() for t in trained).backward()
    optimiser.step()
    content = {
        "model": {name: t.detach() for name, t in live.items()},
        "ema": state,
        "opt": optimiser.state_dict(),
        "args": argparse.Namespace(model="DiT-XL/2", image_size=256, num_classes=6),
    }
    torch.save(content, FOLDER / "training.pt")


def write_views(state: dict[str, torch.Tensor]) -> None:
    """A few tensors that share storages and are not contiguous, in narrow types."""
    weight = state["blocks.0.attn.qkv.weight"].clone()
    views = {
        "whole": weight,
        "transposed": weight.T,
        "queries": weight[:8],
        "gaps": weight[2::5, 1::3],
        "expanded": weight[:1].expand(3, 8),
        "brain": weight.bfloat16().T,
        "half": weight.half()[3],
        "count": torch.arange(3),
    }
    torch.save({"state_dict": views}, FOLDER / "views.pt")


def values(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Inputs and outputs, channels first."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 4, 8, 8, generator=generator)
    labels = torch.tensor([0, 5, 6, 2])  # 6 is the null label
    steps = torch.tensor([0, 37, 600, 999])
    times = torch.tensor([0.97, 0.03, 0.3, 0.77])
    weights = torch.randn(4, 8, 8, 8, generator=generator)
    smaller = torch_dit.without_blocks(model, DROPPED)
    with torch.no_grad():
        result = {
            "noise": model(x, steps, labels).sample,
            "velocity": model(x, times, labels).sample,
            "noise_dropped": smaller(x, steps, labels).sample,
            "velocity_dropped": smaller(x, times, labels).sample,
        }
    (model(x, steps, labels).sample * weights).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    state = torch_dit.official_state(model, gradients)
    chosen = (
        "blocks.1.attn.qkv.weight",
        "blocks.2.adaLN_modulation.1.bias",
        "t_embedder.mlp.2.weight",
        "y_embedder.embedding_table.weight",
        "x_embedder.proj.weight",
    )
    result |= {f"gradient {name}": state[name] for name in chosen}
    result |= {"x": x, "labels": labels, "steps": steps, "times": times}
    result |= {"weights": weights, "dropped": torch.tensor(DROPPED)}
    return {name: tensor.detach().numpy() for name, tensor in result.items()}


if __name__ == "__main__":
    main()
