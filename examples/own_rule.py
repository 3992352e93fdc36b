"""A custom rule with state: CFG whose difference has momentum."""

import jax.numpy as jnp

import gmm_guidance as gg


@gg.guidance_rule
class MomentumCFG(gg.GuidanceRule):
    """``D_c + (scale - 1) m`` with ``m <- m + rate (D_c - D_u - m)``. 1 = off."""

    scale: float
    rate: float = 0.5

    def init(self, x):
        return jnp.zeros_like(x)

    def passes(self, label, draws):
        return gg.Pass(None), gg.Pass(label)

    def combine(self, outputs, x, sigma, state):
        uncond, cond = outputs
        momentum = state + self.rate * (cond - uncond - state)
        return cond + (self.scale - 1.0) * momentum, momentum


def main():
    mixture = gg.presets.two_modes()
    denoiser = gg.ExactDenoiser(mixture)
    for rate in (1.0, 0.5, 0.2):
        rule = MomentumCFG(2.0, rate)
        out = gg.quantile_map(denoiser, 1, guidance=rule, solver="euler")
        distance = gg.metrics.wasserstein_1d(out, mixture, 1)
        print(f"rate {rate:g}: mean {float(out.mean()):.3f}, W2 {distance:.3f}")


if __name__ == "__main__":
    main()
