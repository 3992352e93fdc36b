"""The eight-panel figure of the branching mixture, timed without training.

Panels as in the public toy: truth, network unguided and guided, trajectories of both,
log densities of the class and of the whole mixture, and their ratio. The truth panel
is sampled with exact denoisers, which is where the public script spends its time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import gmm_guidance as gg
from gmm_guidance._runtime.figure_style import COLORS, PAGE_WIDTH, figure_style


def tree_figure(out: Path, train_steps: int = 512) -> dict[str, Any]:
    """Draw the figure; returns the seconds it took, training apart."""
    tree = gg.presets.tree()
    started = time.perf_counter()
    denoiser = gg.train_denoiser(
        jax.random.key(0),
        tree,
        gg.TrainingConfig(
            snapshots=(train_steps,), batch_size=2048, width=64, target="exact"
        ),
    )
    trained = time.perf_counter()
    schedule = gg.Karras(32, 0.002, 5.0)

    def draw(model, rule, n, path=False):
        return gg.guided_sample(
            jax.random.key(1),
            model,
            0,
            num_samples=n,
            guidance=rule,
            schedule=schedule,
            trajectory=path,
        )

    exact = gg.ExactDenoiser(tree)
    truth = draw(exact, gg.Unguided(), 16_384)
    exact_cfg = draw(exact, gg.CFG(4.0), 4096)
    plain, plain_path = draw(denoiser, gg.Unguided(), 16_384, path=True)
    guided, guided_path = draw(denoiser, gg.CFG(4.0), 16_384, path=True)
    axis = np.linspace(-0.4, 1.4, 400, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    log_class = np.asarray(tree.log_prob(grid, 0.03, 0))
    log_all = np.asarray(tree.log_prob(grid, 0.03))
    with figure_style():
        figure, axes = plt.subplots(2, 4, figsize=(PAGE_WIDTH, 3.7))
        clouds = (
            ("exact denoiser", truth, "#606060"),
            ("exact CFG, scale 4", exact_cfg, COLORS["cfg"]),
            ("network", plain, COLORS["unguided"]),
            ("network, CFG", guided, COLORS["cfg"]),
        )
        for ax, (title, points, color) in zip(axes[0], clouds, strict=True):
            x = np.asarray(points)
            ax.plot(*x.T, ".", color=color, ms=0.7, mew=0, alpha=0.6, rasterized=True)
            ax.set_title(title)
        extent = (axis[0], axis[-1], axis[0], axis[-1])
        for ax, title, field in (
            (axes[1, 0], "log p(x | A), σ = 0.03", np.maximum(log_class, -10)),
            (axes[1, 1], "log p(A | x)", np.maximum(log_class - log_all, -10)),
        ):
            ax.imshow(field, origin="lower", extent=extent, cmap="viridis")
            ax.set_title(title)
        for ax, title, path, color in (
            (axes[1, 2], "paths, unguided", plain_path, COLORS["unguided"]),
            (axes[1, 3], "paths, CFG", guided_path, COLORS["cfg"]),
        ):
            lines = np.asarray(path)[:, :60]
            ax.plot(lines[..., 0], lines[..., 1], color=color, lw=0.3)
            ax.set_title(title)
        for ax in axes.flat:
            ax.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
            ax.set_xticks([0, 1])
            ax.set_yticks([0, 1])
        figure.savefig(out)
    done = time.perf_counter()
    return {
        "tree figure": {
            "seconds": done - trained,
            "training_seconds_apart": trained - started,
            "public_seconds_for_orientation": 707,
        }
    }
