"""The states at every noise level: how samples travel from noise to a mode."""

import jax

import gmm_guidance as gg


def main():
    mixture = gg.presets.two_modes()
    schedule = gg.Karras(num_steps=16)
    samples, path = gg.guided_sample(
        jax.random.key(0),
        gg.ExactDenoiser(mixture),
        label=1,
        num_samples=2000,
        guidance=gg.CFG(2.0),
        schedule=schedule,
        trajectory=True,
    )
    assert path.shape == (schedule.num_steps + 1, *samples.shape)
    for sigma, x in zip(schedule.sigmas(), path, strict=True):
        wrong = float((x < 0).mean())
        print(f"sigma {sigma:7.3f}: mean {float(x.mean()):7.3f}", end=", ")
        print(f"std {float(x.std()):6.3f}, left of 0 {wrong:.3f}")


if __name__ == "__main__":
    main()
