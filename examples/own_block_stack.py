"""A custom ``BlockStack``, on which S² with ``s2_scale=1`` is exact."""

import dataclasses

import jax

import gmm_guidance as gg


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Halving:
    """Each block halves the distance of the state to the exact denoiser's value."""

    exact: gg.ExactDenoiser
    num_blocks, sample_shape = 5, (1,)

    def embed(self, x, sigma, label):
        return x, self.exact(x, sigma, label)  # state entering block 0, context

    def block(self, index, hidden, context):
        return hidden + 0.5 * (context - hidden)

    def readout(self, hidden, context, x, sigma):
        return hidden


def main():
    exact = gg.ExactDenoiser(gg.presets.two_modes())
    schedule = gg.default_schedule(exact)
    target = gg.quantile_map(exact, 1, schedule=schedule)
    for s2_scale in (0.0, 0.25, 0.5, 1.0):
        rule = gg.S2Guidance(1.0, s2_scale, window=None)
        quantiles = gg.quantile_map(Halving(exact), 1, schedule=schedule, guidance=rule)
        distance = gg.metrics.wasserstein_1d(quantiles, target)
        print(f"s2_scale {s2_scale:.2f}: W2 to the exact denoiser {distance:.6f}")


if __name__ == "__main__":
    main()
