"""The solvers side by side, and a custom schedule."""

import jax
import numpy as np

import gmm_guidance as gg


def main():
    mixture = gg.presets.four_corners(labels="diagonal")
    denoiser = gg.ExactDenoiser(mixture)
    geometric = gg.CustomSchedule(tuple(np.geomspace(80.0, 0.01, 20)))
    for schedule in (gg.Karras(num_steps=20), geometric):
        for solver in ("euler", "heun", "dpmpp_2m", gg.EDMStochastic(churn=10.0)):
            samples = gg.guided_sample(
                jax.random.key(0),
                denoiser,
                label=0,
                num_samples=2000,
                guidance=gg.Unguided(),
                schedule=schedule,
                solver=solver,
            )
            distance = gg.metrics.sliced_wasserstein(samples, mixture, label=0)
            cost = gg.expected_cost(gg.Unguided(), schedule, 1, solver=solver)
            name = f"{type(schedule).__name__}, {solver}"
            print(f"{name[:30]:30} {cost.evaluations} evaluations", end="  ")
            print(f"sliced W2 {distance:.3f}")


if __name__ == "__main__":
    main()
