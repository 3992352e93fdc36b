"""How SD3 and SD3.5 are sampled: their defaults, noise levels and sizes."""

from __future__ import annotations

import dataclasses

import numpy as np

import gmm_guidance as gg
from full_models.models.family import Defaults
from full_models.models.sd3.config import SD3Config
from full_models.models.text_to_image import FIRST_TIME, PromptPipeline
from gmm_guidance.diffusion.schedule import Schedule
from gmm_guidance.sampling.solvers import Solver


def sd3_schedule(steps: int, shift: float = 3.0) -> Schedule:
    """Noise levels of SD3, as in the published code and in diffusers.

    Even times ``u`` from 1 to ``m = shift / (1000 + shift - 1)`` are shifted to ``s =
    shift u / (1 + (shift - 1) u)``, 0 follows, and ``sigma = s / (1 - s)``. The end
    point is shifted twice in both codes: 28 steps of SD3 are about 27 and one from s =
    0.009.

    Args:
        steps: number of steps, at least 1.
        shift: > 0; 3 in all published models.

    Raises:
        ValueError: for values out of these ranges.
    """
    gg.FlowSteps(steps, shift=shift)  # which checks both
    last = shift / (1000.0 + shift - 1.0)
    u = np.linspace(1.0, last, steps)
    s = np.minimum(shift * u / (1.0 + (shift - 1.0) * u), FIRST_TIME)
    return gg.CustomSchedule(tuple(s / (1.0 - s)))


@dataclasses.dataclass(frozen=True)
class SD3Pipeline(PromptPipeline):
    """The ``Pipeline`` of an SD3 transformer.

    Args:
        config: the shape.
    """

    config: SD3Config

    @property
    def title(self) -> str:
        """Depth, width and the size of the images."""
        c, (height, width) = self.config, self.sizes[0]
        return (
            f"SD3: {c.depth} blocks of width {c.width}, images {width} x {height}, "
            f"{c.compute_dtype}"
        )

    @property
    def autoencoder(self) -> str:
        """Name of the autoencoder for ``load_autoencoder``."""
        return "SD3-VAE"

    @property
    def defaults(self) -> Defaults:
        """28 steps and scale 7.5 as in the paper of S²; four without CFG for turbo."""
        if self.config.turbo:
            return Defaults(steps=4, cfg_scale=1.0, s2_scale=0.0)
        return Defaults(steps=28, cfg_scale=7.5)

    def schedule(self, steps: int, solver: str | Solver = "euler") -> Schedule:
        """SD3's levels with its shift of 3."""
        return sd3_schedule(steps)
