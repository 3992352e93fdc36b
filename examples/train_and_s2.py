"""Train a small denoiser, then sample it without guidance, with CFG and with S²."""

import jax
import numpy as np

import gmm_guidance as gg

RULES = {
    "no guidance": gg.Unguided(),
    "CFG(2)": gg.CFG(2.0),
    "S2Guidance(2, 0.25)": gg.S2Guidance(scale=2.0, s2_scale=0.25),
}


def main():
    mixture = gg.presets.two_modes()
    config = gg.TrainingConfig(snapshots=(100, 300), width=32, batch_size=256)
    network = gg.train_denoiser(jax.random.key(0), mixture, config)
    labels = np.arange(4000) % mixture.num_labels  # both classes in turn
    schedule, solver = gg.Karras(num_steps=24), "dpmpp_2m"
    for name, rule in RULES.items():
        samples = gg.guided_sample(
            jax.random.key(1),
            network,
            labels,
            num_samples=len(labels),
            guidance=rule,
            schedule=schedule,
            solver=solver,
        )
        result = gg.metrics.summarize(samples, labels, mixture)
        cost = gg.expected_cost(rule, schedule, network.num_blocks, solver=solver)
        print(f"{name:20} W2 {result['w2']:.3f}", end="  ")
        print(f"shift {result['mode_shift']:+.3f}", end="  ")
        print(f"width {result['mode_width_ratio']:.3f}", end="  ")
        print(f"forward passes {cost.shared:.1f}")


if __name__ == "__main__":
    main()
