"""An Equinox module as a denoiser (needs ``pip install equinox``)."""

import equinox as eqx
import jax
import jax.numpy as jnp

import gmm_guidance as gg


class Denoiser(eqx.Module):
    """An MLP of the scaled sample, the noise level and the label."""

    mlp: eqx.nn.MLP
    sample_shape: tuple[int, ...] = eqx.field(static=True, default=(1,))

    def __call__(self, x, sigma, label):
        condition = jnp.zeros(len(x)) if label is None else 2.0 * label - 1.0
        scale = jnp.sqrt(1.0 + sigma**2)
        level = jnp.full_like(x, jnp.log(sigma) / 4.0)
        features = jnp.concatenate([x / scale, level, condition[:, None]], axis=1)
        return x / scale**2 + sigma / scale * jax.vmap(self.mlp)(features)


def main():
    model = Denoiser(eqx.nn.MLP(3, 1, 16, 2, jax.nn.silu, key=jax.random.key(0)))
    samples = gg.guided_sample(
        jax.random.key(1), model, label=1, num_samples=1000, guidance=gg.CFG(1.5)
    )
    print(f"{samples.shape} untrained samples, std {float(samples.std()):.3f}")


if __name__ == "__main__":
    main()
