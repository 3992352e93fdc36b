"""Closed forms: scores, and exact CFG sampling, against plain PyTorch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import gmm_guidance as gg
from benchmarks.harness import paired, seconds
from benchmarks.plain_torch import TorchMixture, heun


def _torch(mixture: gg.GaussianMixture) -> TorchMixture:
    return TorchMixture(mixture.means, mixture.covariances, mixture.weights)


def scores(num_points: int = 4096) -> dict[str, Any]:
    """Seconds per score of 4,096 points, and accuracy against float64."""
    tree = gg.presets.tree()
    results: dict[str, Any] = {}
    for name, mixture in (("1016", tree.condition(0)), ("2032", tree)):
        x, _ = mixture.sample(jax.random.key(0), num_points)
        noise = jax.random.normal(jax.random.key(1), x.shape)
        opponent = _torch(mixture)
        noised = x + 0.5 * noise
        x_torch = torch.as_tensor(np.asarray(noised))
        entry = paired(
            lambda m=mixture, p=noised: m.score(p, 0.5),
            lambda m=opponent, p=x_torch: m.score(p, 0.5),
            repeats=9,
        )
        entry["accuracy_at_sigma_0.002"] = _accuracy(mixture, x + 0.002 * noise)
        results[f"score of {num_points} points, {name} components"] = entry
    return results


def _accuracy(mixture: gg.GaussianMixture, x: jax.Array) -> dict[str, float]:
    """Relative error of float32 scores at sigma = 0.002, ours and plain PyTorch's."""
    exact = _score_float64(mixture, np.asarray(x, np.float64), 0.002)
    scale = np.sqrt(np.mean(np.sum(exact**2, axis=1)))
    ours = np.asarray(mixture.score(x, 0.002), np.float64)
    theirs = _torch(mixture).score(torch.as_tensor(np.asarray(x)), 0.002).numpy()

    def error(found):
        return np.sqrt(np.sum((found - exact) ** 2, axis=1)) / scale

    return {
        "ours_rms": float(np.sqrt(np.mean(error(ours) ** 2))),
        "ours_max": float(error(ours).max()),
        "theirs_rms": float(np.sqrt(np.mean(error(theirs) ** 2))),
        "theirs_max": float(error(theirs).max()),
    }


def _score_float64(mixture, x, sigma) -> np.ndarray:
    means = np.asarray(mixture.means, np.float64)
    # The float32 eigenpairs are the mixture; only the arithmetic is in float64.
    vectors = np.asarray(mixture.eigenvectors, np.float64)
    total = np.asarray(mixture.variances, np.float64) + sigma**2
    result = np.empty_like(x)
    for part in np.array_split(np.arange(len(x)), 32):
        y = np.einsum("nki,kij->nkj", means[None] - x[part, None], vectors)
        logits = np.asarray(mixture.log_weights, np.float64) - 0.5 * np.sum(
            y**2 / total + np.log(total), axis=-1
        )
        r = np.exp(logits - logits.max(axis=1, keepdims=True))
        r /= r.sum(axis=1, keepdims=True)
        result[part] = np.einsum("nk,nkj,kij->ni", r, y / total, vectors)
    return result


def exact_cfg_sampling() -> dict[str, Any]:
    """Samples per second of CFG with exact denoisers, 32 Heun steps."""
    schedule = gg.Karras(32, 0.002, 5.0)
    tree = gg.presets.tree()
    results: dict[str, Any] = {}
    count, small = 2048, 64
    denoiser = gg.ExactDenoiser(tree)

    def ours(mixture_denoiser, n):
        return gg.guided_sample(
            jax.random.key(0),
            mixture_denoiser,
            0,
            num_samples=n,
            guidance=gg.CFG(4.0),
            schedule=schedule,
        )

    cond, full = _torch(tree.condition(0)), _torch(tree)

    def guided(x, sigma):
        weak = full.score(x, sigma)
        return weak + 4.0 * (cond.score(x, sigma) - weak)

    noise = 5.0 * torch.randn(small, 2, generator=torch.Generator().manual_seed(0))
    first = seconds(lambda: ours(denoiser, count))
    entry = paired(
        lambda: ours(denoiser, count),
        lambda: heun(guided, noise, schedule.sigmas()),
        repeats=3,
    )
    ours_rate = count / entry["ours_seconds"]
    theirs_rate = small / entry["theirs_seconds"]
    results["exact CFG, tree (1016 + 2032 components)"] = {
        "samples_per_second": ours_rate,
        "plain_torch_samples_per_second": theirs_rate,
        "ratio": ours_rate / theirs_rate,
        "public_samples_per_second_for_orientation": 55,
        "first_call_seconds": first,
        "samples": count,
    }
    for name, mixture, label in (
        ("4 components", gg.presets.four_corners(), 3),
        ("8 components", gg.presets.ring(), 0),
    ):
        count = 102_400
        exact = gg.ExactDenoiser(mixture)
        wide = gg.Karras(32)
        times = []
        for _ in range(4):
            times.append(
                seconds(
                    lambda d=exact, k=label, s=wide: gg.guided_sample(
                        jax.random.key(0),
                        d,
                        jnp.asarray(k),
                        num_samples=102_400,
                        guidance=gg.CFG(4.0),
                        schedule=s,
                    )
                )
            )
        results[f"exact CFG, {name}"] = {
            "samples_per_second": count / float(np.median(times[1:])),
            "samples": count,
        }
    return results
