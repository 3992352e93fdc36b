"""AutoGuidance: guide a network with an earlier snapshot of its own training."""

import jax

import gmm_guidance as gg


def main():
    mixture = gg.presets.two_modes()
    config = gg.TrainingConfig(snapshots=(100, 300), width=32, batch_size=256)
    run = gg.train_denoisers(jax.random.split(jax.random.key(0), 1), mixture, config)
    good, weak = run.denoiser(step=300), run.denoiser(step=100)
    for scale in (1.0, 1.5, 2.0):
        samples = gg.guided_sample(
            jax.random.key(1),
            good,
            label=1,
            num_samples=2000,
            guidance=gg.AutoGuidance(weak, scale),
            schedule=gg.Karras(num_steps=24),
            solver="dpmpp_2m",
        )
        distance = gg.metrics.wasserstein_1d(samples, mixture, label=1)
        print(f"scale {scale:g}: mean {float(samples.mean()):.3f}, W2 {distance:.3f}")


if __name__ == "__main__":
    main()
