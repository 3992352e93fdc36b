"""A large draw in parts: the samples do not depend on how they are divided."""

import functools

import jax
import jax.numpy as jnp

import gmm_guidance as gg

NUM_SAMPLES = 6000


def main():
    mixture = gg.presets.ring(num_modes=8)
    labels = jnp.arange(NUM_SAMPLES) % mixture.num_labels
    draw = functools.partial(
        gg.guided_sample,
        jax.random.key(0),
        gg.ExactDenoiser(mixture),
        guidance=gg.CFG(1.5),
        schedule=gg.Karras(num_steps=16),
    )
    whole = draw(labels, num_samples=NUM_SAMPLES)
    # The same call, at most 2,000 samples at a time.
    batched = draw(labels, num_samples=NUM_SAMPLES, batch_size=2000)
    # Separate calls, on other machines perhaps: each says where it starts.
    parts = [
        draw(labels[i : i + 2000], num_samples=2000, first_index=i)
        for i in range(0, NUM_SAMPLES, 2000)
    ]
    separate = jnp.concatenate(parts)
    print(f"batch_size:  largest difference {float(jnp.abs(whole - batched).max())}")
    print(f"first_index: largest difference {float(jnp.abs(whole - separate).max())}")


if __name__ == "__main__":
    main()
