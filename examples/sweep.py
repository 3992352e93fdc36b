"""Twenty CFG scales at once with ``jax.vmap``: one trace, one compilation."""

import jax
import jax.numpy as jnp

import gmm_guidance as gg


def main():
    mixture = gg.presets.two_modes()
    denoiser = gg.ExactDenoiser(mixture)
    scales = jnp.linspace(1.0, 8.0, 20)
    traces = []

    @jax.jit
    @jax.vmap
    def quantiles(scale):
        traces.append(scale)
        return gg.quantile_map(denoiser, 1, guidance=gg.CFG(scale), num_points=500)

    results = quantiles(scales)  # [20, 500]
    for scale, q in zip(scales, results, strict=True):
        distance = gg.metrics.wasserstein_1d(q, mixture, 1)
        shift, width = float(q.mean()) - 4.0, float(q.std())
        print(f"scale {float(scale):.2f}: shift {shift:+.3f}", end=", ")
        print(f"width {width:.3f}, W2 {distance:.3f}")
    print(f"traced {len(traces)} time")


if __name__ == "__main__":
    main()
