"""A velocity network of a rectified flow as a denoiser, with steps even in its time."""

import jax

import gmm_guidance as gg
from gmm_guidance.diffusion.parameterization import from_denoised, to_sigma_space

FLOW = gg.RectifiedFlow()
MIXTURE = gg.presets.two_modes()


def velocity(x_t, t, label):
    """Stands for a trained network: sees ``x_t = (1 - t) x0 + t noise`` and ``t``."""
    x, sigma = to_sigma_space(FLOW, x_t, t)
    denoised = MIXTURE.denoise(x, sigma, label)
    return from_denoised(FLOW, denoised, x_t, t, "velocity")


def main():
    model = gg.ProcessStack(velocity, FLOW, "velocity")
    for denoiser in (model, gg.ExactDenoiser(MIXTURE)):
        samples = gg.guided_sample(
            jax.random.key(0),
            denoiser,
            label=1,
            num_samples=2000,
            guidance=gg.CFG(2.0),
            schedule=gg.FlowSteps(num_steps=50, t_max=0.99),
            sample_shape=(1,),
        )
        print(f"mean {float(samples.mean()):.4f}, std {float(samples.std()):.4f}")


if __name__ == "__main__":
    main()
