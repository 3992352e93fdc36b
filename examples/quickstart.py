"""CFG with exact denoisers and the distribution that it should sample."""

import jax

import gmm_guidance as gg

NUM_SAMPLES = 4000
LABEL = 1  # the mode at +4


def main():
    mixture = gg.presets.two_modes(std=1.0)
    denoiser = gg.ExactDenoiser(mixture)
    print("rule       mean   std    W2 to p(x | label)")
    truth, _ = mixture.sample(jax.random.key(1), NUM_SAMPLES, LABEL)
    show("truth", truth, mixture)
    for scale in (1.0, 2.0, 4.0):
        samples = gg.guided_sample(
            jax.random.key(0),
            denoiser,
            LABEL,
            num_samples=NUM_SAMPLES,
            guidance=gg.CFG(scale),
        )
        show(f"CFG({scale:g})", samples, mixture)


def show(name, samples, mixture):
    distance = gg.metrics.wasserstein_1d(samples, mixture, LABEL)
    mean, std = float(samples.mean()), float(samples.std())
    print(f"{name:9} {mean:6.3f} {std:6.3f}  {distance:.3f}")


if __name__ == "__main__":
    main()
