"""Train a denoiser on points of your own, and sample it with and without guidance."""

import jax
import numpy as np

import gmm_guidance as gg


def two_moons(num_points, rng):
    """Points ``[n, 2]`` on two interleaved arcs, and the arc of each, ``[n]``."""
    labels = rng.integers(0, 2, num_points)
    angle = np.pi * rng.uniform(size=num_points)
    sign = 1 - 2 * labels
    arcs = np.stack([np.cos(angle) + labels, sign * np.sin(angle) + 0.5 * labels], 1)
    return arcs + 0.05 * rng.normal(size=arcs.shape), labels


def main():
    # Any samples [n, d] and integer labels from 0 on, at any scale.
    points, labels = two_moons(2000, np.random.default_rng(0))
    config = gg.TrainingConfig(snapshots=(600,), width=32, num_blocks=4, batch_size=256)
    network = gg.train_denoiser(jax.random.key(0), (100.0 * points, labels), config)
    for rule in (gg.Unguided(), gg.CFG(2.0)):
        samples = gg.guided_sample(
            jax.random.key(1), network, 0, num_samples=500, guidance=rule
        )
        mean, std = samples.mean(0), samples.std(0)
        print(f"{type(rule).__name__}: mean {mean.round(0)}, std {std.round(0)}")


if __name__ == "__main__":
    main()
