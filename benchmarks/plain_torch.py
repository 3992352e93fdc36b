"""The opponent: the same formulas in plain PyTorch, as a competent user writes them.

Log space, covariances diagonalized once, vectorized over points and components, float32
and all cores; no loop over components, no compilation.
"""

from __future__ import annotations

import math

import numpy as np
import torch


class TorchMixture:
    """Score and denoiser of a Gaussian mixture with full covariances."""

    def __init__(self, means, covariances, weights):
        self.means = torch.tensor(np.asarray(means), dtype=torch.float32)
        exact = torch.as_tensor(np.asarray(covariances, np.float64))
        variances, vectors = torch.linalg.eigh(exact)
        self.variances, self.vectors = variances.float(), vectors.float()
        self.log_weights = torch.as_tensor(np.asarray(weights)).float().log()

    def score(self, x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        """Score of the noised mixture: x [n, d], sigma a scalar or [n, 1, 1]."""
        total = self.variances + sigma**2  # [K, d] or [n, K, d]
        difference = self.means - x[:, None]  # [n, K, d]
        coordinates = torch.einsum("nki,kij->nkj", difference, self.vectors)
        pulled = coordinates / total
        logits = (
            self.log_weights
            - 0.5 * (coordinates * pulled).sum(-1)
            - 0.5 * total.log().sum(-1)
            - 0.5 * x.shape[1] * math.log(2 * math.pi)
        )
        weights = torch.softmax(logits, dim=-1)
        return torch.einsum("nk,nkj,kij->ni", weights, pulled, self.vectors)


def heun(score, x: torch.Tensor, sigmas) -> torch.Tensor:
    """EDM's Heun sampler for a score function of (x, sigma)."""
    sigmas = [float(s) for s in sigmas]
    for i, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        slope = -sigma * score(x, sigma)
        end = x + (following - sigma) * slope
        if i < len(sigmas) - 2:
            slope = 0.5 * (slope - following * score(end, following))
            end = x + (following - sigma) * slope
        x = end
    return x


class TorchMLP(torch.nn.Module):
    """A residual network of the same shape as ``BlockMLP``."""

    def __init__(self, dim: int, num_labels: int, width: int, num_blocks: int):
        super().__init__()
        self.sample = torch.nn.Linear(dim, width)
        self.noise = torch.nn.Linear(32, width)
        self.label = torch.nn.Embedding(num_labels + 1, width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    "norm": torch.nn.LayerNorm(width, elementwise_affine=False),
                    "inner": torch.nn.Linear(width, width),
                    "condition": torch.nn.Linear(width, width, bias=False),
                    "outer": torch.nn.Linear(width, width),
                }
            )
            for _ in range(num_blocks)
        )
        self.norm = torch.nn.LayerNorm(width, elementwise_affine=False)
        self.output = torch.nn.Linear(width, dim)
        self.register_buffer("frequencies", torch.logspace(-0.3, 1.5, 16))

    def forward(self, x, sigma, label):
        """Denoised samples, with EDM's preconditioning at data scale 0.5."""
        scale, sigma = 0.5, sigma[:, None]
        root = (sigma**2 + scale**2).sqrt()
        phase = sigma.log() / 4 * self.frequencies
        features = torch.cat([phase.cos(), phase.sin()], dim=1)
        context = torch.nn.functional.silu(self.noise(features) + self.label(label))
        hidden = self.sample(x / root)
        for block in self.blocks:
            inner = block["inner"](block["norm"](hidden)) + block["condition"](context)
            hidden = hidden + block["outer"](torch.nn.functional.silu(inner))
        out = self.output(self.norm(hidden))
        return (scale / root) ** 2 * x + sigma * scale / root * out
