"""A plain function and a Flax module as denoisers: ``f(x, sigma, label) -> D``."""

import jax
import jax.numpy as jnp
from flax import nnx

import gmm_guidance as gg

VARIANCE = 0.25  # of two equally likely classes, one around each mean


def denoise(x, sigma, label, means=jnp.array([-1.0, 1.0])):
    """The exact denoiser; ``label`` is ``[n]`` integers, or None: no condition."""
    total = VARIANCE + sigma**2
    right = jax.nn.sigmoid((x - means.mean()) * (means[1] - means[0]) / total)
    mean = means[0] + (means[1] - means[0]) * right
    if label is not None:
        mean = means[label][:, None]
    return mean + VARIANCE / total * (x - mean)


class Denoiser(nnx.Module):
    def __init__(self):
        self.means = nnx.Param(jnp.array([-2.0, 2.0]))

    def __call__(self, x, sigma, label):
        return denoise(x, sigma, label, self.means[...])


def main():
    key, rule = jax.random.key(0), gg.CFG(2.0)
    for model in (denoise, Denoiser()):
        samples = gg.guided_sample(
            key, model, 1, num_samples=2000, guidance=rule, sample_shape=(1,)
        )
        print(f"mean {float(samples.mean()):.3f}, std {float(samples.std()):.3f}")


if __name__ == "__main__":
    main()
