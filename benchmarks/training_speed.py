"""Training on exact targets at batch 4,096 on the tree mixture, against PyTorch."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import torch

import gmm_guidance as gg
from benchmarks.harness import paired
from benchmarks.plain_torch import TorchMixture, TorchMLP

_STEPS = 20


def exact_target_training(batch: int = 4096) -> dict[str, Any]:
    """Steps per second of one network of width 64 and 8 blocks."""
    tree = gg.presets.tree()
    config = gg.TrainingConfig(
        snapshots=(_STEPS,), batch_size=batch, width=64, target="exact"
    )
    keys = jax.random.key(0)[None]

    def ours():
        return gg.train_denoisers(keys, tree, config).losses

    parts = [
        TorchMixture(m.means, m.covariances, m.weights)
        for m in (tree.condition(0), tree.condition(1), tree)
    ]
    network = TorchMLP(2, 2, 64, 8)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.0)
    clean, labels = (np.asarray(a) for a in tree.sample(jax.random.key(1), batch))
    clean, labels = torch.tensor(clean), torch.tensor(labels, dtype=torch.int64)

    def step():
        sigma = 0.5 * torch.exp(-0.8 + 1.6 * torch.randn(batch))
        noisy = clean + sigma[:, None] * torch.randn(batch, 2)
        label = torch.where(torch.rand(batch) < 0.15, 2, labels)
        target = torch.empty_like(noisy)
        for value, mixture in enumerate(parts):
            pick = label == value
            level = sigma[pick, None, None]
            target[pick] = noisy[pick] + level[:, 0] ** 2 * mixture.score(
                noisy[pick], level
            )
        error = (network(noisy, sigma, label) - target).square().sum(1)
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        optimizer.zero_grad()
        (weight * error).mean().backward()
        optimizer.step()

    def theirs():
        for _ in range(2):
            step()

    entry = paired(ours, theirs, repeats=3)
    ours_rate, theirs_rate = _STEPS / entry["ours_seconds"], 2 / entry["theirs_seconds"]
    return {
        f"training on exact targets, batch {batch}, tree": {
            "steps_per_second": ours_rate,
            "plain_torch_steps_per_second": theirs_rate,
            "ratio": ours_rate / theirs_rate,
            "public_steps_per_second_for_orientation": 1.8,
        }
    }
