"""Interval guidance: CFG inside a window of the steps or of the noise levels."""

import gmm_guidance as gg

WINDOWS = {
    "all steps": None,
    "first half of the steps": (0.0, 0.5),
    "sigma > 5": gg.SigmaWindow(5.0, float("inf")),
    "0.5 < sigma <= 5": gg.SigmaWindow(0.5, 5.0),
    "sigma <= 0.5": gg.SigmaWindow(0.0, 0.5),
}


def main():
    mixture = gg.presets.two_modes()
    denoiser = gg.ExactDenoiser(mixture)
    schedule = gg.Karras(num_steps=32)
    for name, window in WINDOWS.items():
        rule = gg.Windowed(gg.CFG(3.0), window)
        out = gg.quantile_map(
            denoiser, 1, guidance=rule, schedule=schedule, solver="dpmpp_2m"
        )
        cost = gg.expected_cost(rule, schedule, 1, solver="dpmpp_2m")
        mean, std = float(out.mean()), float(out.std())
        print(f"{name:23} mean {mean:.3f}  std {std:.3f}", end="  ")
        print(f"forward passes {cost.shared:g}")


if __name__ == "__main__":
    main()
